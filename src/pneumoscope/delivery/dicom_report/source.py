"""The image that a report is about, and the author of the report, with their UIDs.

`SourceImage` holds patient, study and image for reports. Optional elements that a report can't
repeat do not prevent it: `SourceImage.changes` states what was changed or left out. No pixel is
decoded.

`Author` identifies program, version and model. Its UIDs are the same whenever the same author
reports on the same image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import decoding, is_decoder_error
from pneumoscope.images.dicom.patient import describe_ages
from pneumoscope.images.read import describe, detect_format
from pneumoscope.inference.bundle import BundleManifest, manifest_digest

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

    from pneumoscope.inference.predictor import Predictor

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")

_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Patient (PS3.3 C.7.1.1) and General Study (C.7.2.1): required, may be empty (type 2)."""

_KEPT = ("Modality", "IssuerOfPatientID", "TimezoneOffsetFromUTC")
"""Elements that a bare image has as well, if it states them: the same patient id of another issuer
is another patient, and times are in the stated zone."""

_SEXES = ("M", "F", "O")
"""PS3.3 C.7.1.1: the enumerated values of PatientSex."""

_CODE = re.compile("[A-Z0-9_ ]{1,16}")
"""A code string (PS3.5 6.2, CS)."""

SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""Spacing of the pixels, mm (PS3.3 10.7.1.3): two positive numbers, or missing."""

_TEXT_VRS = ("PN", "LO", "SH", "ST", "LT", "UT", "UC")
"""PS3.5 6.2: value representations that SpecificCharacterSet applies to."""
_MOST_INSTANCE_NUMBER = 2**31 - 1
"""PS3.5 6.2: the largest value of an IS."""

_OFFSET_LETTERS = 5
"""PS3.3 C.12.1.1.5: an offset is a sign, two digits of hours and two of minutes."""

MANUFACTURER = "pneumoscope"
HEATMAP_TYPE = ["DERIVED", "SECONDARY"]
"""ImageType of heatmaps (PS3.3 C.7.6.1.1.2)."""

RESEARCH_ONLY = "RESEARCH USE ONLY – not for diagnosis"
_FINGERPRINT_DIGITS = 16
"""Digits of the SHA-256 in the name of the model (DICOM allows 64 characters)."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """An image that reports refer to.

    Attributes:
        dataset: every element before the pixels; patient and study are complete.
        sop_uid: SOP Instance UID.
        sop_class: SOP Class UID.
        series_uid: Series Instance UID.
        number: its place in the series, 1 or more.
        digest: of its content, whatever its transfer syntax: `image_digest`.
        changes: differences of the report from the file's header, one sentence each.
    """

    dataset: Dataset
    sop_uid: str
    sop_class: str
    series_uid: str
    number: int
    digest: str
    changes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Identifies the image: its UID alone does not, where a sender uses it twice."""
        return f"{self.sop_uid} {self.digest}"

    def bare(self) -> SourceImage:
        """The same with only the elements that identify patient, study and image."""
        from pydicom.dataset import Dataset

        dataset = Dataset()
        for keyword in (*_NEEDED, *_TYPE_2, *_KEPT):
            if keyword in self.dataset:
                dataset[keyword] = self.dataset[keyword]
        words = "its elements beyond those that identify patient and study were left out"
        return replace(self, dataset=dataset, changes=(*self.changes, words))


