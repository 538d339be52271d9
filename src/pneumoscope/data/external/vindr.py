"""VinDr-PCXR: X-rays of children under ten years, each read by a radiologist.

Reads `image_labels_train.csv` and `image_labels_test.csv` (`image_id`, `rad_ID` and a 0/1 column
per diagnosis) and the DICOM files `<image_id>.dicom`. If several readers read an image, the
majority decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pneumoscope.config import AdoptConfig
from pneumoscope.data.external.table import (
    NO_LABEL,
    NORMAL,
    PNEUMONIA,
    Record,
    Source,
    images_below,
    optional_table,
    other_finding,
    rows_of,
    table_in,
)
from pneumoscope.records import Split

_TABLES: tuple[tuple[str, Split], ...] = (
    ("image_labels_train.csv", "train"),
    ("image_labels_test.csv", "test"),
)
_NAMES = ("image_id", "rad_id", "rad_ID")
_NORMAL = "no finding"
_PNEUMONIA = frozenset({"pneumonia", "brocho-pneumonia", "broncho-pneumonia", "pleuro-pneumonia"})
"""`Brocho-pneumonia` is the owner's spelling."""


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every image once, in the order of the tables."""
    table_in(folder, *(name for name, _ in _TABLES))
    images = images_below(folder)
    for name, split in _TABLES:
        table = optional_table(folder, name)
        votes: dict[str, list[frozenset[str]]] = {}
        for row in rows_of(table, ("image_id", "No finding", "Pneumonia")) if table else ():
            votes.setdefault(row["image_id"], []).append(_findings(row))
        for image, readings in votes.items():
            label, why = _majority([_label(found, config) for found in readings])
            yield Record(
                path=images.get(f"{image}.dicom") or images.get(f"{image}.dcm"),
                label=label,
                split=split,
                finding="|".join(sorted(frozenset().union(*readings))),
                labelled_by="radiologist" if len(readings) == 1 else "radiologists",
                why=why,
            )


def _findings(row: Mapping[str, str]) -> frozenset[str]:
    """The diagnoses whose column is 1."""
    return frozenset(
        name.lower() for name, value in row.items() if name not in _NAMES and value in ("1", "1.0")
    )


def _label(findings: frozenset[str], config: AdoptConfig) -> tuple[int | None, str]:
    if not findings:
        return None, NO_LABEL
    if findings & _PNEUMONIA:
        return PNEUMONIA, ""
    return (NORMAL, "") if findings == {_NORMAL} else other_finding(config.others)


def _majority(labels: list[tuple[int | None, str]]) -> tuple[int | None, str]:
    ranked = Counter(labels).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        return None, "readers disagree"
    return ranked[0][0]


SOURCE = Source(
    name="vindr-pcxr",
    title="VinDr-PCXR",
    paper="Pham et al. 2023, doi:10.1038/s41597-023-02102-5",
    layout="image_labels_train.csv, image_labels_test.csv, *.dicom below the folder",
    labels="Pneumonia, Brocho-pneumonia, Pleuro-pneumonia → PNEUMONIA, No finding alone → NORMAL",
    read=read,
    headers=True,
    notes=(
        "The owner names no patients: each image counts as a separate patient.",
        "Bronchitis and bronchiolitis count as other findings.",
    ),
)
