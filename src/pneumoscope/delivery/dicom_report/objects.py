"""The DICOM objects of one result, and `predict --dicom-out DIR`: those of many results as files.

`Reporter` makes the `ReportObject`s of one result. `ReportFolder` writes `NAME-MARK-report.dcm`,
`NAME-MARK-capture.dcm` and, on request, `NAME-MARK-segmentation.dcm` for each DICOM input, and a
note for each other input.

The report is a Comprehensive 3D SR by TID 1500, Measurement Report (PS3.16). An input without a
score gets one as well, with the reason, so that nobody waits for it in vain.

    Measurement Report (TID 1500)
      Observer: device (TID 1004)
      Procedure reported
      Imaging Measurements
        Measurement Group (TID 1501)
          Finding                pneumonia
          Algorithm (TID 4019)   name, version, model, threshold, validation
          Source image
          Probability            with its threshold (TID 300)
          Presence of property   present, absent, undetermined, not evaluated
          Comment                the reason for no score or no class; each warning of the input
      Comment                    research use only; settings; ages; changes of the header
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.delivery.dicom_report.heatmap import secondary_capture, segmentation
from pneumoscope.delivery.dicom_report.source import (
    MANUFACTURER,
    Author,
    SourceImage,
    source_image,
    state_zone,
)
from pneumoscope.errors import ExtraMissingError, ImageRefusedError
from pneumoscope.images.budget import decoding
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import heatmap_name, overlay_rgb
from pneumoscope.inference.results import Result
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, Prediction
from pneumoscope.storage import claim_folder, path_text, write_bytes

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        CodedConcept,
        Comprehensive3DSR,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
    )
    from pydicom.dataset import Dataset

SERIES_NUMBER = 9001
"""Higher than those of modalities; Series Numbers (PS3.3 C.7.3.1) need not be unique."""

_SCHEME = "99PNEUMOSCOPE"
"""Private codes begin with 99 (PS3.16 8.2)."""

_PNEUMONIA = ("233604007", "SCT", "Pneumonia")
_CHEST_XRAY = ("399208008", "SCT", "Plain chest X-ray")
_IMAGING = ("363679005", "SCT", "Imaging procedure")
_PRESENT = ("52101004", "SCT", "Present")  # CID 240
_ABSENT = ("272519000", "SCT", "Absent")
_UNDETERMINED = ("373068000", "SCT", "Undetermined")
_NOT_EVALUATED = ("373121007", "SCT", "Not Evaluated")
_PRESENCE = ("121052", "DCM", "Presence of property")
_PROBABILITY = ("122157", "DCM", "Probability")
_THRESHOLD = ("122411", "DCM", "Threshold Value")
_UNLIKENESS = ("UNLIKENESS", _SCHEME, "Distance from the training images (limit 1)")
_COMMENT = ("121106", "DCM", "Comment")
_NO_UNITS = ("1", "UCUM", "no units")

_LOGGER = logging.getLogger(__name__)
MOST_NOTES = 1000
"""Notes that the document holds at most; all are logged."""


def structured_report(
    source: SourceImage, author: Author, prediction: Prediction
) -> Comprehensive3DSR:
    """Make the report of one result in the study of its image, in a series of the author.

    Patient and study are those of the image (PS3.3 A.35.3). Text is encoded in UTF-8 whatever the
    character set of the image. The report is complete and unverified: no person verified it.

    Raises:
        Exception: any exception of highdicom for unusual values; call it inside `decoding`.
    """
    from highdicom.sr import Comprehensive3DSR, MeasurementReport

    report = MeasurementReport(
        observation_context=_observer(author),
        procedure_reported=_procedure(prediction),
        imaging_measurements=[_group(source, author, prediction)],
    )
    first, *others = author.cautions()
    for caution in (f"{first}. Research software, not a medical device", *others):
        report[0].ContentSequence.append(_comment(caution))
    for change in source.changes:
        report[0].ContentSequence.append(_comment(f"Changed from the image's header: {change}"))
    return Comprehensive3DSR(
        evidence=[source.dataset],
        content=report,
        series_instance_uid=author.uid("report series", source.series_uid),
        series_number=SERIES_NUMBER,
        sop_instance_uid=author.uid("report", source.identity),
        instance_number=source.number,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_verified=False,
        series_description="Pneumonia: model's report. RESEARCH USE ONLY",
        manufacturer_model_name=author.model_name,
        software_versions=author.version,
        device_serial_number=author.fingerprint,
        specific_character_set="ISO_IR 192",
    )


def _code(triplet: tuple[str, str, str]) -> CodedConcept:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = triplet
    return CodedConcept(value, scheme, meaning)


def _observer(author: Author) -> ObservationContext:
    """TID 1001 with TID 1004: the observer is a device, not a person."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    device = DeviceObserverIdentifyingAttributes(
        uid=author.uid("device"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=author.model_name,
        serial_number=author.fingerprint,
    )
    context = ObserverContext(codes.DCM.Device, device)
    return ObservationContext(observer_device_context=context)