def source_image(content: bytes, name: str, limits: LimitsConfig) -> SourceImage:
    """Read the elements of a DICOM file that a report needs.

    Raises:
        ImageRefusedError: the file is not DICOM, can't be read, or lacks a UID that a report
            refers to; `.detail` states which.
    """
    kind = detect_format(content)
    if kind != "dicom":
        words = f"a {kind} file" if kind else describe(content)
        raise ImageRefusedError(
            name,
            Reason.NOT_AN_IMAGE,
            f"it is {words}, which belongs to no study. DICOM reports are written of DICOM files",
        )
    from pneumoscope.images.dicom.file import image_digest, parse_header

    digest = image_digest(content)
    with decoding(name, "the DICOM header"):
        dataset = parse_header(content, name, limits.max_bytes)
        changes: list[str] = []
        _decode_text(dataset, changes)
        _keep_readable(dataset, changes)
        _add_from_meta(dataset, content, changes)
        for keyword in _NEEDED:
            _check_uid(dataset, keyword, name, changes)
        _complete(dataset, changes)
        return SourceImage(
            dataset,
            str(dataset.SOPInstanceUID),
            str(dataset.SOPClassUID),
            str(dataset.SeriesInstanceUID),
            _instance_number(dataset),
            digest,
            tuple(changes),
        )


def _decode_text(dataset: Dataset, changes: list[str]) -> None:
    """Decode text as UTF-8 if it is valid and no known character set is stated (C.12.1.1.2)."""
    from pydicom.charset import convert_encodings, python_encoding

    stated = dataset.get("SpecificCharacterSet") or []
    terms = [stated] if isinstance(stated, str) else [str(term) for term in stated]
    plain = not any(term for term in terms if term != "ISO_IR 6")
    if not plain and all(term in python_encoding for term in terms):
        return
    text = b"".join(_raw_texts(dataset))
    if text.isascii():
        return
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        term, found = "ISO_IR 100", "no UTF-8 and was read as ISO_IR 100"
    else:
        term, found = "ISO_IR 192", "UTF-8 and was read as that"
    named = "no character set" if plain else f"the unknown character set {', '.join(terms)}"
    changes.append(f"it states {named}; its text is {found}")
    dataset.SpecificCharacterSet = term
    implicit, little = dataset.original_encoding
    dataset.set_original_encoding(implicit, little, convert_encodings(term))


def _raw_texts(dataset: Dataset) -> list[bytes]:
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import RawDataElement

    found = []
    for tag in dataset.keys():  # noqa: SIM118 - iterating a data set converts its elements
        element = dataset.get_item(tag)
        if not isinstance(element, RawDataElement) or element.value is None:
            continue
        try:
            vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag)
        except KeyError:  # private
            continue
        if vr in _TEXT_VRS:
            found.append(bytes(element.value))
    return found


def _keep_readable(dataset: Dataset, changes: list[str]) -> None:
    """Leave out elements that can't be read or written; reduce several names to the first."""
    for tag in sorted(dataset.keys()):
        try:
            several = _first_alone(dataset, tag)
            _write(dataset, tag)
        except Exception as error:
            if not is_decoder_error(error):
                raise
            changes.append(f"its {_name(tag)} can't be read and was left out")
            del dataset[tag]
        else:
            if several:
                changes.append(f"its {_name(tag)} has {several} values; the first was kept")


def _first_alone(dataset: Dataset, tag: BaseTag) -> int:
    """Keep the first of several names if one is allowed; returns their number, 0 if none was cut.

    Other elements with too many values are repeated as they are, because systems file by them.
    """
    from pydicom.datadict import dictionary_VM
    from pydicom.multival import MultiValue

    element = dataset[tag]
    if element.VR != "PN" or not isinstance(element.value, MultiValue):
        return 0
    if tag.is_private or dictionary_VM(tag) != "1":
        return 0
    values = element.value
    element.value = next((value for value in values if value), "")
    return len(values)


