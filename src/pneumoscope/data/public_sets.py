"""The public data sets that `data adopt` converts, in their owners' layouts, by name (`SOURCES`).

Each has a function that reads the owner's tables and gives each image a label, or the reason why it
has none, and a `Source` that describes the data set and what is known to be wrong with it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pneumoscope.config import AdoptConfig
from pneumoscope.data.public_tables import (
    NO_LABEL,
    NORMAL,
    PLAIN,
    PNEUMONIA,
    UNCERTAIN,
    Record,
    Source,
    View,
    age_in_years,
    images_below,
    optional_table,
    other_finding,
    rows_of,
    sex_of,
    table_in,
    view_of,
)
from pneumoscope.errors import DataError, InputError
from pneumoscope.reading import read_json
from pneumoscope.records import Split

RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"

_RSNA_CLASSES = {"normal": NORMAL, "lung opacity": PNEUMONIA}
_RSNA_OTHER = "no lung opacity / not normal"

_NIH_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "Patient Gender|Patient Sex",
    "View Position",
)
_CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Pneumonia")
_CHEXPERT_TABLES: tuple[tuple[str, Split, str], ...] = (
    ("train.csv", "train", "program on reports"),
    ("valid.csv", "val", "radiologists"),
)
_CHEXPERT_UNCERTAIN = {"pneumonia": PNEUMONIA, "normal": NORMAL}
_VINDR_TABLES: tuple[tuple[str, Split], ...] = (
    ("image_labels_train.csv", "train"),
    ("image_labels_test.csv", "test"),
)
_VINDR_NAMES = ("image_id", "rad_id", "rad_ID")
_VINDR_NORMAL = "no finding"
_VINDR_PNEUMONIA = frozenset(
    {"pneumonia", "brocho-pneumonia", "broncho-pneumonia", "pleuro-pneumonia"}
)
"""`Brocho-pneumonia` is the owner's spelling."""

_PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_PADCHEST_TABLES = (
    _PADCHEST_TABLE,
    f"{_PADCHEST_TABLE}.gz",
    "PADCHEST_chest_x_ray_images_labels_160K.csv",
    "SJ_chest_x_ray_images_labels_160K.csv",
)
_PADCHEST_COLUMNS = ("ImageID", "PatientID", "Projection", "Labels")
_PADCHEST_PNEUMONIA = frozenset({"pneumonia", "atypical pneumonia"})
_PADCHEST_UNUSABLE = frozenset({"suboptimal study", "exclude"})
_PADCHEST_UNINFORMATIVE = frozenset({"", "unchanged"})
"""Words without information about the image."""

_PADCHEST_METHODS = {"physician": "physicians", "rnn_model": "network on reports"}
_PADCHEST_LONGEST_LABELS = 10_000


def read_rsna(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """RSNA Pneumonia Detection Challenge 2018: frontal X-rays of adults and children, read again.

    Reads `stage_2_train_labels.csv` (`patientId,x,y,width,height,Target`, a row per box),
    `stage_2_detailed_class_info.csv` (`patientId,class`), the DICOM files `<patientId>.dcm`, and,
    if present, the mapping to NIH images (`img_id`, `subset_img_id`), the only source of patient
    ids.

    Every image once, in the order of the class table.
    """
    opaque = {
        row["patientId"]: row["Target"] == "1"
        for row in rows_of(table_in(folder, "stage_2_train_labels.csv"), ("patientId", "Target"))
    }
    images = images_below(folder)
    patients = _rsna_patients(folder)
    seen: set[str] = set()
    table = table_in(folder, "stage_2_detailed_class_info.csv")
    for row in rows_of(table, ("patientId", "class")):
        name = row["patientId"]
        if name in seen:
            continue
        seen.add(name)
        label, why = _rsna_label(row["class"], opaque.get(name), config)
        yield Record(
            path=images.get(f"{name}.dcm"),
            label=label,
            patient=patients.get(name, name),
            finding=row["class"],
            labelled_by="radiologists",
            why=why,
        )


def _rsna_label(text: str, target: bool | None, config: AdoptConfig) -> tuple[int | None, str]:
    word = text.lower()
    if target is None:
        return None, NO_LABEL
    if (word == "lung opacity") != target:
        return None, "the two tables disagree"
    if word in _RSNA_CLASSES:
        return _RSNA_CLASSES[word], ""
    return other_finding(config.others) if word == _RSNA_OTHER else (None, NO_LABEL)


def _rsna_patients(folder: Path) -> dict[str, str]:
    """The NIH patient of each image, from the mapping that the challenge published."""
    mapping = folder / RSNA_MAPPING
    if not mapping.is_file():
        return {}
    try:
        items = read_json(mapping)
        return {item["subset_img_id"]: item["img_id"].split("_")[0] for item in items}
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{mapping}: can't be read ({error}); wanted a list of objects with img_id and "
            "subset_img_id. Download it again or move it away."
        ) from error


