"""NIH ChestX-ray14: frontal X-rays of adults and children, labelled from reports by a program.

Reads `Data_Entry_2017.csv` (or its edition of 2020: `Image Index`, `Finding Labels`, `Patient ID`,
`Patient Age`, `Patient Gender` or `Patient Sex`, `View Position`), the PNG files in any folder
below, and, if present, `test_list.txt` and `train_val_list.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from pneumoscope.records import Split

_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender|Patient Sex",
    "View Position",
)


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every image, in the table's order."""
    images = images_below(folder)
    splits = _splits(folder)
    table = table_in(folder, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
    for row in rows_of(table, _COLUMNS):
        label, why = _label(row["Finding Labels"], config)
        yield Record(
            path=images.get(row["Image Index"]),
            label=label,
            patient=row["Patient ID"],
            split=splits.get(row["Image Index"]),
            age=age_in_years(row["Patient Age"]),
            sex=sex_of(row.get("Patient Gender") or row.get("Patient Sex", "")),
            view=view_of(row["View Position"]),
            finding=row["Finding Labels"],
            labelled_by="program on reports",
            why=why,
        )


def _label(text: str, config: AdoptConfig) -> tuple[int | None, str]:
    findings = {part.strip().lower() for part in text.split("|")} - {""}
    if not findings:
        return None, NO_LABEL
    if "pneumonia" in findings:
        return PNEUMONIA, ""
    return (NORMAL, "") if findings == {"no finding"} else other_finding(config.others)


def _splits(folder: Path) -> dict[str, Split]:
    lists: tuple[tuple[Split, str], ...] = (
        ("train", "train_val_list.txt"),
        ("test", "test_list.txt"),
    )
    found: dict[str, Split] = {}
    for split, name in lists:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").split()
            found |= dict.fromkeys(lines, split)
    return found


SOURCE = Source(
    name="nih",
    title="NIH ChestX-ray14",
    paper="Wang et al. 2017, doi:10.1109/CVPR.2017.369",
    layout="Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, *.png below the folder",
    labels="Pneumonia (alone or with others) → PNEUMONIA, No Finding alone → NORMAL",
    read=read,
    notes=(
        "Labels were mined from reports; many are not confirmed by a radiologist's reading "
        "(Oakden-Rayner 2020, doi:10.1016/j.acra.2019.10.006).",
    ),
)