def _write(dataset: Dataset, tag: BaseTag) -> None:
    """Check that an element can be written."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_data_element

    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_data_element(stream, dataset[tag], ["utf-8"])


def _name(tag: BaseTag) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or f"element {tag}"


def _add_from_meta(dataset: Dataset, content: bytes, changes: list[str]) -> None:
    """Take missing SOP class and instance UIDs from the file meta information (PS3.10 7.1)."""
    from pydicom import dcmread

    from pneumoscope.images.dicom.file import transfer_syntax_of

    pairs = (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    )
    lacking = [(own, meta) for own, meta in pairs if not dataset.get(own)]
    if not lacking:
        return
    start = transfer_syntax_of(content)[1]
    found = dcmread(BytesIO(content[:start]), force=True)
    for own, meta in lacking:
        if value := found.file_meta.get(meta):
            setattr(dataset, own, value)
            changes.append(f"it has no {own}; that of its file meta information was taken")


def _check_uid(dataset: Dataset, keyword: str, name: str, changes: list[str]) -> None:
    """Reject a missing UID; keep one with an invalid form, because archives file by it."""
    from pydicom.uid import UID

    value = dataset.get(keyword)
    if not isinstance(value, UID) or not value:
        found = repr(str(value)) if value else "missing"
        raise ImageRefusedError(
            name,
            Reason.CORRUPT,
            f"its {keyword} is {found}; a report must refer to the image by one. Ask whoever made "
            "the file to write it",
        )
    if not value.is_valid:
        changes.append(f"its {keyword} {str(value)!r} breaks PS3.5 9.1 and was kept as it stands")


def _complete(dataset: Dataset, changes: list[str]) -> None:
    """Add required elements as empty ones, and empty or leave out values that are not allowed."""
    from pydicom.valuerep import DA, TM

    for keyword in _TYPE_2:
        if dataset.get(keyword) is None:
            setattr(dataset, keyword, "")
    if dataset.get("LossyImageCompression") not in (None, "00", "01"):  # C.7.6.1.1.5
        del dataset.LossyImageCompression
        changes.append("its LossyImageCompression is neither 00 nor 01 and was left out")
    if dataset.PatientSex not in ("", *_SEXES):
        _empty(dataset, "PatientSex", changes)
    _as_code(dataset, "BodyPartExamined", changes)
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(dataset.get(keyword))
        except (ValueError, TypeError):
            _empty(dataset, keyword, changes)
    for keyword in SPACINGS:
        if keyword in dataset and not _is_spacing(dataset[keyword].value):
            del dataset[keyword]
            changes.append(f"its {keyword} is not two positive numbers and was left out")


def _as_code(dataset: Dataset, keyword: str, changes: list[str]) -> None:
    """Write a code string in capitals, as PS3.5 6.2 has it (CS); leave out what can't be one."""
    stated = dataset.get(keyword)
    if stated is None or stated == "":
        return
    code = str(stated).strip().upper()
    if not _CODE.fullmatch(code):
        del dataset[keyword]
        changes.append(f"its {keyword} is no code of the standard and was left out")
    elif code != stated:
        setattr(dataset, keyword, code)
        changes.append(f"its {keyword} was written in capitals")


def _is_spacing(value: Any) -> bool:
    try:
        rows, columns = map(float, value)
    except (TypeError, ValueError):
        return False
    return 0 < rows < math.inf and 0 < columns < math.inf


def _empty(dataset: Dataset, keyword: str, changes: list[str]) -> None:
    setattr(dataset, keyword, "")
    changes.append(f"its {keyword} is not allowed by the standard and was emptied")


def _instance_number(dataset: Dataset) -> int:
    try:
        number = int(dataset.get("InstanceNumber") or 1)
    except (ValueError, TypeError):
        return 1
    return number if 1 <= number <= _MOST_INSTANCE_NUMBER else 1


def state_zone(made: Dataset, source: SourceImage) -> None:
    """Write the times of an object in the time zone that its image states, if it states one.

    The element applies to all times of an object (PS3.3 C.12.1), of which some are the image's.
    Without it all are local times, ours those of this machine.
    """
    from pydicom.valuerep import DA, TM

    offset = str(source.dataset.get("TimezoneOffsetFromUTC") or "")
    try:
        zone = datetime.strptime(offset, "%z").tzinfo
    except ValueError:
        return
    if len(offset) != _OFFSET_LETTERS:  # Python reads further forms
        return
    now = datetime.now(zone)
    made.TimezoneOffsetFromUTC = offset
    for event in ("InstanceCreation", "Content"):
        if f"{event}Time" in made:
            setattr(made, f"{event}Date", DA(now.date()))
            setattr(made, f"{event}Time", TM(now.time()))


