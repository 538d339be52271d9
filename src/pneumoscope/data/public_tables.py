"""Tables of public data sets: rows, image files, ages, sexes, views; and any CSV table of images.

`Record` is one image as described by its owner's tables, `Source` describes a data set for
`data adopt`. `rows_of` reads a CSV row by row; `images_below` finds image files by name.
`with_dicom_header` adds age, sex and view from the DICOM header, for data sets whose tables lack
them; no pixel is decoded. `PLAIN` is the data set whose columns and words the user states.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from pneumoscope.config import AdoptConfig
from pneumoscope.data.patients import parse_split, split_words
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.dicom.patient import (
    LATERAL_WORDS,
    MOST_AGE,
    VIEWS,
    YEARS_PER_UNIT,
    dicom_texts,
)
from pneumoscope.reading import open_regular
from pneumoscope.records import Split

NORMAL, PNEUMONIA = 0, 1

View = Literal["AP", "PA", "lateral", "other", ""]
"""`""`: unknown."""

OTHER_FINDING = "other finding than normal or pneumonia"
UNCERTAIN = "uncertain label"
NO_LABEL = "no label"
NOT_FOUND = "image file not found"
DUPLICATE_FILE = "image file named again"
CONTRADICTED = "rows of the image contradict each other"

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp")
_MAX_INFLATED = 1 << 30
_FIELD_LIMIT = 1 << 20
"""Reports in a table can be long; a field of over a megabyte is not a report."""

_SEXES = {
    **dict.fromkeys(("f", "female", "woman"), "F"),
    **dict.fromkeys(("m", "male", "man"), "M"),
}
_TAGS = ["PatientAge", "PatientSex", "ViewPosition"]

_USUAL = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "image_id"),
    "label": ("label", "class", "finding", "diagnosis", "target"),
    "patient": ("patient", "patient_id", "patientid", "subject_id", "subject"),
    "split": ("split", "set", "fold"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex"),
    "view": ("view", "view_position", "projection"),
}
_NEEDED = ("path", "label")


@dataclass(frozen=True, slots=True)
class Record:
    """One image as described by its owner's tables.

    Attributes:
        path: the file, absolute; `None` if it is missing.
        label: 0, 1, or `None` if the image is left out; `why` is then the reason.
        patient: `""` if the owner names none.
        split: the owner's own split, `None` if there is none.
        split_word: the owner's word for a split that is none of train, val and test.
        age: years, `None` if unknown.
        sex: `F`, `M` or `""`.
        view: the projection.
        finding: the owner's words for the findings.
        labelled_by: who or what labelled it, in a few words.
        why: why it is left out.
    """

    path: Path | None
    label: int | None
    patient: str = ""
    split: Split | None = None
    age: float | None = None
    sex: str = ""
    view: View = ""
    finding: str = ""
    labelled_by: str = ""
    why: str = ""
    split_word: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set.

    Attributes:
        name: its name on the command line.
        title: its name.
        paper: the citation, with its DOI or arXiv number.
        layout: the files that are read.
        labels: which findings become which label.
        read: yields every image of a folder.
        headers: age, sex and view come from the DICOM headers.
        options: settings of `AdoptConfig` that this data set reads and not every other does.
        notes: limitations of its labels or patients, one sentence each.
    """

    name: str
    title: str
    paper: str
    layout: str
    labels: str
    read: Callable[[Path, AdoptConfig], Iterator[Record]]
    headers: bool = False
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def other_finding(case_label: Literal["exclude", "normal"]) -> tuple[int | None, str]:
    """Label and reason of an image with another finding, as chosen by the user."""
    return (NORMAL, "") if case_label == "normal" else (None, OTHER_FINDING)


def age_in_years(text: str) -> float | None:
    """Convert `58`, `058Y`, `010M`, `003W` or `012D` to years; `None` if invalid or over 120.

    DICOM PS3.5 section 6.2, Age String; owners also write bare years, and decimals.
    """
    value = text.strip().upper()
    unit = YEARS_PER_UNIT.get(value[-1:])
    try:
        age = float(value[:-1]) * unit if unit else float(value)
    except ValueError:
        return None
    return age if 0 <= age <= MOST_AGE else None


def sex_of(text: str) -> str:
    """`F` or `M` from a DICOM PatientSex or an owner's word for it, else `""`."""
    return _SEXES.get(text.strip().lower(), "")


