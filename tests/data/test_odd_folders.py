"""Data sets as people have them: masks below classes, other names of splits, placeholders for ids.

What is right is stated per case: the images counted, or the words of the rejection.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pneumoscope.cli.app import run
from pneumoscope.data.audit import audit
from pneumoscope.data.index import class_counts, index
from pneumoscope.data.sources import download
from pneumoscope.data.tree import flat_kind, notes_on_flat_images
from pneumoscope.errors import DataError
from support.bad_data import write_image, write_images
from support.dicom_images import twelve
from support.hostile_files import progressive
from support.image_files import dicom

CLASSES = ("NORMAL", "PNEUMONIA")


def _mask(path: Path, seed: int = 0) -> Path:
    """Two white ellipses on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:96, :96]
    inside = ((x - 28 - seed % 5) / 14) ** 2 + ((y - 48) / 30) ** 2 < 1
    inside |= ((x - 68) / 14) ** 2 + ((y - 48) / 30) ** 2 < 1
    Image.fromarray((inside * 255).astype(np.uint8)).save(path, quality=90)
    return path


def _classes(folder: Path, *names: str, each: int = 4) -> Path:
    write_images(folder, [f"{name}/{k}.png" for name in names for k in range(each)])
    return folder


def _counted(folder: Path) -> dict[str, tuple[int, int]]:
    return {c.split or "": (c.normal, c.pneumonia) for c in class_counts(index(folder))}


def test_folders_of_masks_are_named_and_left_out(tmp_path: Path) -> None:
    _classes(tmp_path, "NORMAL/images", "PNEUMONIA/images")
    for name in CLASSES:
        for k in range(3):
            _mask(tmp_path / name / "masks" / f"{k}.png", k)
    found = index(tmp_path)
    assert len(found.records) == 8
    assert {record.path.parent.name for record in found.records} == {"images"}
    said = [note for note in found.warnings if "masks or drawings" in note]
    assert len(said) == 2
    assert f"{tmp_path / 'NORMAL' / 'masks'}: 3 files left out" in said[0]


def test_files_other_than_images_are_not_counted(tmp_path: Path) -> None:
    _classes(tmp_path, "train/NORMAL", "train/PNEUMONIA")
    for name in ("README.txt", "meta.json", "table.csv", "mask.npy"):
        (tmp_path / "train" / "NORMAL" / name).write_text("no image")
    write_image(tmp_path / "train" / "NORMAL" / "named_wrongly.txt", 9)  # a PNG nevertheless
    (tmp_path / "train" / "NORMAL" / "broken.jpeg").write_text("no image")  # rejected by its reader
    assert _counted(tmp_path) == {"train": (6, 4)}
    assert any("4 files left out that are not images" in note for note in index(tmp_path).warnings)


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_two_valued_images_are_found_by_their_pixels(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path, [f"{name}/{k}.png" for name in CLASSES for k in range(4)])
    for k in range(3):
        _mask(tmp_path / "NORMAL" / f"m{k}.{suffix}", k)
    Image.fromarray(np.full((96, 96), 90, np.uint8) + (np.eye(96) * 3).astype(np.uint8)).save(
        tmp_path / "PNEUMONIA" / "grey.png"
    )
    found = index(tmp_path)
    two, one = notes_on_flat_images(found.records)
    assert two.startswith("3 of 12 images have only two grey values")
    assert one.startswith("1 of 12 images have nearly a single grey value")
    codes = {f.code: f for f in audit(found).findings}
    assert codes["two_valued"].severity == "problem"
    assert "3 of 12" in codes["two_valued"].text
    assert "1 of 12" in codes["near_constant"].text


