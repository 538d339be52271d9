"""Who is on an image: patient ids and subtypes, from manifest, DICOM header or Kermany file name.

Comes in: records whose `patient` may be empty. Goes out: records in which none is.
Knows nothing of splits, and never decodes a pixel.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from pneumoscope.data.vocabulary import placeholders
from pneumoscope.records import ImageRecord

_PERSON = re.compile(r"person([0-9]+)_(bacteria|virus)_[0-9]+", re.IGNORECASE)
_NORMAL = re.compile(r"(NORMAL2-)?IM-([0-9]+)-[0-9]+", re.IGNORECASE)
_KIND = re.compile(r"(bacteria|virus|IM|NORMAL2-IM)-([0-9]+)")
_DIGITS = re.compile(r"([0-9]+)")

KINDS = ("bacteria", "virus", "IM", "NORMAL2-IM", "other")
"""The series of ids in the Kermany data set, each with numbers of its own; `other` is the rest."""

_PATIENT_ID = 0x00100020  # PatientID, DICOM PS3.6
_FEW_IMAGES = 10
_DEFLATED = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian, DICOM PS3.5 A.5
_META_START = 144  # preamble, DICM and the group length element, DICOM PS3.10 section 7.1
_MOST_INFLATED = 1 << 20  # PatientID stands near the start: a bomb is never unpacked for it


@dataclass(frozen=True, slots=True)
class KermanyName:
    """What a Kermany file name tells: the patient's id, and `bacteria`, `virus` or `""`."""

    patient: str
    subtype: str


def from_file_name(name: str) -> KermanyName | None:
    """Patient and subtype by the Kermany naming, `None` for any other name.

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


def kind_of(patient: str) -> str:
    """The series that a patient id belongs to: one of `KINDS`."""
    match = _KIND.fullmatch(patient)
    return match[1] if match else "other"


def number_of(patient: str) -> int | None:
    """The number of a Kermany patient id (`bacteria-417` → 417), `None` for any other id."""
    match = _KIND.fullmatch(patient)
    return int(match[2]) if match and len(match[2]) < 20 else None


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which `p2` comes before `p10`; ids equal but for zeros keep an order."""
    parts = []
    for part in _DIGITS.split(text):
        # The length stands for the magnitude: no integer is built from a thousand digits.
        digits = part.lstrip("0") if part[:1].isdecimal() and part.isascii() else None
        parts.append((1, 0, part) if digits is None else (0, len(digits), digits))
    return (*parts, (2, 0, text))


def dicom_patient_id(path: Path) -> str:
    """The PatientID (0010,0020) of a DICOM file; `""` for other, broken or anonymous files.

    Only the header up to that element is read (DICOM PS3.10 section 7.1: `DICM` at byte 128).
    """
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                return ""
            stream.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the reader of pixels reports odd headers
                return _patient_id_in(path, stream)
    # What a broken header makes pydicom raise; the reader of pixels refuses the file later.
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
    except (NotImplementedError, RecursionError, struct.error, zlib.error):
        return ""


def _patient_id_in(path: Path, stream: IO[bytes]) -> str:
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_dataset, read_file_meta_info, read_partial

    def behind(tag: int, _vr: str | None, _length: int) -> bool:
        return tag > _PATIENT_ID

    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            stream.seek(_META_START + int(meta.FileMetaInformationGroupLength))
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            head = BytesIO(inflate.decompress(stream.read(_MOST_INFLATED), _MOST_INFLATED))
            header = read_dataset(head, False, True, stop_when=behind)
        else:
            header = read_partial(stream, stop_when=behind, specific_tags=[_PATIENT_ID])
        return str(header.get("PatientID", "") or "").strip(" \0")
    except InvalidDicomError:
        return ""


def assign_patients(
    records: Sequence[ImageRecord], root: Path
) -> tuple[tuple[ImageRecord, ...], tuple[str, ...]]:
    """Give each record without a patient one, and each record its subtype.

    The manifest's patient stays; else the DICOM PatientID; else the Kermany file name; else the
    image is its own patient, named by its path below `root`. What names nobody (`ANONYMOUS`, `nan`)
    is taken for no id.

    Returns:
        The records in their order, and warnings: on placeholders, on images without any id, and on
        one id that stands on most images.
    """
    given = [record.patient or dicom_patient_id(record.path) for record in records]
    nobody = placeholders(given)
    named = []
    own = 0
    for record, told in zip(records, given, strict=True):
        facts = from_file_name(record.path.name)
        patient = "" if told.strip() in nobody else told
        patient = patient or (facts.patient if facts else "")
        if not patient:
            own += not told
            patient = _below(record.path, root)
        subtype = facts.subtype if facts else ""
        named.append(dataclasses.replace(record, patient=patient, subtype=subtype))
    warnings = (*_on_placeholders(given, nobody), *_on_one_for_all(named))
    if not own:
        return tuple(named), warnings
    warning = (
        f"{own} of {len(named)} images name no patient (no manifest column, DICOM PatientID or "
        "Kermany file name): each counts as a patient of its own. If some show the same person, "
        "give a CSV manifest with a column 'patient'; otherwise results look better than they are."
    )
    return tuple(named), (*warnings, warning)


def _on_placeholders(given: Sequence[str], nobody: frozenset[str]) -> tuple[str, ...]:
    hidden = [text.strip() for text in given if text.strip() in nobody]
    if not hidden:
        return ()
    shown = ", ".join(repr(text) for text, _ in Counter(hidden).most_common(3))
    return (
        f"{len(hidden)} of {len(given)} images bear a placeholder in place of a patient id "
        f"({shown}): each counts as a patient of its own. If some show the same person, give a CSV "
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
        f"{count} of {len(records)} images bear the patient id {patient!r}: they count as one "
        "person and stay together. If that is no person, leave the id out (then each image counts "
        "as a patient of its own) or give a CSV manifest with a column 'patient' of true ids.",
    )


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