def view_of(text: str) -> View:
    """The view from a DICOM ViewPosition or an owner's word for it."""
    stated = text.strip().upper()
    word = VIEWS.get(stated, stated)
    views: dict[str, View] = {"AP": "AP", "PA": "PA"}
    if word[:2] in views:
        return views[word[:2]]
    if word == "L" or word in LATERAL_WORDS:
        return "lateral"
    return "other" if word else ""


def table_in(folder: Path, *names: str) -> Path:
    """The first of the tables `names` that exists in `folder`.

    Raises:
        DataError: none exists; the message names what was found.
    """
    found = optional_table(folder, *names)
    if found is None:
        there = sorted(p.name for p in folder.glob("*.csv*")) if folder.is_dir() else []
        raise DataError(
            f"{folder}: found {', '.join(there[:5]) or 'no table'}, wanted {' or '.join(names)}. "
            "Give the folder that holds the tables as their owner distributes them."
        )
    return found


def optional_table(folder: Path, *names: str) -> Path | None:
    """Like `table_in`, but `None` if there is none."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def rows_of(table: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV (also `.gz`) as dicts of stripped text.

    Args:
        table: UTF-8, with or without a byte order mark.
        wanted: required columns; alternatives are separated by `|`.

    Raises:
        DataError: it can't be read, lacks a required column, names one twice, or has a row with
            more values than columns. Empty values at the end of a row do not count, and missing
            ones are empty, as spreadsheets leave them out.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    line = 1
    try:
        with _opened(table) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(text, restval="", strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(table, header, wanted)
            for row in reader:
                line = reader.line_num
                further = row.pop(None, ())
                if any(value.strip() for value in further):
                    raise _too_many_fields(table, line, header, len(further))
                yield {name: (value or "").strip() for name, value in row.items() if name}
    except (OSError, UnicodeDecodeError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(
            f"{table}: can't be read as CSV in UTF-8 after line {line} ({error}). "
            "Save the table again as CSV with commas, in UTF-8, or download it again."
        ) from error


def _check_header(table: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    """Require the wanted columns, and each name once: names match in any letter case."""
    missing = [name for name in wanted if not set(name.split("|")) & set(header)]
    if missing:
        raise DataError(
            f"{table}, line 1: found the columns {', '.join(header[:12])}; wanted also "
            f"{missing[0].replace('|', ' or ')}. Give the table as its owner made it."
        )
    uses = Counter(name.lower() for name in header if name)
    twice = [name for name, count in uses.items() if count > 1]
    if twice:
        raise DataError(
            f"{table}, line 1: found the column {twice[0]!r} more than once (letter case does not "
            "count); wanted each once. Rename or remove one."
        )


def _too_many_fields(table: Path, line: int, header: Sequence[str], further: int) -> DataError:
    way = "Put quotes around values with commas, and write decimals with a point: 0.93, not 0,93."
    if len(header) == 1 and ";" in header[0]:
        way = "The columns seem to be separated by semicolons: save the table with commas."
    return DataError(
        f"{table}, line {line}: found {len(header) + further} fields, wanted {len(header)} as in "
        f"the header. {way}"
    )


def _opened(table: Path) -> IO[bytes]:
    stream = open_regular(table)
    if table.suffix != ".gz":
        return stream
    with stream:
        return io.BytesIO(_inflated(stream, table))


def _inflated(stream: IO[bytes], table: Path) -> bytes:
    """The content of a gzip file, limited to the plausible size of a table."""
    with gzip.GzipFile(fileobj=stream) as inflating:
        content = inflating.read(_MAX_INFLATED + 1)
    if len(content) > _MAX_INFLATED:
        raise DataError(
            f"{table}: unpacks to more than {_MAX_INFLATED >> 20} MB, wanted a table of images. "
            "Unpack and check it."
        )
    return content


def images_below(folder: Path) -> dict[str, Path]:
    """Every image file below `folder` by its name; the first path wins among equal names."""
    return {name: paths[0] for name, paths in _all_below(folder).items()}


def _all_below(folder: Path) -> dict[str, list[Path]]:
    """The paths of all image files below `folder` by their name."""
    found: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_IMAGE_SUFFIXES):
                found.setdefault(name, []).append(Path(parent) / name)
    return found


def with_dicom_header(case: Record) -> Record:
    """The record with age, sex and view from its DICOM file; unchanged for unreadable headers.

    PatientAge (0010,1010), PatientSex (0010,0040), ViewPosition (0018,5101).
    """
    # The image reader reports odd headers, and refuses broken files.
    texts = dicom_texts(case.path, _TAGS) if case.path is not None else {}
    if not texts:
        return case
    age, sex, view = (texts[tag] for tag in _TAGS)
    return replace(case, age=age_in_years(age), sex=sex_of(sex), view=view_of(view))


def read_plain(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Any CSV table of images: the user states its columns and the words for both classes.

    Reads one CSV in the folder. Columns have common names or are given by `--columns`; the words
    for the classes are given by `--normal` and `--pneumonia`.

    Every row, in order.
    """
    table = _table(folder, config.table)
    names = _columns(table, config.columns)
    words = _words(config)
    images = _all_below(folder)
    for number, row in enumerate(rows_of(table, [names[what] for what in _NEEDED]), 1):
        values = {what: row.get(column, "") for what, column in names.items()}
        word = values["label"].lower()
        label, why = (words[word], "") if word in words else other_finding(config.others)
        if not word:
            label, why = None, NO_LABEL
        stated = values.get("split", "")
        split = parse_split(stated)
        if stated and split is None and config.splits == "keep":
            # Without a split the image could be trained on, even if it is held out.
            raise DataError(
                f"{table}, row {number}: found the split {stated!r} in the column "
                f"{names['split']!r}; wanted one of {split_words()}, or nothing. Rename it, name "
                "another column by --columns split=COLUMN, or leave out --splits keep."
            )
        yield Record(
            path=_image(table.parent, values["path"], images),
            label=label,
            patient=values.get("patient", ""),
            split=split,
            age=age_in_years(values.get("age", "")),
            sex=sex_of(values.get("sex", "")),
            view=view_of(values.get("view", "")),
            finding=values["label"],
            why=why,
            split_word="" if split else stated,
        )


