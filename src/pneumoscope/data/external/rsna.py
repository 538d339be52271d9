"""RSNA Pneumonia Detection Challenge 2018: frontal X-rays of adults and children, read again.

Reads `stage_2_train_labels.csv` (`patientId,x,y,width,height,Target`, a row per box),
`stage_2_detailed_class_info.csv` (`patientId,class`), the DICOM files `<patientId>.dcm`, and, if
present, the mapping to NIH images (`img_id`, `subset_img_id`), the only source of patient ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pneumoscope.config import AdoptConfig
from pneumoscope.data.external.table import (
    NO_LABEL,
    NORMAL,
    PNEUMONIA,
    Record,
    Source,
    images_below,
    other_finding,
    rows_of,
    table_in,
)
from pneumoscope.errors import DataError

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"

_CLASSES = {"normal": NORMAL, "lung opacity": PNEUMONIA}
_OTHER = "no lung opacity / not normal"


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every image once, in the order of the class table."""
    opaque = {
        row["patientId"]: row["Target"] == "1"
        for row in rows_of(table_in(folder, "stage_2_train_labels.csv"), ("patientId", "Target"))
    }
    images = images_below(folder)
    patients = _patients(folder)
    seen: set[str] = set()
    table = table_in(folder, "stage_2_detailed_class_info.csv")
    for row in rows_of(table, ("patientId", "class")):
        name = row["patientId"]
        if name in seen:
            continue
        seen.add(name)
        label, why = _label(row["class"], opaque.get(name), config)
        yield Record(
            path=images.get(f"{name}.dcm"),
            label=label,
            patient=patients.get(name, name),
            finding=row["class"],
            labelled_by="radiologists",
            why=why,
        )


def _label(text: str, target: bool | None, config: AdoptConfig) -> tuple[int | None, str]:
    word = text.lower()
    if target is None:
        return None, NO_LABEL
    if (word == "lung opacity") != target:
        return None, "the two tables disagree"
    if word in _CLASSES:
        return _CLASSES[word], ""
    return other_finding(config.others) if word == _OTHER else (None, NO_LABEL)


def _patients(folder: Path) -> dict[str, str]:
    """The NIH patient of each image, from the mapping that the challenge published."""
    mapping = folder / MAPPING
    if not mapping.is_file():
        return {}
    try:
        items = json.loads(mapping.read_text(encoding="utf-8"))
        return {item["subset_img_id"]: item["img_id"].split("_")[0] for item in items}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{mapping}: can't be read ({error}); wanted a list of objects with img_id and "
            "subset_img_id. Download it again or move it away."
        ) from error


SOURCE = Source(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge",
    paper="Shih et al. 2019, doi:10.1148/ryai.2019180041",
    layout="stage_2_train_labels.csv, stage_2_detailed_class_info.csv, *.dcm below the folder",
    labels="Lung Opacity → PNEUMONIA, Normal → NORMAL, No Lung Opacity / Not Normal: other finding",
    read=read,
    headers=True,
    notes=(
        "Lung Opacity means an opacity that suggests pneumonia to radiologists, without clinical "
        "or laboratory data.",
        f"patientId names an image, not a person: put {MAPPING} into the folder, or intervals are "
        "too narrow.",
        "These are NIH ChestX-ray14 images: don't pool both data sets.",
    ),
)
