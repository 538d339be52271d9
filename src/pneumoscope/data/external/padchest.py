"""PadChest: X-rays of one Spanish hospital, labelled from Spanish reports.

Reads `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (or `.csv.gz`: `ImageID`, `PatientID`,
`PatientBirth`, `PatientSex_DICOM`, `StudyDate_DICOM`, `Projection`, `MethodLabel`, `Labels`) and
the 16-bit PNG files in any folder below. The labels are lists of English words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from pneumoscope.config import AdoptConfig
from pneumoscope.data.external.table import (
    NO_LABEL,
    NORMAL,
    PNEUMONIA,
    Record,
    Source,
    age_in_years,
    images_below,
    other_finding,
    rows_of,
    sex_of,
    table_in,
    view_of,
)

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_TABLES = (
    _TABLE,
    f"{_TABLE}.gz",
    "PADCHEST_chest_x_ray_images_labels_160K.csv",
    "SJ_chest_x_ray_images_labels_160K.csv",
)
_COLUMNS = ("ImageID", "PatientID", "Projection", "Labels")
_PNEUMONIA = frozenset({"pneumonia", "atypical pneumonia"})
_UNUSABLE = frozenset({"suboptimal study", "exclude"})
_UNINFORMATIVE = frozenset({"", "unchanged"})
"""Words without information about the image."""

_METHODS = {"physician": "physicians", "rnn_model": "network on reports"}
_LONGEST_LABELS = 10_000


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every image, in the table's order."""
    images = images_below(folder)
    for row in rows_of(table_in(folder, *_TABLES), _COLUMNS):
        findings = _findings(row["Labels"])
        label, why = _label(findings, config)
        yield Record(
            path=images.get(row["ImageID"]),
            label=label,
            patient=row["PatientID"],
            age=_age(row),
            sex=sex_of(row.get("PatientSex_DICOM", "")),
            view=view_of(row["Projection"]),
            finding="|".join(findings),
            labelled_by=_METHODS.get(row.get("MethodLabel", "").lower(), ""),
            why=why,
        )


def _findings(text: str) -> tuple[str, ...]:
    """The words of a list such as `['pneumonia', 'infiltrates']`, sorted; empty if not a list."""
    if len(text) > _LONGEST_LABELS:
        return ()
    try:
        words = ast.literal_eval(text) if text.startswith("[") else ()
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    return tuple(sorted({str(word).strip().lower() for word in words} - _UNINFORMATIVE))


def _label(findings: tuple[str, ...], config: AdoptConfig) -> tuple[int | None, str]:
    found = set(findings)
    if not found:
        return None, NO_LABEL
    if found & _UNUSABLE:
        return None, "image marked unusable by its owner"
    if found & _PNEUMONIA:
        return PNEUMONIA, ""
    return (NORMAL, "") if found == {"normal"} else other_finding(config.others)


def _age(row: Mapping[str, str]) -> float | None:
    """Year of the study minus year of birth: up to a year too old."""
    try:
        years = int(row.get("StudyDate_DICOM", "")[:4]) - float(row.get("PatientBirth", ""))
    except ValueError:
        return None
    return age_in_years(f"{years:.0f}")


SOURCE = Source(
    name="padchest",
    title="PadChest",
    paper="Bustos et al. 2020, doi:10.1016/j.media.2020.101797",
    layout=f"{_TABLE} (or .gz), *.png below the folder",
    labels="pneumonia or atypical pneumonia, with others too → PNEUMONIA, normal alone → NORMAL",
    read=read,
    notes=(
        "27 % of the reports were labelled by physicians, the others by a network trained on "
        "those: see the column labelled_by.",
    ),
)