def _procedure(prediction: Prediction) -> CodedConcept:
    """The procedure: a rejected image may not be a chest X-ray."""
    return _code(_CHEST_XRAY if prediction.status == "ok" else _IMAGING)


def _group(
    source: SourceImage, author: Author, prediction: Prediction
) -> MeasurementsAndQualitativeEvaluations:
    """TID 1501 for the single finding."""
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=author.uid("finding", source.identity), identifier="pneumonia"
        ),
        finding_type=_code(_PNEUMONIA),
        algorithm_id=_algorithm(author),
        measurements=_measurements(author, prediction) or None,
        qualitative_evaluations=[
            QualitativeEvaluation(_code(_PRESENCE), _code(_class(prediction)))
        ],
        source_images=[SourceImageForMeasurementGroup(source.sop_class, source.sop_uid)],
    )
    if prediction.reason is not None:
        words = f"No score: {prediction.reason.value}: {prediction.detail}"
        group[0].ContentSequence.append(_comment(words))
    if prediction.prediction == UNCERTAIN:
        words = "Indeterminate: close to its threshold the model gives a probability and no class"
        group[0].ContentSequence.append(_comment(words))
    for warning in prediction.warnings:
        group[0].ContentSequence.append(_comment(f"Caution: {warning}"))
    return group


def _class(prediction: Prediction) -> tuple[str, str, str]:
    if prediction.prediction is None:
        return _NOT_EVALUATED
    if prediction.prediction == UNCERTAIN:
        return _UNDETERMINED
    return _PRESENT if prediction.prediction == CLASS_NAMES[1] else _ABSENT


def _algorithm(author: Author) -> AlgorithmIdentification:
    """TID 4019: name, version, parameters."""
    from highdicom.sr import AlgorithmIdentification

    parameters = [
        f"model: {author.architecture}, manifest SHA-256 {author.fingerprint}",
        f"threshold: {author.threshold:.6f} ({author.rule})",
        *([f"precision: {author.precision}"] if author.precision else []),
        *author.cautions()[1:],
        *author.statements,
    ]
    return AlgorithmIdentification(
        name=MANUFACTURER,
        version=author.version,
        parameters=parameters,
        manufacturer=MANUFACTURER,
    )


def _measurements(author: Author, prediction: Prediction) -> list[Measurement]:
    """TID 300 for each number; none without a score."""
    numbers = [
        (_PROBABILITY, prediction.probability),
        (_THRESHOLD, prediction.threshold),
        (_UNLIKENESS, prediction.input_score),
    ]
    return [_measurement(name, value) for name, value in numbers if value is not None]


def _measurement(name: tuple[str, str, str], value: float) -> Measurement:
    from highdicom.sr import Measurement

    return Measurement(_code(name), value, _code(_NO_UNITS))


def _comment(text: str) -> Any:
    """A comment in addition to the template; TIDs 1500 and 1501 are extensible."""
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return TextContentItem(_code(_COMMENT), text, RelationshipTypeValues.CONTAINS)


Kind = Literal["report", "capture", "segmentation", "fhir"]
_DICOM_KINDS: frozenset[Kind] = frozenset(("report", "capture", "segmentation"))


@dataclass(frozen=True, slots=True)
class ReportObject:
    """A DICOM object, or a FHIR Bundle, of one result.

    Attributes:
        kind: `report` (SR), `capture` (SC), `segmentation` (SEG), or `fhir` (a FHIR Bundle).
        sop_class: SOP Class UID; `""` for a Bundle.
        sop_uid: SOP Instance UID, or the identifier of a Bundle: the same whenever the same model
            scores the same image with the same settings.
        content: a Part 10 file, Explicit VR Little Endian; JSON for a Bundle.
    """

    kind: Kind
    sop_class: str
    sop_uid: str
    content: bytes


def check_installed() -> None:
    """Check that reports can be made, before any other work.

    Raises:
        ExtraMissingError: highdicom is not installed.
    """
    if util.find_spec("highdicom") is None:
        raise ExtraMissingError("Writing DICOM reports", "dicom")


