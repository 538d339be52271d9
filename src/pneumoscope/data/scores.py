"""Read a CSV of scores and reference labels of any system: a vendor's, a study's, this program's.

Columns: `label` and `score` (or `probability`), and optionally `patient`, `threshold`, `split`,
`status`, `reason`, a name of the row (`path`, `image`, `file`, `accession`, `study`, `id`), and
further columns for subgroups. Column names match in any letter case. No image is opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.data.external.table import rows_of
from pneumoscope.errors import DataError
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


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A table of scores.

    Attributes:
        path: the file.
        column: the column of the scores.
        rows: in the file's order.
        groups: further columns that define subgroups of patients.
    """

    path: Path
    column: str
    rows: tuple[ScoreRow, ...]
    groups: tuple[str, ...]


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
    column = _score_column(path, column.lower(), lines)
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
    return ScoreTable(path, column, rows, groups)


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