def _words(config: AdoptConfig) -> dict[str, int]:
    """The words for both classes with their labels."""
    normal, pneumonia = _listed(config.normal), _listed(config.pneumonia)
    both = [word for word in pneumonia if word in normal]
    if both:
        raise UsageError(
            f"--pneumonia {config.pneumonia}, --normal {config.normal}: found {both[0]!r} in both, "
            "wanted each word for one class. Give both options, with the word in one of them."
        )
    return dict.fromkeys(normal, NORMAL) | dict.fromkeys(pneumonia, PNEUMONIA)


def _listed(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def _table(folder: Path, name: str) -> Path:
    if name:
        return table_in(folder, name)
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if len(tables) == 1:
        return tables[0]
    shown = ", ".join(table.name for table in tables[:5]) or "none"
    raise DataError(f"{folder}: found the tables {shown}; wanted one CSV. Name it: --table FILE")


def _columns(table: Path, given: str) -> dict[str, str]:
    """The table's own column names by their meaning."""
    header = next(rows_of(table, ()), None)
    if header is None:
        raise DataError(f"{table}: found no row below the header; wanted one per image.")
    by_lower = {name.lower(): name for name in header}
    found = {
        what: by_lower[usual[0]]
        for what, names in _USUAL.items()
        if (usual := [name for name in names if name in by_lower])
    }
    for part in _parts(given):
        what, _, column = part.partition("=")
        if what not in _USUAL or column.lower() not in by_lower:
            raise UsageError(
                f"--columns: found {part!r}; wanted WHAT=COLUMN with WHAT one of "
                f"{', '.join(_USUAL)} and COLUMN one of {', '.join(header)}"
            )
        found[what] = by_lower[column.lower()]
    missing = [what for what in _NEEDED if what not in found]
    if missing:
        raise UsageError(
            f"{table}: found the columns {', '.join(header)}, none of which is known as the "
            f"{missing[0]}. Give its name: --columns {missing[0]}=COLUMN"
        )
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _image(folder: Path, text: str, images: Mapping[str, Sequence[Path]]) -> Path | None:
    """The file at that path below the table's folder, else the only one that may be meant.

    Files of different patients may have one name, so a name alone does not outweigh its folders:
    the path found must end with the stated one. An absolute path is of another machine, and must
    end with the path found, below the table's folder.
    """
    if not text:
        return None
    path, stated = folder / text, Path(text).parts
    absolute = Path(text).is_absolute()
    if ".." not in stated and not absolute and path.is_file():
        return path
    meant = []
    for each in images.get(Path(text).name, ()):
        whole, part = (stated, each.relative_to(folder).parts) if absolute else (each.parts, stated)
        if whole[-len(part) :] == part:
            meant.append(each)
    return meant[0] if len(meant) == 1 else None


PLAIN = Source(
    name="csv",
    title="A table of your own",
    paper="",
    layout="one CSV, images below the folder",
    labels="the words of --pneumonia → PNEUMONIA, those of --normal → NORMAL",
    read=read_plain,
    options=("table", "columns", "pneumonia", "normal"),
)