RSNA = Source(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge",
    paper="Shih et al. 2019, doi:10.1148/ryai.2019180041",
    layout="stage_2_train_labels.csv, stage_2_detailed_class_info.csv, *.dcm below the folder",
    labels="Lung Opacity → PNEUMONIA, Normal → NORMAL, No Lung Opacity / Not Normal: other finding",
    read=read_rsna,
    headers=True,
    notes=(
        "Lung Opacity means an opacity that suggests pneumonia to radiologists, without clinical "
        "or laboratory data.",
        f"patientId names an image, not a person: put {RSNA_MAPPING} into the folder, or intervals "
        "are too narrow.",
        "These are NIH ChestX-ray14 images: don't pool both data sets.",
    ),
)


def read_nih(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """NIH ChestX-ray14: frontal X-rays of adults and children, labelled from reports by a program.

    Reads `Data_Entry_2017.csv` (or its edition of 2020: `Image Index`, `Finding Labels`, `Patient
    ID`, `Patient Age`, `Patient Gender` or `Patient Sex`, `View Position`), the PNG files in any
    folder below, and, if present, `test_list.txt` and `train_val_list.txt`.

    Every image, in the table's order.
    """
    images = images_below(folder)
    splits = _nih_splits(folder)
    table = table_in(folder, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
    for row in rows_of(table, _NIH_COLUMNS):
        label, why = _nih_label(row["Finding Labels"], config)
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


def _nih_label(text: str, config: AdoptConfig) -> tuple[int | None, str]:
    findings = {part.strip().lower() for part in text.split("|")} - {""}
    if not findings:
        return None, NO_LABEL
    if "pneumonia" in findings:
        return PNEUMONIA, ""
    return (NORMAL, "") if findings == {"no finding"} else other_finding(config.others)


def _nih_splits(folder: Path) -> dict[str, Split]:
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


NIH = Source(
    name="nih",
    title="NIH ChestX-ray14",
    paper="Wang et al. 2017, doi:10.1109/CVPR.2017.369",
    layout="Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, *.png below the folder",
    labels="Pneumonia (alone or with others) → PNEUMONIA, No Finding alone → NORMAL",
    read=read_nih,
    notes=(
        "Labels were mined from reports; many are not confirmed by a radiologist's reading "
        "(Oakden-Rayner 2020, doi:10.1016/j.acra.2019.10.006).",
    ),
)


def read_chexpert(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """CheXpert: X-rays of adults, labelled from reports by a program (train) or by readers (valid).

    Reads `train.csv` and `valid.csv` (`Path`, `Sex`, `Age`, `Frontal/Lateral`, `AP/PA`, `No
    Finding`, `Pneumonia` and others). Values: 1 present, 0 absent, -1 uncertain, empty if not
    mentioned.

    Uncertain pneumonia is left out unless `--uncertain` gives it a label (U-Ignore, U-Ones, U-Zeros
    of the paper).

    Every image of the available tables, in their order.
    """
    table_in(folder, *(name for name, _, _ in _CHEXPERT_TABLES))
    for name, split, labelled_by in _CHEXPERT_TABLES:
        table = optional_table(folder, name)
        for row in rows_of(table, _CHEXPERT_COLUMNS) if table else ():
            label, why = _chexpert_label(row, config)
            yield Record(
                path=_chexpert_image(folder, row["Path"]),
                label=label,
                patient=_chexpert_patient(row["Path"]),
                split=split,
                age=age_in_years(row["Age"]),
                sex=sex_of(row["Sex"]),
                view=_chexpert_view(row),
                finding=_chexpert_findings(row),
                labelled_by=labelled_by,
                why=why,
            )


def _chexpert_value(row: Mapping[str, str], column: str) -> float | None:
    try:
        return float(row.get(column, ""))
    except ValueError:
        return None


def _chexpert_label(row: Mapping[str, str], config: AdoptConfig) -> tuple[int | None, str]:
    pneumonia = _chexpert_value(row, "Pneumonia")
    if pneumonia == 1:
        return PNEUMONIA, ""
    if pneumonia == -1:
        label = _CHEXPERT_UNCERTAIN.get(config.uncertain)
        return label, "" if label is not None else UNCERTAIN
    if _chexpert_value(row, "No Finding") == 1:
        return NORMAL, ""
    if not _chexpert_findings(row):
        return None, NO_LABEL
    return other_finding(config.others)


def _chexpert_findings(row: Mapping[str, str]) -> str:
    names = [
        name
        for name in row
        if name not in _CHEXPERT_COLUMNS[:5] and _chexpert_value(row, name) == 1
    ]
    if _chexpert_value(row, "Pneumonia") == -1:
        names.append("Pneumonia uncertain")
    return "|".join(names)


def _chexpert_view(row: Mapping[str, str]) -> View:
    return "lateral" if row["Frontal/Lateral"].lower() == "lateral" else view_of(row["AP/PA"])


def _chexpert_image(folder: Path, text: str) -> Path | None:
    """The file; paths start with the original name of the owner's folder."""
    parts = PurePosixPath(text).parts
    if ".." in parts or PurePosixPath(text).is_absolute():
        return None
    candidates = (folder.joinpath(*parts[skip:]) for skip in range(min(2, len(parts))))
    return next((path for path in candidates if path.is_file()), None)


def _chexpert_patient(text: str) -> str:
    return next((p for p in PurePosixPath(text).parts if p.startswith("patient")), "")


CHEXPERT = Source(
    name="chexpert",
    title="CheXpert",
    paper="Irvin et al. 2019, arXiv:1901.07031",
    layout="train.csv, valid.csv, train/ and valid/ with a folder per patient",
    labels="Pneumonia 1 → PNEUMONIA, No Finding 1 → NORMAL, Pneumonia -1: as --uncertain says",
    read=read_chexpert,
    options=("uncertain",),
    notes=("Ages over 90 are given as 90.",),
)


def read_vindr(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """VinDr-PCXR: X-rays of children under ten years, each read by a radiologist.

    Reads `image_labels_train.csv` and `image_labels_test.csv` (`image_id`, `rad_ID` and a 0/1
    column per diagnosis) and the DICOM files `<image_id>.dicom`. If several readers read an image,
    the majority decides.

    Every image once, in the order of the tables.
    """
    table_in(folder, *(name for name, _ in _VINDR_TABLES))
    images = images_below(folder)
    for name, split in _VINDR_TABLES:
        table = optional_table(folder, name)
        votes: dict[str, list[frozenset[str]]] = {}
        for row in rows_of(table, ("image_id", "No finding", "Pneumonia")) if table else ():
            votes.setdefault(row["image_id"], []).append(_vindr_findings(row))
        for image, readings in votes.items():
            label, why = _vindr_majority([_vindr_label(found, config) for found in readings])
            yield Record(
                path=images.get(f"{image}.dicom") or images.get(f"{image}.dcm"),
                label=label,
                split=split,
                finding="|".join(sorted(frozenset().union(*readings))),
                labelled_by="radiologist" if len(readings) == 1 else "radiologists",
                why=why,
            )


def _vindr_findings(row: Mapping[str, str]) -> frozenset[str]:
    """The diagnoses whose column is 1."""
    return frozenset(
        name.lower()
        for name, value in row.items()
        if name not in _VINDR_NAMES and value in ("1", "1.0")
    )


def _vindr_label(findings: frozenset[str], config: AdoptConfig) -> tuple[int | None, str]:
    if not findings:
        return None, NO_LABEL
    if findings & _VINDR_PNEUMONIA:
        return PNEUMONIA, ""
    return (NORMAL, "") if findings == {_VINDR_NORMAL} else other_finding(config.others)


def _vindr_majority(labels: list[tuple[int | None, str]]) -> tuple[int | None, str]:
    ranked = Counter(labels).most_common(2)
    if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
        return None, "readers disagree"
    return ranked[0][0]


VINDR = Source(
    name="vindr-pcxr",
    title="VinDr-PCXR",
    paper="Pham et al. 2023, doi:10.1038/s41597-023-02102-5",
    layout="image_labels_train.csv, image_labels_test.csv, *.dicom below the folder",
    labels="Pneumonia, Brocho-pneumonia, Pleuro-pneumonia → PNEUMONIA, No finding alone → NORMAL",
    read=read_vindr,
    headers=True,
    notes=(
        "The owner names no patients: each image counts as a separate patient.",
        "Bronchitis and bronchiolitis count as other findings.",
    ),
)


def read_padchest(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """PadChest: X-rays of one Spanish hospital, labelled from Spanish reports.

    Reads `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (or `.csv.gz`: `ImageID`,
    `PatientID`, `PatientBirth`, `PatientSex_DICOM`, `StudyDate_DICOM`, `Projection`, `MethodLabel`,
    `Labels`) and the 16-bit PNG files in any folder below. The labels are lists of English words.

    Every image, in the table's order.
    """
    images = images_below(folder)
    for row in rows_of(table_in(folder, *_PADCHEST_TABLES), _PADCHEST_COLUMNS):
        findings = _padchest_findings(row["Labels"])
        label, why = _padchest_label(findings, config)
        yield Record(
            path=images.get(row["ImageID"]),
            label=label,
            patient=row["PatientID"],
            age=_padchest_age(row),
            sex=sex_of(row.get("PatientSex_DICOM", "")),
            view=view_of(row["Projection"]),
            finding="|".join(findings),
            labelled_by=_PADCHEST_METHODS.get(row.get("MethodLabel", "").lower(), ""),
            why=why,
        )


def _padchest_findings(text: str) -> tuple[str, ...]:
    """The words of a list such as `['pneumonia', 'infiltrates']`, sorted; empty if not a list."""
    if len(text) > _PADCHEST_LONGEST_LABELS:
        return ()
    try:
        words = ast.literal_eval(text) if text.startswith("[") else ()
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    return tuple(sorted({str(word).strip().lower() for word in words} - _PADCHEST_UNINFORMATIVE))


def _padchest_label(findings: tuple[str, ...], config: AdoptConfig) -> tuple[int | None, str]:
    found = set(findings)
    if not found:
        return None, NO_LABEL
    if found & _PADCHEST_UNUSABLE:
        return None, "image marked unusable by its owner"
    if found & _PADCHEST_PNEUMONIA:
        return PNEUMONIA, ""
    return (NORMAL, "") if found == {"normal"} else other_finding(config.others)


def _padchest_age(row: Mapping[str, str]) -> float | None:
    """Year of the study minus year of birth: up to a year too old."""
    try:
        years = int(row.get("StudyDate_DICOM", "")[:4]) - float(row.get("PatientBirth", ""))
    except ValueError:
        return None
    return age_in_years(f"{years:.0f}")


PADCHEST = Source(
    name="padchest",
    title="PadChest",
    paper="Bustos et al. 2020, doi:10.1016/j.media.2020.101797",
    layout=f"{_PADCHEST_TABLE} (or .gz), *.png below the folder",
    labels="pneumonia or atypical pneumonia, with others too → PNEUMONIA, normal alone → NORMAL",
    read=read_padchest,
    notes=(
        "27 % of the reports were labelled by physicians, the others by a network trained on "
        "those: see the column labelled_by.",
    ),
)


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        RSNA,
        NIH,
        CHEXPERT,
        VINDR,
        PADCHEST,
        PLAIN,
    )
}
