"""Determine patient ids and subtypes from a manifest, a DICOM header or Kermany file names.

`assign_patients` fills in the `patient` of every record; no pixel is decoded. The module also
recognises the words that data sets use for splits, for folders of masks, and for unknown patients,
in any letter case.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.images.dicom.patient import dicom_texts
from pneumoscope.records import ImageRecord, Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
_SET = re.compile(r"[ _-]?(set|data|split|images)$")

_MASKS = re.compile(
    r"(?<!un)mask|segmentation|annotation|overlay|heatmap|saliency|grad[ _-]?cam|thumbnail|"
    r"(^|[ _-])(seg|segs|roi|rois|contour|contours|gt|groundtruth|ground[ _-]truth)([ _-]|$)"
)

_NOBODY = re.compile(
    r"anon(ym(e|ous|us|i[sz]ed)?)?|de-?ident(ified)?|nan|none|null|nil|na|n/a|unknown|unk|unnamed|"
    r"no(name|id|patient)|notavailable|missing|empty|removed|redacted|withheld|hidden|"
    r"confidential|undefined|default|dummy"
)
_FILLERS = re.compile(r"patient|name|id|pat|subject|person|case|no|not|available|de|identified")
_WORD = re.compile(r"[^\W_]+")
_ONE_CHARACTER = re.compile(r"([x*#?.-])\1*", re.IGNORECASE)
_ZERO = re.compile(r"[-+]?0+(\.0+)?|-1|-?9{3,}")
_NUMBER = re.compile(r"[0-9]+(\.0+)?")

_PERSON = re.compile(r"person([0-9]+)_(bacteria|virus)_[0-9]+", re.IGNORECASE)
_NORMAL = re.compile(r"(NORMAL2-)?IM-([0-9]+)-[0-9]+", re.IGNORECASE)
_KIND = re.compile(r"(bacteria|virus|IM|NORMAL2-IM)-([0-9]+)")
_DIGITS = re.compile(r"([0-9]+)")
ID_SERIES = ("bacteria", "virus", "IM", "NORMAL2-IM", "other")
"""The series of ids in the Kermany data set, each with its own numbers; `other` is the rest."""

_FEW_IMAGES = 10


def parse_split(text: str) -> Split | None:
    """The split that a word means (`valid`, `Training`, `test_set`); `None` for other words."""
    word = text.strip().lower()
    return _SPLITS.get(word) or _SPLITS.get(_SET.sub("", word))


def split_words() -> str:
    """The recognised words, for messages."""
    return ", ".join(_SPLITS)


def is_mask_folder(name: str) -> bool:
    """Whether the name of a folder inside a class means masks or drawings, not X-rays."""
    return bool(_MASKS.search(name.lower()))


def placeholder_ids(ids: Iterable[str]) -> frozenset[str]:
    """The patient ids of a data set that do not identify a patient, as `ANONYMOUS`, `nan` or `0`.

    Words such as "anonymous" always count. `0`, `-1` and `999…` count only if the other ids are not
    numbers or if they occur on most images: in a numbered series 0 is a patient like any other.

    Args:
        ids: the id of each image, as found; empty ids are ignored.
    """
    counts = Counter(text for text in (each.strip() for each in ids) if text)
    found = {text for text in counts if _names_nobody(text)}
    zeros = {text for text in counts if _ZERO.fullmatch(text)}
    numbers = sum(1 for text in counts if text not in zeros and _NUMBER.fullmatch(text))
    total = counts.total()
    found |= {text for text in zeros if not numbers or (total >= 4 and 2 * counts[text] > total)}
    return frozenset(found)


def _names_nobody(text: str) -> bool:
    words = _WORD.findall(text.lower())
    if not words or (len(text) > 1 and _ONE_CHARACTER.fullmatch(text)):
        return True
    if _NOBODY.fullmatch("".join(words)):
        return True
    named = [word for word in words if not _NOBODY.fullmatch(word)]
    return len(named) < len(words) and all(_FILLERS.fullmatch(word) for word in named)


@dataclass(frozen=True, slots=True)
class KermanyName:
    """The content of a Kermany file name: the patient's id, and `bacteria`, `virus` or `""`."""

    patient: str
    subtype: str