def test_the_search_for_masks_has_the_limits_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JPEG of 800 bytes that states 20,000 squared, and one of very many scans."""
    _classes(tmp_path, *CLASSES)
    content = bytearray(_mask(tmp_path / "NORMAL" / "wide.jpeg").read_bytes())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = (20_000).to_bytes(2, "big") * 2
    (tmp_path / "NORMAL" / "wide.jpeg").write_bytes(content)
    (tmp_path / "NORMAL" / "scans.jpeg").write_bytes(progressive(300))
    converted = []
    monkeypatch.setattr(JpegImageFile, "draft", lambda *found: converted.append(found))
    assert notes_on_flat_images(index(tmp_path).records) == ()
    assert converted == []


def test_flat_images() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((200, 200))
    assert flat_kind(noise) == ""
    assert flat_kind((noise * 65535).astype(np.uint16)) == ""
    assert flat_kind((noise > 0.7).astype(np.float32)) == "two_valued"
    assert flat_kind((noise > 0.7).astype(np.uint8) * 255) == "two_valued"
    assert flat_kind(0.2 + 0.6 * (noise > 0.7)) == "two_valued"  # any two greys
    assert flat_kind(np.full((64, 64), 7, np.uint8)) == "near_constant"
    assert flat_kind(0.5 + 0.01 * noise) == "near_constant"
    assert flat_kind(0.5 + 0.1 * noise) == ""


@pytest.mark.parametrize("link", ["to the parent", "to the other class", "of a file"])
def test_one_file_with_both_labels_is_an_error(tmp_path: Path, link: str) -> None:
    _classes(tmp_path, *CLASSES)
    if link == "to the parent":
        (tmp_path / "NORMAL" / "up").symlink_to(tmp_path)
    elif link == "to the other class":
        (tmp_path / "NORMAL" / "more").symlink_to(tmp_path / "PNEUMONIA")
    else:
        (tmp_path / "NORMAL" / "x.png").symlink_to(tmp_path / "PNEUMONIA" / "0.png")
    with pytest.raises(DataError, match=r"is the same file as .* both NORMAL and PNEUMONIA"):
        index(tmp_path)


def test_one_file_in_two_splits_is_an_error(tmp_path: Path) -> None:
    _classes(tmp_path / "train", *CLASSES)
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match=r"is the same file as .* in both train and test"):
        index(tmp_path)
    found = audit(index(tmp_path, refuse_leaks=False))
    assert any("is the same file as" in finding.text for finding in found.findings)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "dev", "test_set"),
    ],
)
def test_synonyms_of_splits(tmp_path: Path, train: str, val: str, test: str) -> None:
    for k, name in enumerate((train, val, test), 2):
        _classes(tmp_path / name, *CLASSES, each=k)
    assert _counted(tmp_path) == {"train": (2, 2), "val": (3, 3), "test": (4, 4)}


def test_training_and_testing_alone(tmp_path: Path) -> None:
    for name in ("Training", "Testing"):
        _classes(tmp_path / name, *CLASSES)
    assert _counted(tmp_path) == {"train": (4, 4), "test": (4, 4)}


def test_a_split_of_unknown_name_is_rejected_by_name(tmp_path: Path) -> None:
    for name in ("train", "holdout"):
        _classes(tmp_path / name, *CLASSES)
    with pytest.raises(DataError, match=r"found holdout/ .* valid"):
        index(tmp_path)


def test_synonyms_in_a_manifest(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{k}.png" for k in range(3)])
    rows = ["path,label,split", "0.png,NORMAL,Training", "1.png,0,valid", "2.png,1,TEST"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    assert [record.split for record in index(tmp_path / "m.csv").records] == [
        "train",
        "val",
        "test",
    ]


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "Validation", "Testing")]
)
def test_a_zip_keeps_all_its_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        _classes(tmp_path / "in" / name, *CLASSES)
    _mask(tmp_path / "in" / names[0] / "NORMAL" / "masks" / "0.png")
    report = download(str(_zipped(tmp_path)), tmp_path / "out")
    assert {c.split: (c.normal, c.pneumonia) for c in report.images} == {
        "train": (4, 4),
        "val": (4, 4),
        "test": (4, 4),
    }


def test_a_zip_with_an_unknown_split_is_rejected_by_name(tmp_path: Path) -> None:
    for name in ("train", "holdout"):
        _classes(tmp_path / "in" / name, *CLASSES)
    with pytest.raises(DataError, match="holdout/ with class folders"):
        download(str(_zipped(tmp_path)), tmp_path / "out")


def _zipped(tmp_path: Path) -> Path:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((tmp_path / "in").rglob("*.png")):
            opened.write(path, path.relative_to(tmp_path / "in"))
    return archive


@pytest.mark.parametrize(
    ("names", "option"),
    [
        (("BACTERIA", "VIRUS", "NORMAL"), "--pneumonia 'BACTERIA,VIRUS'"),
        (("COVID", "Normal", "Viral Pneumonia"), "--pneumonia 'Viral Pneumonia'"),
        (("HEALTHY", "PNEUMONIA", "TB"), "--normal 'HEALTHY'"),
        (("train/BACTERIA", "train/NORMAL", "train/VIRUS"), "--pneumonia 'BACTERIA,VIRUS'"),
    ],
)
def test_other_classes_are_rejected_with_advice(
    tmp_path: Path, names: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _classes(tmp_path / "data", *names)
    out = tmp_path / "split.csv"
    assert run(["data", "split", str(data), "--out", str(out), "--val", "0.25"]) == 3
    said = capsys.readouterr().err
    assert option in said
    assert not out.exists()
    flag, _, value = option.partition(" ")
    again = ["data", "split", str(data), "--out", str(out), "--val", "0.25", flag]
    assert run([*again, value.strip("'")]) == 0
    labels = Counter(record.label for record in index(out).records)
    assert min(labels[0], labels[1]) >= 4


def test_labels_of_a_manifest_are_merged_likewise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, [f"{k}.png" for k in range(12)])
    words = ["bacteria", "virus", "normal"]
    rows = [f"{k}.png,{words[k % 3]},{30 + k}" for k in range(12)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,age", *rows]) + "\n")
    asked = ["data", "split", str(tmp_path / "m.csv"), "--out", str(tmp_path / "split.csv")]
    assert run(asked) == 3
    assert "--pneumonia WORDS" in capsys.readouterr().err
    assert run([*asked, "--pneumonia", "bacteria,virus"]) == 0
    found = index(tmp_path / "split.csv")
    assert Counter(record.label for record in found.records) == {1: 8, 0: 4}
    assert found.records[3].extra == {"age": "33"}  # further columns are kept


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--pneumonia", "viral", "--normal", "Viral"), "--pneumonia: found 'viral', which alr"),
        (("--normal", "pneumonia"), "found 'pneumonia', which already means PNEUMONIA"),
        (("--pneumonia", "flu,NORMAL"), "found 'normal', which already means NORMAL"),
    ],
)
def test_a_word_for_both_classes_is_rejected(
    tmp_path: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _classes(tmp_path / "data", "VIRAL", "NORMAL", "PNEUMONIA")
    out = tmp_path / "split.csv"
    assert run(["data", "split", str(data), "--out", str(out), *words]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def _manifest(folder: Path, patient: Callable[[int], str], n: int = 40) -> Path:
    write_images(folder, [f"{k}.png" for k in range(n)])
    rows = [f"{k}.png,{k % 2},{patient(k)}" for k in range(n)]
    path = folder / "m.csv"
    path.write_text("\n".join(["path,label,patient", *rows]) + "\n")
    return path


@pytest.mark.parametrize("word", ["ANONYMOUS", "nan", "0", "anon", "N/A", "Unknown"])
def test_placeholders_in_a_manifest(tmp_path: Path, word: str) -> None:
    found = index(_manifest(tmp_path, lambda _: word))
    assert len({record.patient for record in found.records}) == 40
    assert (
        f"40 of 40 images have a placeholder instead of a patient id ({word!r})"
        in found.warnings[0]
    )
    texts = [finding.text for finding in audit(found).findings if finding.code == "index"]
    assert any("placeholder" in text for text in texts)


def test_placeholders_in_headers(tmp_path: Path) -> None:
    for k in range(12):
        path = tmp_path / CLASSES[k % 2] / f"{k}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dicom(twelve(PatientID="ANONYMOUS")))
    found = index(tmp_path)
    assert len({record.patient for record in found.records}) == 12
    assert "12 of 12 images have a placeholder" in found.warnings[0]


def test_placeholders_among_true_ids(tmp_path: Path) -> None:
    found = index(_manifest(tmp_path, lambda k: "anon" if k < 10 else f"P{k // 2}"))
    assert len({record.patient for record in found.records}) == 10 + 15
    assert "10 of 40 images have a placeholder" in found.warnings[0]


def test_one_id_for_all_is_reported_and_no_empty_split_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _manifest(tmp_path, lambda _: "HOSPITAL-A")
    assert "40 of 40 images have the patient id 'HOSPITAL-A'" in index(manifest).warnings[0]
    out = tmp_path / "split.csv"
    assert run(["data", "split", str(manifest), "--out", str(out), "--val", "0.2"]) == 3
    said = capsys.readouterr().err
    assert "would be empty" in said
    assert "'HOSPITAL-A' has 40" in said
    assert not out.exists()


def test_the_val_of_a_split_file_is_kept(tmp_path: Path) -> None:
    """A val below 100 images per class, and below the share of train, is kept nevertheless."""
    from pneumoscope.config import SplitConfig
    from pneumoscope.data.splits import with_usable_validation

    data = _classes(tmp_path / "data", *CLASSES, each=30)
    out = tmp_path / "split.csv"
    assert run(["data", "split", str(data), "--out", str(out), "--val", "0.1", "-q"]) == 0
    given = index(out)
    kept, said = with_usable_validation(given, SplitConfig(val=0.15), False, from_manifest=True)
    assert kept.records == given.records
    assert "since the manifest names it" in said[0]
    anew, _ = with_usable_validation(given, SplitConfig(val=0.3), False)  # as of folders
    assert anew.records != given.records


def test_a_clean_data_set_gives_no_warnings(tmp_path: Path) -> None:
    names = [f"train/NORMAL/IM-{k:04}-0001.png" for k in range(12)]
    names += [f"train/PNEUMONIA/person{k}_virus_1.png" for k in range(12)]
    write_images(tmp_path, names)
    found = index(tmp_path)
    assert found.warnings == ()
    assert notes_on_flat_images(found.records) == ()
    assert json.dumps([f.code for f in audit(found).findings]).count("two_valued") == 0
