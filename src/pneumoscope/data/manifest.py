"""Read and write CSV manifests of images: every line is checked, and written files read back.

A manifest has the columns `path,label` and optionally `patient,split` and others. Reading returns
records in the file's order, whose `patient` may be empty. No image is opened.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope import storage
from pneumoscope.data.patients import parse_split, split_words
from pneumoscope.data.tree import CLASS_WORDS
from pneumoscope.errors import DataError, ManifestError
from pneumoscope.records import CLASS_NAMES, SPLITS, Dataset, ImageRecord, Split
from pneumoscope.storage import full_path, plain_cell, safe_path

SPLIT_COLUMNS = ("path", "label", "patient", "split")
"""The columns of a `split.csv`, in this order."""

_REQUIRED = ("path", "label")
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_NUMBERS = {"0": 0, "1": 1}
_NAMED_AT_MOST = 3
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    values: dict[str, str]


def read_manifest(path: Path, classes: Mapping[str, int] = CLASS_WORDS) -> tuple[ImageRecord, ...]:
    """Read a manifest; its paths are absolute, or relative to its folder and below it.

    Absolute paths serve data sets that are stored elsewhere and may be read-only. A relative path
    that leaves the folder is usually a mistake and is refused.

    Args:
        path: the CSV: UTF-8 with or without a byte order mark, commas, optionally quoted.
        classes: names of classes, in lower case, and their labels.

    Returns:
        One record per line, in order, with absolute paths, splits as given and further columns in
        `extra`; `patient` is empty if the manifest names none.

    Raises:
        ManifestError: names the line, what was found, what was expected and how to correct it.
    """
    folder = Path(full_path(path.parent))
    records: list[ImageRecord] = []
    lines: dict[Path, int] = {}
    for row in _rows(path):
        record = _record(row, path, folder, classes)
        if record.path in lines:
            raise ManifestError(
                f"{path}, line {row.line}: found {row.values['path']!r} again, first on line "
                f"{lines[record.path]}; wanted each image once. Remove one of the two lines."
            )
        lines[record.path] = row.line
        records.append(record)
    if not records:
        raise ManifestError(
            f"{path}: found a header and no row; wanted one row per image. Add the images."
        )
    _require_files(path, lines)
    return tuple(records)


def _rows(path: Path) -> list[_Row]:
    """The lines as dicts by lower-case column name; blank lines are skipped."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[_Row] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = _checked_header(path, fields)
            elif len(fields) != len(header):
                raise ManifestError(
                    f"{path}, line {reader.line_num}: found {len(fields)} fields, wanted "
                    f"{len(header)} as in the header. Put quotes around values with commas."
                )
            else:
                values = dict(zip(header, (field.strip() for field in fields), strict=True))
                rows.append(_Row(reader.line_num, values))
    except csv.Error as error:
        raise ManifestError(
            f"{path}, line {reader.line_num}: can't be read as CSV ({error}). "
            "Save the table again as CSV with commas, in UTF-8."
        ) from error
    if header is None:
        raise ManifestError(
            f"{path}: found an empty file, wanted a CSV with the columns path,label. "
            "Give a manifest, or a folder that holds NORMAL/ and PNEUMONIA/."
        )
    return rows


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{path}: can't be read ({error.strerror}). Give a CSV manifest or a folder of images."
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: found bytes that are not UTF-8 text (at byte {error.start}), wanted a CSV "
            "manifest. Save the table as CSV in UTF-8, or give a folder of images."
        ) from error
    if "\0" in text:
        raise ManifestError(
            f"{path}: found binary content, wanted a CSV manifest in UTF-8. "
            "Save the table as CSV in UTF-8, or give a folder of images."
        )
    return text


def _checked_header(path: Path, fields: Sequence[str]) -> list[str]:
    header = [field.strip().lower() for field in fields]
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        other = [word for mark, word in _OTHER_DELIMITERS.items() if mark in fields[0]]
        way_out = (
            f"The columns seem to be separated by {other[0]}: save the table with commas."
            if other and len(fields) == 1
            else "Name the columns in the first line."
        )
        raise ManifestError(
            f"{path}, line 1: found the columns {', '.join(map(repr, fields))}; wanted path,label "
            f"(missing: {', '.join(missing)}). {way_out}"
        )
    twice = sorted(name for name, uses in Counter(header).items() if uses > 1)
    if twice:
        raise ManifestError(
            f"{path}, line 1: found the column {twice[0]!r} more than once; wanted each once. "
            "Rename or remove one."
        )
    return header


