"""The film that a report is about: its patient, its study, and how to refer to it.

Comes in: the bytes of a DICOM file, whether an answer could be given for it or not. Goes out:
`SourceFilm`, or a refusal that says what is missing. Decodes no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.guard import decoding
from pneumoscope.images.sniff import describe, tell_format

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")

_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Patient (PS3.3 C.7.1.1) and General Study (C.7.2.1): must be there, may be empty."""

_SEXES = ("M", "F", "O")
"""PS3.3 C.7.1.1: the enumerated values of PatientSex."""

_MOST_INSTANCE_NUMBER = 2**31 - 1
"""PS3.5 6.2: what an IS may hold."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFilm:
    """A film that reports can be filed with.

    Attributes:
        dataset: every element before the pixels; patient and study are complete.
        sop_uid: SOP Instance UID.
        sop_class: SOP Class UID.
        series_uid: Series Instance UID.
        number: its place in the series, 1 or more.
    """

    dataset: Dataset
    sop_uid: str
    sop_class: str
    series_uid: str
    number: int


def source_film(content: bytes, name: str, limits: LimitsConfig) -> SourceFilm:
    """Read what a report needs of a DICOM file.

    Raises:
        ImageRefusedError: it is no DICOM file, can't be read, or lacks a UID that a report
            refers to it by; `.detail` says so.
    """
    kind = tell_format(content)
    if kind != "dicom":
        words = f"a {kind} file" if kind else describe(content)
        raise ImageRefusedError(
            name,
            Reason.NOT_AN_IMAGE,
            f"it is {words}, which belongs to no study. DICOM reports are written of DICOM files",
        )
    from pneumoscope.images.dicom.file import parse_header

    with decoding(name, "the DICOM header"):
        dataset = parse_header(content, name, limits.max_bytes)
        for keyword in _NEEDED:
            if not _is_uid(dataset, keyword):
                raise ImageRefusedError(
                    name,
                    Reason.CORRUPT,
                    f"its {keyword} is {dataset.get(keyword, 'missing')!r}; a report must refer to "
                    "the film by a valid one. Fetch it again",
                )
        _complete(dataset)
        return SourceFilm(
            dataset,
            str(dataset.SOPInstanceUID),
            str(dataset.SOPClassUID),
            str(dataset.SeriesInstanceUID),
            _instance_number(dataset),
        )


def _is_uid(dataset: Dataset, keyword: str) -> bool:
    from pydicom.uid import UID

    value = dataset.get(keyword)
    return isinstance(value, UID) and bool(value) and value.is_valid


def _complete(dataset: Dataset) -> None:
    """Empty elements where the standard wants some; values that no report may repeat emptied."""
    from pydicom.valuerep import DA, TM

    for keyword in _TYPE_2:
        if dataset.get(keyword) is None:
            setattr(dataset, keyword, "")
    if dataset.PatientSex not in _SEXES:
        dataset.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(dataset.get(keyword))
        except (ValueError, TypeError):
            setattr(dataset, keyword, "")


def _instance_number(dataset: Dataset) -> int:
    try:
        number = int(dataset.get("InstanceNumber") or 1)
    except (ValueError, TypeError):
        return 1
    return number if 1 <= number <= _MOST_INSTANCE_NUMBER else 1
