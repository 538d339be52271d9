"""CheXpert: X-rays of adults, labelled from reports by a program (train) or by readers (valid).

Reads `train.csv` and `valid.csv` (`Path`, `Sex`, `Age`, `Frontal/Lateral`, `AP/PA`, `No Finding`,
`Pneumonia` and others). Values: 1 present, 0 absent, -1 uncertain, empty if not mentioned.

Uncertain pneumonia is left out unless `--uncertain` gives it a label (U-Ignore, U-Ones, U-Zeros of
the paper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pneumoscope.config import AdoptConfig
from pneumoscope.data.external.table import (
    NO_LABEL,
    NORMAL,
    PNEUMONIA,
    UNCERTAIN,
    Record,
    Source,
    View,
    age_in_years,
    optional_table,
    other_finding,
    rows_of,
    sex_of,
    table_in,
    view_of,
)
from pneumoscope.records import Split

_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Pneumonia")
_TABLES: tuple[tuple[str, Split, str], ...] = (
    ("train.csv", "train", "program on reports"),
    ("valid.csv", "val", "radiologists"),
)
_UNCERTAIN = {"pneumonia": PNEUMONIA, "normal": NORMAL}


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every image of the available tables, in their order."""
    table_in(folder, *(name for name, _, _ in _TABLES))
    for name, split, labelled_by in _TABLES:
        table = optional_table(folder, name)
        for row in rows_of(table, _COLUMNS) if table else ():
            label, why = _label(row, config)
            yield Record(
                path=_image(folder, row["Path"]),
                label=label,
                patient=_patient(row["Path"]),
                split=split,
                age=age_in_years(row["Age"]),
                sex=sex_of(row["Sex"]),
                view=_view(row),
                finding=_findings(row),
                labelled_by=labelled_by,
                why=why,
            )


def _value(row: Mapping[str, str], column: str) -> float | None:
    try:
        return float(row.get(column, ""))
    except ValueError:
        return None


def _label(row: Mapping[str, str], config: AdoptConfig) -> tuple[int | None, str]:
    pneumonia = _value(row, "Pneumonia")
    if pneumonia == 1:
        return PNEUMONIA, ""
    if pneumonia == -1:
        label = _UNCERTAIN.get(config.uncertain)
        return label, "" if label is not None else UNCERTAIN
    if _value(row, "No Finding") == 1:
        return NORMAL, ""
    if not _findings(row):
        return None, NO_LABEL
    return other_finding(config.others)


def _findings(row: Mapping[str, str]) -> str:
    names = [name for name in row if name not in _COLUMNS[:5] and _value(row, name) == 1]
    if _value(row, "Pneumonia") == -1:
        names.append("Pneumonia uncertain")
    return "|".join(names)


def _view(row: Mapping[str, str]) -> View:
    return "lateral" if row["Frontal/Lateral"].lower() == "lateral" else view_of(row["AP/PA"])


def _image(folder: Path, text: str) -> Path | None:
    """The file; paths start with the original name of the owner's folder."""
    parts = PurePosixPath(text).parts
    if ".." in parts or PurePosixPath(text).is_absolute():
        return None
    candidates = (folder.joinpath(*parts[skip:]) for skip in range(min(2, len(parts))))
    return next((path for path in candidates if path.is_file()), None)


def _patient(text: str) -> str:
    return next((p for p in PurePosixPath(text).parts if p.startswith("patient")), "")


SOURCE = Source(
    name="chexpert",
    title="CheXpert",
    paper="Irvin et al. 2019, arXiv:1901.07031",
    layout="train.csv, valid.csv, train/ and valid/ with a folder per patient",
    labels="Pneumonia 1 → PNEUMONIA, No Finding 1 → NORMAL, Pneumonia -1: as --uncertain says",
    read=read,
    notes=("Ages over 90 are given as 90.",),
)