def _record(row: _Row, path: Path, folder: Path, classes: Mapping[str, int]) -> ImageRecord:
    where = f"{path}, line {row.line}"
    values = row.values
    label = {**_NUMBERS, **classes}.get(values["label"].lower())
    if label is None:
        raise ManifestError(
            f"{where}: found the label {values['label']!r}; wanted {CLASS_NAMES[0]} or "
            f"{CLASS_NAMES[1]}, or 0 or 1. Correct the label or remove the line; or, if it means "
            f"one of the two, say so: pneumoscope data split {path} --pneumonia WORDS --normal "
            "WORDS --out split.csv"
        )
    further = [name for name in values if name and name not in SPLIT_COLUMNS]
    return ImageRecord(
        path=_image_path(plain_cell(values["path"]), where, folder),
        label=label,
        patient=plain_cell(values.get("patient", "")),
        split=_split(values.get("split", ""), where),
        extra={name: plain_cell(values[name]) for name in further},
    )


def _image_path(text: str, where: str, folder: Path) -> Path:
    if not text:
        raise ManifestError(
            f"{where}: found an empty path; wanted a path relative to the folder of the CSV. "
            "Fill it in or remove the line."
        )
    image = Path(os.path.normpath(folder / text))
    if "\\" in text and not _is_file(image):
        if _DRIVE.match(text):
            raise ManifestError(
                f"{where}: found {text!r}, a Windows path that does not exist on this machine; "
                "wanted one relative to the folder of the CSV, written with '/'."
            )
        text = text.replace("\\", "/")  # written on Windows
        image = Path(os.path.normpath(folder / text))
    if Path(text).is_absolute():
        return image
    if image == folder or not image.is_relative_to(folder):
        raise ManifestError(
            f"{where}: found the path {text!r}, which leaves the folder of the CSV; wanted one "
            f"below {folder}, or an absolute one. Put the CSV into a folder above its images, or "
            "use absolute paths."
        )
    return image


def _split(text: str, where: str) -> Split | None:
    if not text:
        return None
    if (name := parse_split(text)) is not None:
        return name
    raise ManifestError(
        f"{where}: found the split {text!r}; wanted {', '.join(SPLITS)} (or one of "
        f"{split_words()}) or nothing. "
        "Correct it, or leave the column out and let pneumoscope split the patients."
    )


def _require_files(path: Path, lines: dict[Path, int]) -> None:
    missing = [image for image in lines if not _is_file(image)]
    if missing:
        named = ", ".join(f"{image} (line {lines[image]})" for image in missing[:_NAMED_AT_MOST])
        more = ", …" if len(missing) > _NAMED_AT_MOST else ""
        raise ManifestError(
            f"{path}: {len(missing)} of {len(lines)} images do not exist or are not files: {named}"
            f"{more}. Paths are relative to the folder of the CSV: move it, or correct them."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not support
        return False


def write_split(path: Path | str, dataset: Dataset, further: Sequence[str] | None = None) -> None:
    """Write `path,label,patient,split` and further columns: a manifest that reads back unchanged.

    Paths are relative to the CSV's folder if the image lies below it, else absolute. Labels are
    class names; an image without a split has an empty cell. Cells that a spreadsheet would
    interpret as a formula are escaped (`storage.safe_cell`) and read back unchanged.

    Args:
        path: the CSV.
        dataset: the images.
        further: columns of the records' `extra` that are written as well; all by default.

    Raises:
        DataError: an image's name is not valid Unicode and can't be written.
        OSError: the folder can't be written.

    Examples:
        >>> write_split(folder / "parts.csv", split(index(xrays), SplitConfig(val=0.2)))
        >>> len(load_dataset(folder / "parts.csv")) == len(load_dataset(xrays))
        True
    """
    path = Path(path)
    folder = Path(full_path(path.parent))
    if further is None:
        further = tuple(dict.fromkeys(name for record in dataset.records for name in record.extra))
    rows = []
    for record in dataset.records:
        inside = record.path.is_relative_to(folder)
        image = record.path.relative_to(folder) if inside else record.path
        values = (record.patient, record.split or "", *(record.extra.get(k, "") for k in further))
        label = CLASS_NAMES[record.label]
        rows.append((safe_path(image.as_posix()), label, *values))
    try:
        storage.write_text(path, storage.csv_text((*SPLIT_COLUMNS, *further), rows))
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: can't be written: {error.object[error.start - 40 : error.end + 10]!r} has "
            "a name that is not valid Unicode; wanted names in UTF-8. Rename the file."
        ) from error
