"""Tables of scores of any system and of radiologists' readings, and the join of both.

Scores (`read_scores`; a vendor's, a study's, this program's) have the columns `label` and `score`
(or `probability`), and optionally `patient`, `threshold`, `split`, `status`, `reason`, a name of
the row (`path`, `image`, `file`, `accession`, `study`, `id`), and further columns for subgroups.

Readings (`read_readings`) have a column that names the case and a column `reading` (or `label`):
NORMAL or PNEUMONIA, 0 or 1, yes or no. A column `reader` distinguishes readers. A reading may be
empty if the reader could not decide. `join` brings both together by accession, study or image. A
reader has one vote per case, however many rows; each row without a reader is a vote of its own.

Column names match in any letter case. No image is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Literal

from pneumoscope.data.public_tables import rows_of
from pneumoscope.errors import DataError
from pneumoscope.records import UNCERTAIN
from pneumoscope.storage import plain_cell

SCORE_COLUMNS = ("score", "probability")
"""The first of these columns that is not empty is the score."""

NAME_COLUMNS = ("path", "image", "file", "accession", "study", "id")
"""The first of these columns names the row."""

PATIENT_COLUMNS = ("patient", "patient_id")

_LABELS = {
    **dict.fromkeys(("normal", "0", "0.0", "negative", "no", "false", "absent"), 0),
    **dict.fromkeys(("pneumonia", "1", "1.0", "positive", "yes", "true", "present"), 1),
}
_NOT_GROUPS = frozenset(
    (
        *(*SCORE_COLUMNS, *NAME_COLUMNS, *PATIENT_COLUMNS),
        *("label", "threshold", "split", "status", "reason", "prediction", "input_score"),
        *("warnings", "detail", "study_uid", "series_uid", "sop_uid", "study_date", "received"),
        *("week", "images", "model", "software"),
    )
)
"""Columns that do not define a subgroup of patients."""

_READING_COLUMNS = ("reading", "label")
_DATE_COLUMNS = ("study_date", "date", "received")


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the table.

    Attributes:
        name: the row's name in the table, or `row N`.
        label: 0 for NORMAL, 1 for PNEUMONIA, `None` for an empty cell.
        score: higher means more likely pneumonia; `None` if there is none.
        patient: `""` if the table names none.
        threshold: scores from here upwards mean pneumonia; `None` if the table states none.
        split: as stated in the table.
        reason: why there is no score, as stated in the table; `""` if it is not stated.
        values: every column of the line by its name in lower case.
    """

    name: str
    label: int | None
    score: float | None
    patient: str = ""
    threshold: float | None = None
    split: str = ""
    reason: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def uncertain(self) -> bool:
        """Whether the system abstained: it has a score, and its column `prediction` says so."""
        stated = self.values.get("prediction", "").strip().lower()
        return self.score is not None and stated == UNCERTAIN


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A table of scores.

    Attributes:
        path: the file.
        column: the column of the scores.
        rows: in the file's order.
        groups: further columns that define subgroups of patients.
        rival: another column that could hold the scores, where none was asked for.
    """

    path: Path
    column: str
    rows: tuple[ScoreRow, ...]
    groups: tuple[str, ...]
    rival: str = ""


def parse_label(text: str) -> int | None:
    """Convert a label in words or digits to 0 or 1; `None` for an empty one.

    Raises:
        KeyError: the label is unknown.
    """
    return _LABELS[text.strip().lower()] if text.strip() else None


def read_scores(
    path: Path, column: str = "", *, needs_labels: bool = True, name_by: str = ""
) -> ScoreTable:
    """Read a table of scores.

    Args:
        path: CSV in UTF-8, with commas.
        column: the column of the scores; `""`: the first of `SCORE_COLUMNS` that is not empty.
        needs_labels: whether a column `label` is required.
        name_by: column that names the rows; `""`: the first of `NAME_COLUMNS`.

    Raises:
        DataError: it can't be read, lacks a column, or has an invalid value; names the line.
    """
    lines = [
        {name.lower(): plain_cell(value) for name, value in row.items()}
        for row in rows_of(path, ())
        if any(row.values())
    ]
    if not lines:
        raise DataError(f"{path}: found no row, wanted a header and a row per score.")
    there = tuple(lines[0])
    asked, column = column, _score_column(path, column.lower(), lines)
    if needs_labels and "label" not in there:
        raise _lacking(path, there, "label")
    if name_by and name_by not in there:
        raise _lacking(path, there, name_by)
    names = (name_by,) if name_by else NAME_COLUMNS
    rows = tuple(_row(path, k, line, column, names) for k, line in enumerate(lines))
    groups = tuple(
        name
        for name in there
        if name not in _NOT_GROUPS and name != column and not name.endswith("_threshold")
    )
    others = (name for name in SCORE_COLUMNS if name != column and not asked)
    rival = next((name for name in others if any(line.get(name) for line in lines)), "")
    return ScoreTable(path, column, rows, groups, rival)


def stated_threshold(table: ScoreTable) -> float | None:
    """The threshold in the table, `None` if it states none.

    Raises:
        DataError: the table states several.
    """
    found = sorted({row.threshold for row in table.rows if row.threshold is not None})
    if len(found) > 1:
        raise DataError(
            f"{table.path}: the column 'threshold' holds {len(found)} values, from {found[0]:g} to "
            f"{found[-1]:g}; wanted one. Give --threshold, or a table per threshold."
        )
    return found[0] if found else None


def _score_column(path: Path, column: str, lines: Sequence[Mapping[str, str]]) -> str:
    there = tuple(lines[0])
    if column:
        if column not in there:
            raise _lacking(path, there, column)
        return column
    for name in SCORE_COLUMNS:
        if any(line.get(name) for line in lines):
            return name
    raise _lacking(path, there, "score")


def _lacking(path: Path, there: Sequence[str], name: str) -> DataError:
    shown = ", ".join(map(repr, there[:12]))
    way = "The columns seem to be separated by semicolons: save the table with commas."
    if len(there) > 1 or ";" not in shown:
        way = f"Name the column {name!r} in the first line, with a value in each row."
    return DataError(f"{path}, line 1: found the columns {shown}; wanted also {name!r}. {way}")


def _row(
    path: Path, index: int, line: Mapping[str, str], column: str, names: Sequence[str]
) -> ScoreRow:
    where = f"{path}, row {index + 1}"
    try:
        label = parse_label(line.get("label", ""))
    except KeyError:
        raise DataError(
            f"{where}: found the label {line['label']!r}; wanted NORMAL or PNEUMONIA, 0 or 1. "
            "Correct it, or leave it empty if it is not known."
        ) from None
    score = _number(where, column, line.get(column, ""))
    # A row that this program refused keeps its place; other values in that row are not scores.
    if line.get("status", "ok").lower() not in ("", "ok"):
        score = None
    name = next((line[one] for one in names if line.get(one)), f"row {index + 1}")
    patient = next((line[one] for one in PATIENT_COLUMNS if line.get(one)), "")
    return ScoreRow(
        name,
        label,
        score,
        patient,
        _number(where, "threshold", line.get(f"{column}_threshold") or line.get("threshold", "")),
        line.get("split", ""),
        line.get("reason", ""),
        line,
    )


def _number(where: str, column: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text if "." in text else text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{where}: found {text!r} in the column {column!r}, wanted a number. Correct it, or "
            "leave it empty if there is none."
        )
    return value


Key = Literal["accession", "study", "image"]

KEY_COLUMNS: Mapping[Key, tuple[str, ...]] = {
    "accession": ("accession", "accession_number"),
    "study": ("study", "study_uid"),
    "image": ("image", "sop_uid", "path", "file"),
}
"""Accepted column names for each key."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reader's reading of one case; `label` is `None` if the reader could not decide."""

    key: str
    label: int | None
    reader: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A case with its score and its readings.

    Attributes:
        key: the case's name in both tables.
        score: the row that represents it: the image with the highest score.
        images: number of its images in the scores.
        readings: one per reader, undecided where a reader's rows differ; all without a reader.
        reference: majority of the readings; `None` for a tie or if no reader could decide.
        week: Monday of its week; `None` without a date.
    """

    key: str
    score: ScoreRow
    images: int
    readings: tuple[Reading, ...]
    reference: int | None
    week: date | None


@dataclass(frozen=True, slots=True)
class Joined:
    """Scores joined with readings.

    Attributes:
        cases: cases with a score row, in the order of the scores, including those without reading.
        unread: keys of the cases without a reading.
        divided: keys of the cases whose readers disagree or could not decide.
        unscored: keys that have readings but no scores.
        keyless: number of score rows that name no case.
    """

    cases: tuple[Case, ...]
    unread: tuple[str, ...]
    divided: tuple[str, ...]
    unscored: tuple[str, ...]
    keyless: int


def read_readings(path: Path, by: Key) -> tuple[Reading, ...]:
    """Read a table of readings.

    Raises:
        DataError: it can't be read, lacks a column, or contains an invalid reading.
    """
    lines = [
        {name.lower(): plain_cell(value) for name, value in row.items()}
        for row in rows_of(path, ())
    ]
    if not lines:
        raise DataError(f"{path}: found no row, wanted a header and a row per reading.")
    key = _column(path, lines[0], KEY_COLUMNS[by])
    column = _column(path, lines[0], _READING_COLUMNS)
    found = []
    for number, line in enumerate(lines, 1):
        if not line.get(key):
            continue
        try:
            label = parse_label(line.get(column, ""))
        except KeyError:
            raise DataError(
                f"{path}, row {number}: found the reading {line[column]!r}; wanted NORMAL or "
                "PNEUMONIA, 0 or 1, or nothing if the reader could not decide. Correct it."
            ) from None
        found.append(Reading(line[key], label, line.get("reader", "")))
    if not found:
        raise DataError(f"{path}: the column {key!r} is empty in every row. Fill it in.")
    return tuple(found)


def score_key(path: Path, rows: Sequence[ScoreRow], by: Key) -> str:
    """The column of the scores that holds the key.

    Raises:
        DataError: there is none.
    """
    return _column(path, rows[0].values, KEY_COLUMNS[by])


def join(rows: Iterable[ScoreRow], key_column: str, readings: Iterable[Reading]) -> Joined:
    """Join scores and readings; the score of a case is the highest score of its images.

    Args:
        rows: of the scores.
        key_column: their column that names the case.
        readings: of all readers.
    """
    by_key: dict[str, list[Reading]] = {}
    for reading in readings:
        by_key.setdefault(reading.key, []).append(reading)
    images: dict[str, list[ScoreRow]] = {}
    keyless = 0
    for row in rows:
        key = row.values.get(key_column, "")
        if key:
            images.setdefault(key, []).append(row)
        else:
            keyless += 1
    cases = tuple(_case(key, found, by_key.get(key, [])) for key, found in images.items())
    return Joined(
        cases,
        unread=tuple(case.key for case in cases if not case.readings),
        divided=tuple(case.key for case in cases if case.readings and case.reference is None),
        unscored=tuple(key for key in by_key if key not in images),
        keyless=keyless,
    )


def _case(key: str, rows: Sequence[ScoreRow], readings: Sequence[Reading]) -> Case:
    scored = [row for row in rows if row.score is not None]
    most = max(scored, key=lambda row: row.score or 0.0) if scored else rows[0]
    readings = _one_per_reader(readings)
    reference = _majority(readings)
    named = replace(most, name=key, label=reference)
    return Case(key, named, len(rows), readings, reference, _week(most.values))


def _one_per_reader(readings: Sequence[Reading]) -> tuple[Reading, ...]:
    found: dict[str | int, Reading] = {}
    for place, reading in enumerate(readings):
        reader = reading.reader or place
        if found.setdefault(reader, reading).label != reading.label:
            found[reader] = replace(reading, label=None)
    return tuple(found.values())


def _majority(readings: Sequence[Reading]) -> int | None:
    decided = [reading.label for reading in readings if reading.label is not None]
    positives = sum(decided)
    if not decided or 2 * positives == len(decided):
        return None
    return int(2 * positives > len(decided))


def _week(values: Mapping[str, str]) -> date | None:
    """The Monday of the week of a row's date, written with or without hyphens."""
    for name in _DATE_COLUMNS:
        text = values.get(name, "")[:10].replace("-", "")[:8]
        try:
            found = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
        except ValueError:
            continue
        return date.fromordinal(found.toordinal() - found.weekday())
    return None


def _column(path: Path, row: Mapping[str, str], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise DataError(
        f"{path}, line 1: found the columns {', '.join(list(row)[:12])}; wanted also "
        f"{' or '.join(names)}. Rename the column, or join --by another."
    )
