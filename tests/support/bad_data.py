"""Data sets that must be rejected: how to build each, the error it must raise, and its words.

`BAD_DATA` is a table: other tests (command line, training) run through it too. Each builder takes
an empty folder and returns what a user would give as DATA. The images are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pneumoscope.errors import DataError, ManifestError, SplitLeakError


def write_image(path: Path, seed: int = 0, side: int = 48) -> Path:
    """A PNG of noise, one picture per seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(grey).save(path, format="PNG")
    return path


def write_images(folder: Path, names: Sequence[str]) -> None:
    """A PNG of noise for each name, all different."""
    for seed, name in enumerate(names):
        write_image(folder / name, seed)


def write_manifest(folder: Path, text: str, images: Sequence[str] = ("a.png", "b.png")) -> Path:
    """`folder/data.csv` with `text`, beside images of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder, images)
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True)
class BadData:
    """A builder, the error that its data must raise, and words that the message must hold."""

    name: str
    build: Callable[[Path], Path]
    error: type[DataError]
    words: tuple[str, ...]


def _nothing(folder: Path) -> Path:
    return folder / "nothing"


def _empty_folder(folder: Path) -> Path:
    return folder


def _no_classes(folder: Path) -> Path:
    write_images(folder, ["COVID/a.png", "HEALTHY/b.png"])
    return folder


def _one_level_too_high(folder: Path) -> Path:
    write_images(folder, ["chest_xray/train/NORMAL/a.png", "chest_xray/train/PNEUMONIA/b.png"])
    return folder


def _images_without_folders(folder: Path) -> Path:
    write_images(folder, ["a.png", "b.png"])
    return folder


def _empty_classes(folder: Path) -> Path:
    (folder / "NORMAL").mkdir()
    (folder / "PNEUMONIA").mkdir()
    (folder / "NORMAL" / ".DS_Store").write_bytes(b"x")
    return folder


def _one_class(folder: Path) -> Path:
    write_images(folder, ["NORMAL/a.png", "NORMAL/b.png"])
    return folder


def _splits_beside_classes(folder: Path) -> Path:
    write_images(folder, ["train/NORMAL/a.png", "train/PNEUMONIA/b.png", "NORMAL/c.png"])
    return folder


def _patient_in_two_folders(folder: Path) -> Path:
    names = [
        "train/PNEUMONIA/person417_bacteria_1.jpeg",
        "train/PNEUMONIA/person417_bacteria_2.jpeg",
        "train/PNEUMONIA/person417_bacteria_3.jpeg",
        "test/PNEUMONIA/person417_bacteria_4.jpeg",
        "train/NORMAL/IM-0001-0001.jpeg",
        "test/NORMAL/IM-0002-0001.jpeg",
    ]
    write_images(folder, names)
    return folder


def _binary(folder: Path) -> Path:
    return write_image(folder / "data.csv")


def _nul_bytes(folder: Path) -> Path:
    return write_manifest(folder, "path,label\na.png,NORMAL\0\n")


def _utf16(folder: Path) -> Path:
    path = folder / "data.csv"
    path.write_bytes("path,label\na.png,NORMAL\n".encode("utf-16"))
    return path


def _windows(folder: Path) -> Path:
    return write_manifest(folder, "path,label\nC:\\data\\a.png,NORMAL\n")


def _manifest(text: str) -> Callable[[Path], Path]:
    return lambda folder: write_manifest(folder, text)


BAD_DATA: tuple[BadData, ...] = (
    BadData("missing", _nothing, DataError, ("no such file or folder", "NORMAL/")),
    BadData("empty_folder", _empty_folder, DataError, ("found no folder", "NORMAL/")),
    BadData("no_classes", _no_classes, DataError, ("COVID/, HEALTHY/", "PNEUMONIA/")),
    BadData("one_level_too_high", _one_level_too_high, DataError, ("give", "chest_xray instead")),
    BadData("images_without_folders", _images_without_folders, DataError, ("found no folder",)),
    BadData("empty_classes", _empty_classes, DataError, ("contain no file",)),
    BadData("one_class", _one_class, DataError, ("2 NORMAL and no PNEUMONIA",)),
    BadData("splits_beside_classes", _splits_beside_classes, DataError, ("side by side",)),
    BadData(
        "patient_in_two_folders",
        _patient_in_two_folders,
        SplitLeakError,
        (
            "patient 'bacteria-417' is in train (3 images) and test (1 image) of",
            "pneumoscope data split DATA --out split.csv",
        ),
    ),
    BadData("binary_manifest", _binary, ManifestError, ("not UTF-8 text", "CSV")),
    BadData("nul_bytes", _nul_bytes, ManifestError, ("binary content",)),
    BadData("utf16_manifest", _utf16, ManifestError, ("not UTF-8 text",)),
    BadData("path_of_windows", _windows, ManifestError, ("line 2", "a Windows path")),
    BadData("empty_manifest", _manifest(""), ManifestError, ("empty file", "path,label")),
    BadData("header_alone", _manifest("path,label\n"), ManifestError, ("no row",)),
    BadData(
        "missing_column",
        _manifest("path,patient\na.png,1\n"),
        ManifestError,
        ("line 1", "'path', 'patient'", "missing: label"),
    ),
    BadData(
        "semicolons",
        _manifest("path;label\na.png;NORMAL\n"),
        ManifestError,
        ("separated by semicolons", "commas"),
    ),
    BadData(
        "tabs", _manifest("path\tlabel\na.png\tNORMAL\n"), ManifestError, ("separated by tabs",)
    ),
    BadData(
        "column_twice",
        _manifest("path,label,Label\na.png,0,1\n"),
        ManifestError,
        ("'label' more than once",),
    ),
    BadData(
        "field_too_many",
        _manifest("path,label\na.png,NORMAL\nb.png,PNEUMONIA,x\n"),
        ManifestError,
        ("line 3", "found 3 fields, wanted 2"),
    ),
    BadData(
        "open_quote",
        _manifest('path,label\n"a.png,NORMAL\n'),
        ManifestError,
        ("can't be read as CSV",),
    ),
    BadData(
        "duplicate_row",
        _manifest("path,label\na.png,NORMAL\nb.png,PNEUMONIA\n./a.png,NORMAL\n"),
        ManifestError,
        ("line 4", "'./a.png' again", "line 2"),
    ),
    BadData(
        "unknown_label",
        _manifest("path,label\na.png,NORMAL\nb.png,covid\n"),
        ManifestError,
        ("line 3", "'covid'", "NORMAL or PNEUMONIA, or 0 or 1"),
    ),
    BadData(
        "unknown_split",
        _manifest("path,label,split\na.png,0,train\nb.png,1,holdout\n"),
        ManifestError,
        ("line 3", "'holdout'", "train, val, test"),
    ),
    BadData(
        "empty_path", _manifest("path,label\n,NORMAL\n"), ManifestError, ("line 2", "empty path")
    ),
    BadData(
        "outside_relative",
        _manifest("path,label\na.png,NORMAL\nsub/../../b.png,1\n"),
        ManifestError,
        ("line 3", "leaves the folder"),
    ),
    BadData("the_folder_itself", _manifest("path,label\n.,NORMAL\n"), ManifestError, ("leaves",)),
    BadData(
        "missing_files",
        _manifest("path,label\na.png,0\nc.png,1\nd.png,1\n"),
        ManifestError,
        ("2 of 3 images do not exist", "c.png (line 3)", "d.png (line 4)"),
    ),
    BadData(
        "name_too_long", _manifest(f"path,label\n{'x' * 5000},0\n"), ManifestError, ("not exist",)
    ),
    BadData(
        "shared_patient",
        _manifest("path,label,patient,split\na.png,0,P1,train\nb.png,1,P1,test\n"),
        SplitLeakError,
        ("patient 'P1' is in train (1 image) and test (1 image) of", "data.csv"),
    ),
)