Part = Literal[
    "report",
    "capture",
    "segmentation",
    "report series",
    "capture series",
    "segmentation series",
    "finding",
    "device",
]


@dataclass(frozen=True, slots=True)
class Author:
    """Program, version and model: what the results of a run have in common.

    Attributes:
        version: of pneumoscope.
        architecture: name of the network.
        fingerprint: hex SHA-256 of the model's manifest, which holds those of all its files.
        threshold: on the probability.
        rule: how the threshold was chosen.
        precision: numeric precision of inference, `""` if unknown.
        checks: settings by which the model predicts for images that it rejects by default.
        statements: the stated metrics of the model, each in words, as far as they are known.
        ages: the youngest and oldest age that the model is for; empty if unknown.
    """

    version: str
    architecture: str
    fingerprint: str
    threshold: float
    rule: str
    precision: str = ""
    checks: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    ages: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, manifest: BundleManifest, precision: str = "", checks: tuple[str, ...] = ()
    ) -> Author:
        """The author for the model of `manifest` at `precision` with those `checks`."""
        return cls(
            version=metadata.version("pneumoscope"),
            architecture=manifest.architecture.name,
            fingerprint=manifest_digest(manifest),
            threshold=manifest.threshold.value,
            rule=manifest.threshold.rule,
            precision=precision,
            checks=checks,
            statements=_validation(manifest.validation),
            ages=manifest.ages,
        )

    @property
    def key(self) -> str:
        """What decides whether an image gets a prediction: fingerprint and checks."""
        return " ".join((self.fingerprint, *self.checks))

    @property
    def model_name(self) -> str:
        """The name of the model: architecture and the first digits of its fingerprint."""
        return f"{self.architecture} {self.fingerprint[:_FINGERPRINT_DIGITS]}"

    def cautions(self) -> tuple[str, ...]:
        """What every result states in every form: research use, then settings and ages."""
        ages = [f"The model is for {describe_ages(self.ages)}"] if self.ages else []
        return (RESEARCH_ONLY, *(f"Setting: {check}" for check in self.checks), *ages)

    def uid(self, part: Part, subject: str = "") -> str:
        """The UID of one part of the report on `subject`, a UID or `SourceImage.identity`.

        The same part of the same subject has the same UID in every run (PS3.5 9: one UID, one
        object), so that archives recognise an object that is sent again.
        """
        from pydicom.uid import generate_uid

        entropy = ["pneumoscope", self.version, self.fingerprint, self.precision, part, subject]
        entropy += self.checks
        return str(generate_uid(entropy_srcs=["\0".join(entropy)]))


def checks_of(predictor: Predictor) -> tuple[str, ...]:
    """The settings for `Author.checks`; none where they are at their defaults or change nothing."""
    manifest = predictor.manifest
    without = manifest.input_check.method != "none" and not predictor.checks_inputs
    any_age = bool(manifest.ages) and predictor.any_age
    return (*(["any age"] if any_age else []), *(["no input check"] if without else []))


def _validation(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences such as `sensitivity on validation 0.92 (0.89 to 0.95)`."""
    where = document.get("on", "validation")
    metrics = document.get("metrics")
    if not isinstance(metrics, Mapping):
        return ()
    sentences = []
    for name in ("sensitivity", "specificity", "auc"):
        found = metrics.get(name)
        numbers = (
            [found.get(k) for k in ("value", "low", "high")] if isinstance(found, dict) else []
        )
        if numbers and all(isinstance(number, int | float) for number in numbers):
            value, low, high = numbers
            sentences.append(f"{name} on {where} {value:.3f} ({low:.3f} to {high:.3f})")
    return tuple(sentences)
