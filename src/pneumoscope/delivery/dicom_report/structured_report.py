"""A result as a Comprehensive 3D SR: TID 1500 Measurement Report (PS3.16).

An input without a score gets a report as well, with the reason, so that nobody waits for it in
vain.

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
      Comment                    research use only; differences from the image's header
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pneumoscope.delivery.dicom_report.source import (
    MANUFACTURER,
    RESEARCH_ONLY,
    Author,
    SourceImage,
)
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, Prediction

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        CodedConcept,
        Comprehensive3DSR,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
    )

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
_UNLIKENESS = ("UNLIKENESS", _SCHEME, "How unlike its training images the model finds the input")
_COMMENT = ("121106", "DCM", "Comment")
_NO_UNITS = ("1", "UCUM", "no units")


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
    report[0].ContentSequence.append(
        _comment(f"{RESEARCH_ONLY}. Research software, not a medical device")
    )
    for change in source.changes:
        report[0].ContentSequence.append(_comment(f"Changed from the image's header: {change}"))
    return Comprehensive3DSR(
        evidence=[source.dataset],
        content=report,
        series_instance_uid=author.uid("report series", source.series_uid),
        series_number=SERIES_NUMBER,
        sop_instance_uid=author.uid("report", source.sop_uid),
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
            uid=author.uid("finding", source.sop_uid), identifier="pneumonia"
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