def from_file_name(name: str) -> KermanyName | None:
    """Patient and subtype according to the Kermany naming, `None` for other names.

    `personN_bacteria_M` is `bacteria-N`, `personN_virus_M` is `virus-N` (numbers start again per
    type), `IM-N-M…` is `IM-N`, `NORMAL2-IM-N-M…` is `NORMAL2-IM-N`. N keeps its leading zeros.
    Kermany et al. 2018, doi:10.17632/rscbjbr9sj.2.
    """
    if match := _PERSON.match(name):
        subtype = match[2].lower()
        return KermanyName(f"{subtype}-{match[1]}", subtype)
    if match := _NORMAL.match(name):
        return KermanyName(f"{'NORMAL2-' if match[1] else ''}IM-{match[2]}", "")
    return None


def id_series(patient: str) -> str:
    """The series of a patient id: one of `ID_SERIES`."""
    match = _KIND.fullmatch(patient)
    return match[1] if match else "other"


def number_of(patient: str) -> int | None:
    """The number in a Kermany patient id (`bacteria-417` → 417), `None` for other ids."""
    match = _KIND.fullmatch(patient)
    return int(match[2]) if match and len(match[2]) < 20 else None


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts `p2` before `p10`; ids that differ only in zeros keep an order."""
    parts = []
    for part in _DIGITS.split(text):
        # The length stands for the magnitude, so no huge integer is built from long digit strings.
        digits = part.lstrip("0") if part[:1].isdecimal() and part.isascii() else None
        parts.append((1, 0, part) if digits is None else (0, len(digits), digits))
    return (*parts, (2, 0, text))


def dicom_patient_id(path: Path) -> str:
    """The PatientID (0010,0020) of a DICOM file; `""` for other, broken or anonymous files.

    Reads the header only up to that element (DICOM PS3.10 section 7.1: `DICM` at byte 128).
    """
    return dicom_texts(path, ["PatientID"]).get("PatientID", "")


def assign_patients(
    records: Sequence[ImageRecord], root: Path
) -> tuple[tuple[ImageRecord, ...], tuple[str, ...]]:
    """Give a patient id to each record that has none, and a subtype to each record.

    The order is: manifest, DICOM PatientID, Kermany file name. Otherwise the image is its own
    patient, named by its path below `root`. Placeholders (`ANONYMOUS`, `nan`) do not count as ids.

    Returns:
        The records in their order, and warnings about placeholders, images without any id, and an
        id that occurs on most images.
    """
    given = [record.patient or dicom_patient_id(record.path) for record in records]
    nobody = placeholder_ids(given)
    named = []
    own = 0
    for record, stated in zip(records, given, strict=True):
        facts = from_file_name(record.path.name)
        patient = "" if stated.strip() in nobody else stated
        patient = patient or (facts.patient if facts else "")
        if not patient:
            own += not stated
            patient = _below(record.path, root)
        subtype = facts.subtype if facts else ""
        named.append(dataclasses.replace(record, patient=patient, subtype=subtype))
    warnings = (*_on_placeholders(given, nobody), *_on_one_for_all(named))
    if not own:
        return tuple(named), warnings
    warning = (
        f"{own} of {len(named)} images name no patient (no manifest column, DICOM PatientID or "
        "Kermany file name): each counts as a separate patient. If some show the same person, "
        "give a CSV manifest with a column 'patient'; otherwise results look better than they are."
    )
    return tuple(named), (*warnings, warning)


def _on_placeholders(given: Sequence[str], nobody: frozenset[str]) -> tuple[str, ...]:
    hidden = [text.strip() for text in given if text.strip() in nobody]
    if not hidden:
        return ()
    shown = ", ".join(repr(text) for text, _ in Counter(hidden).most_common(3))
    return (
        f"{len(hidden)} of {len(given)} images have a placeholder instead of a patient id "
        f"({shown}): each counts as a separate patient. If some show the same person, give a CSV "
        "manifest with a column 'patient' of true ids or pseudonyms; otherwise results look better "
        "than they are.",
    )


def _on_one_for_all(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    if len(records) < _FEW_IMAGES:
        return ()
    patient, count = Counter(record.patient for record in records).most_common(1)[0]
    if 2 * count <= len(records):
        return ()
    return (
        f"{count} of {len(records)} images have the patient id {patient!r}: they count as one "
        "person and stay together. If that is not a person, leave the id out (then each image "
        "counts as a separate patient) or give a CSV manifest with a column 'patient' of true ids.",
    )


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