class Reporter:
    """Makes the DICOM objects of one model's results.

    Args:
        manifest: of the model.
        limits: limits for reading one file.
        precision: numeric precision of inference.
        segmentation: whether the heatmap is also written as a Segmentation.
        checks: of the predictor, as `checks_of` states them.
    """

    def __init__(
        self,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
        *,
        segmentation: bool = False,
        checks: tuple[str, ...] = (),
    ) -> None:
        self._segmentation = segmentation
        self.author = Author.of(manifest, precision, checks)
        self._preprocessing: PreprocessConfig = manifest.preprocessing
        self.limits = limits or LimitsConfig()

    def objects(self, content: bytes, result: Result) -> tuple[ReportObject, ...]:
        """Make a report, and a capture if the result kept its image and one can be made.

        Raises:
            ImageRefusedError: `content` is not a DICOM file, or lacks elements that a report needs.
        """
        source = source_image(content, result.prediction.path, self.limits)
        return self.objects_of(source, result)

    def objects_of(self, source: SourceImage, result: Result) -> tuple[ReportObject, ...]:
        """As `objects`, of an image whose header was read.

        Raises:
            ImageRefusedError: it lacks elements that a report needs.
        """
        prediction, author = result.prediction, self.author
        try:
            made = [_report(source, author, prediction)]
        except ImageRefusedError:  # the report without optional elements
            source = source.bare()
            made = [_report(source, author, prediction)]
        for change in source.changes:
            _LOGGER.info("%s: DICOM report: %s", path_text(prediction.path), change)
        return (*made, *self._heatmaps(source, result))

    def _heatmaps(self, source: SourceImage, result: Result) -> Iterator[ReportObject]:
        """The capture and the segmentation, as far as they can be made."""
        if result.image is None or result.cam is None:
            return
        prediction, config = result.prediction, self._preprocessing
        pixels = result.image.pixels
        overlay = overlay_rgb(pixels, result.cam, config)
        makers: dict[Kind, Callable[[], Dataset]] = {
            "capture": partial(secondary_capture, source, self.author, prediction, overlay)
        }
        if self._segmentation:
            makers["segmentation"] = partial(
                segmentation, source, self.author, prediction, result.cam, config, pixels.shape
            )
        for kind, make in makers.items():
            try:
                with decoding(prediction.path, f"patient and study, for a {kind},"):
                    yield _encoded(kind, make(), source)
            except ImageRefusedError as refusal:
                name = path_text(prediction.path)
                _LOGGER.warning("%s: no %s: %s", name, kind, refusal.detail)


def _report(source: SourceImage, author: Author, prediction: Prediction) -> ReportObject:
    with decoding(prediction.path, "patient and study, for a report,"):
        return _encoded("report", structured_report(source, author, prediction), source)


def _encoded(kind: Kind, dataset: Dataset, source: SourceImage) -> ReportObject:
    state_zone(dataset, source)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return ReportObject(
        kind, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), stream.getvalue()
    )


class ReportFolder:
    """Writes the objects of results as they arrive.

    Args:
        folder: output folder; created if it does not exist.
        manifest: of the model.
        limits: limits for reading one file.
        precision: numeric precision of inference.
        segmentation: whether heatmaps are also written as Segmentations.
        checks: of the predictor, as `checks_of` states them.

    Attributes:
        reports: number of reports written.
        captures: number of captures written.
        segmentations: number of segmentations written.
        skipped: number of inputs without a report.
        notes: path and reason of the first of these.

    Raises:
        ExtraMissingError: highdicom is not installed.
        UsageError: the path is a file.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
        *,
        segmentation: bool = False,
        checks: tuple[str, ...] = (),
    ) -> None:
        check_installed()
        claim_folder(folder)
        self.reports = 0
        self.captures = 0
        self.segmentations = 0
        self.skipped = 0
        self.notes: list[tuple[str, str]] = []
        self.folder = folder
        self._limits = limits or LimitsConfig()
        self._reporter = Reporter(
            manifest, self._limits, precision, segmentation=segmentation, checks=checks
        )

    def add(self, result: Result) -> None:
        """Write the objects of one result; an input without objects gets a note.

        Raises:
            OSError: the folder can't be written.
        """
        path = result.prediction.path
        try:
            content = result.content(self._limits)
            source = source_image(content, path, self._limits)
            made = self._reporter.objects_of(source, result)
        except ImageRefusedError as refusal:
            self._note(path, refusal.detail)
            return
        stem = heatmap_name(path).removesuffix(".png")
        for item in made:
            write_bytes(self.folder / f"{stem}-{item.kind}.dcm", item.content)
        # An earlier run may have left a capture, which would contradict a report without a score.
        for kind in _DICOM_KINDS.difference(item.kind for item in made):
            (self.folder / f"{stem}-{kind}.dcm").unlink(missing_ok=True)
        self.reports += 1
        self.captures += sum(item.kind == "capture" for item in made)
        self.segmentations += sum(item.kind == "segmentation" for item in made)

    def document(self) -> dict[str, Any]:
        """The counts and notes as JSON types."""
        return {
            "folder": str(self.folder),
            "reports": self.reports,
            "captures": self.captures,
            "segmentations": self.segmentations,
            "without": self.skipped,
            "notes": [{"path": path_text(path), "note": note} for path, note in self.notes],
        }

    def lines(self) -> list[str]:
        """The counts as text; inputs without a report were logged."""
        counts = f"{self.reports} reports, {self.captures} captures"
        if self.segmentations:
            counts += f", {self.segmentations} segmentations"
        without = f", {self.skipped} inputs without" if self.skipped else ""
        return [f"dicom     {self.folder} ({counts}{without})"]

    def _note(self, path: str, why: str) -> None:
        _LOGGER.warning("%s: no DICOM report: %s", path_text(path), why)
        self.skipped += 1
        if len(self.notes) < MOST_NOTES:
            self.notes.append((path, why))
