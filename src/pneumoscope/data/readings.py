"""Join readings of radiologists with a system's scores by accession, study or image.

A table of readings has a column that names the case and a column `reading` (or `label`): NORMAL or
PNEUMONIA, 0 or 1, yes or no. A column `reader` distinguishes readers. A reading may be empty if the
reader could not decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

from pneumoscope.data.external.table import rows_of
from pneumoscope.data.scores import ScoreRow, parse_label
from pneumoscope.errors import DataError
from pneumoscope.storage import plain_cell

Key = Literal["accession", "study", "image"]

KEY_COLUMNS: Mapping[Key, tuple[str, ...]] = {
    "accession": ("accession", "accession_number"),
    "study": ("study", "study_uid"),
    "image": ("image", "sop_uid", "path", "file"),
}
"""Accepted column names for each key."""

_READING_COLUMNS = ("reading", "label")
_DATE_COLUMNS = ("study_date", "date", "received")


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
        readings: of all readers.
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
    reference = _majority(readings)
    named = replace(most, name=key, label=reference)
    return Case(key, named, len(rows), tuple(readings), reference, _week(most.values))


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
