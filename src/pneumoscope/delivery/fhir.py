"""A result as a FHIR R4 Bundle of DiagnosticReport, Observation, Device and Provenance.

`fhir.resources` validates every Bundle before it is returned (its R4B models, in which these four
resources are as in R4). Patient, study and image are referred to by the identifiers of the DICOM
file, because their resources belong to the hospital. An input without a score gets a report with
the reason and a data-absent reason. The identifiers of the resources follow from model and image,
so that a repeated run makes resources with the same identifiers.

`FhirFolder` is `predict --fhir DIR`: each Bundle as `NAME-MARK.fhir.json` in a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.source import (
    MANUFACTURER,
    Author,
    source_image,
)
from pneumoscope.errors import ExtraMissingError, ImageRefusedError
from pneumoscope.images.read import detect_format
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.inference.results import Result
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, Prediction
from pneumoscope.storage import claim_folder, path_text, write_text

if TYPE_CHECKING:
    from pneumoscope.delivery.dicom_report.source import SourceImage

_SCT = "http://snomed.info/sct"
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_UCUM = "http://unitsofmeasure.org"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_NAMESPACE = uuid.UUID("68020c37-8cad-46f5-b126-51865ae20083")
"""Of all identifiers that pneumoscope makes up; fixed, so that equal content gets equal ones."""

_FINDING = {
    "system": uuid.uuid5(_NAMESPACE, "codes").urn,
    "code": "pneumonia-probability",
    "display": "Probability of pneumonia",
}
_CHEST_XRAY = {"system": _SCT, "code": "399208008", "display": "Plain chest X-ray"}
_CHEST = {"system": _SCT, "code": "51185008", "display": "Thoracic structure"}
_SOFTWARE = {"system": _SCT, "code": "706687001", "display": "Software"}
_PROBABILITY = {"system": _DCM, "code": "122157", "display": "Probability"}
_THRESHOLD = {"system": _DCM, "code": "122411", "display": "Threshold Value"}
_INTERPRETATIONS = {
    CLASS_NAMES[1]: ("POS", "Positive"),
    CLASS_NAMES[0]: ("NEG", "Negative"),
    UNCERTAIN: ("IND", "Indeterminate"),
}

_LOGGER = logging.getLogger(__name__)
_KINDS = ("DiagnosticReport", "Observation", "Device", "Provenance")


@dataclass(frozen=True, slots=True)
class Subject:
    """Patient, study and image of a result, as far as the file states them.

    Attributes:
        image: SOP Instance UID of a DICOM file; else a digest of the file.
        digest: `SourceImage.digest`, for images with the same UID; `""` for another file.
        patient_id: patient id; `""` if missing, like the following.
        issuer: who issued the patient id: the same id of another issuer is another patient.
        study: Study Instance UID.
        accession: accession number.
        date: of the study, ISO 8601.
    """

    image: str
    digest: str = ""
    patient_id: str = ""
    issuer: str = ""
    study: str = ""
    accession: str = ""
    date: str = ""

    @classmethod
    def of(cls, source: SourceImage) -> Subject:
        """The subject of a DICOM file."""
        dataset = source.dataset
        date = str(dataset.get("StudyDate") or "")
        iso = f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdigit() else ""
        return cls(
            f"urn:oid:{source.sop_uid}",
            source.digest,
            str(dataset.get("PatientID") or ""),
            str(dataset.get("IssuerOfPatientID") or ""),
            str(dataset.StudyInstanceUID),
            str(dataset.get("AccessionNumber") or ""),
            iso,
        )


def check_installed() -> None:
    """Check that resources can be made, before any other work.

    Raises:
        ExtraMissingError: fhir.resources is not installed.
    """
    if util.find_spec("fhir") is None or util.find_spec("fhir.resources") is None:
        raise ExtraMissingError("Writing FHIR resources", "fhir")


def fhir_bundle(
    subject: Subject, author: Author, prediction: Prediction, *, transaction: bool = False
) -> str:
    """The FHIR R4 Bundle of one result, as validated JSON.

    A header may have a value that FHIR does not allow. Then the Bundle states the UIDs alone, of
    study and image or of the image, and the log names the file.

    Args:
        subject: the patient, study and image that the result is about.
        author: program and model.
        prediction: the result.
        transaction: a Bundle of type `transaction` for `POST [base]`, whose entries are `PUT` under
            identifiers that follow from model and image (FHIR R4, RESTful API, 3.1.0.11.2); else
            one of type `collection`.

    Raises:
        ValueError: FHIR does not allow even the image's UID; fhir.resources says why.
    """
    try:
        return _bundle(subject, author, prediction, transaction)
    except ValueError:
        words = "%s: its header has values that FHIR does not allow; its Bundle states UIDs alone"
        _LOGGER.warning(words, path_text(prediction.path))
    image = Subject(subject.image, digest=subject.digest)
    with suppress(ValueError):
        return _bundle(replace(image, study=subject.study), author, prediction, transaction)
    return _bundle(image, author, prediction, transaction)


def _bundle(subject: Subject, author: Author, prediction: Prediction, transaction: bool) -> str:
    from fhir.resources.R4B.bundle import Bundle

    now = datetime.now(UTC).isoformat(timespec="seconds")
    urls = {kind: _url(kind, author, subject) for kind in _KINDS}
    resources = {
        "DiagnosticReport": _report(subject, author, prediction, urls, now),
        "Observation": _observation(subject, author, prediction, urls, now),
        "Device": _device(author),
        "Provenance": _provenance(subject, author, urls, now),
    }
    document = {
        "resourceType": "Bundle",
        "type": "transaction" if transaction else "collection",
        "timestamp": now,
        "identifier": {"system": "urn:ietf:rfc:3986", "value": bundle_identifier(subject, author)},
        "entry": [
            _entry(kind, urls[kind], resource, transaction) for kind, resource in resources.items()
        ],
    }
    return str(Bundle.model_validate_json(json.dumps(document)).model_dump_json(indent=2))


def bundle_identifier(subject: Subject, author: Author) -> str:
    """The identifier of a result's Bundle, a `urn:uuid`: the same for the same model and image."""
    return _url("Bundle", author, subject)


def _entry(kind: str, url: str, resource: dict[str, Any], transaction: bool) -> dict[str, Any]:
    content = {"resourceType": kind, **_pruned(resource)}
    if not transaction:
        return {"fullUrl": url, "resource": content}
    identifier = url.removeprefix("urn:uuid:")
    request = {"method": "PUT", "url": f"{kind}/{identifier}"}
    return {"fullUrl": url, "resource": {**content, "id": identifier}, "request": request}


def _url(kind: str, author: Author, subject: Subject) -> str:
    about = () if kind == "Device" else (subject.image, subject.digest)
    parts = (kind, author.version, author.fingerprint, author.precision, *about, *author.checks)
    return uuid.uuid5(_NAMESPACE, "\0".join(parts)).urn


def _report(
    subject: Subject, author: Author, prediction: Prediction, urls: dict[str, str], now: str
) -> dict[str, Any]:
    category = {"system": f"{_TERMINOLOGY}/v2-0074", "code": "RAD", "display": "Radiology"}
    return {
        "meta": _research(),
        # No person has verified it, so it stays preliminary.
        "status": "preliminary",
        "category": [{"coding": [category]}],
        "code": {"coding": [_CHEST_XRAY], "text": "Chest X-ray: pneumonia, by software"},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": urls["DiagnosticReport"]}],
        "basedOn": [_order(subject)] if subject.accession else None,
        "subject": _patient(subject),
        "effectiveDateTime": subject.date or None,
        "issued": now,
        "result": [{"reference": urls["Observation"]}],
        "imagingStudy": [_study(subject)] if subject.study else None,
        "conclusion": " ".join(_sentences(author, prediction)),
    }


def _observation(
    subject: Subject, author: Author, prediction: Prediction, urls: dict[str, str], now: str
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "meta": _research(),
        "status": "preliminary" if prediction.status == "ok" else "cancelled",
        "category": [
            {"coding": [{"system": f"{_TERMINOLOGY}/observation-category", "code": "imaging"}]}
        ],
        "code": {"coding": [_FINDING, _PROBABILITY], "text": "Probability of pneumonia"},
        "bodySite": {"coding": [_CHEST]},
        "subject": _patient(subject),
        "effectiveDateTime": subject.date or None,
        "issued": now,
        "device": {"reference": urls["Device"]},
        "method": {"text": f"{author.architecture}; {author.rule}"},
        "derivedFrom": [_study(subject)] if subject.study else None,
        "note": [{"text": sentence} for sentence in _sentences(author, prediction)],
    }
    if prediction.probability is None:
        absent = {"system": f"{_TERMINOLOGY}/data-absent-reason", "code": "not-performed"}
        return found | {"dataAbsentReason": {"coding": [absent], "text": _finding(prediction)}}
    code, display = _INTERPRETATIONS[prediction.prediction or UNCERTAIN]
    system = f"{_TERMINOLOGY}/v3-ObservationInterpretation"
    found["valueQuantity"] = _number(prediction.probability)
    found["interpretation"] = [{"coding": [{"system": system, "code": code, "display": display}]}]
    found["component"] = [
        {"code": {"coding": [_THRESHOLD]}, "valueQuantity": _number(prediction.threshold or 0.0)}
    ]
    if prediction.input_score is not None:
        found["component"].append(
            {
                "code": {"text": "Distance from the training images, limit 1"},
                "valueQuantity": _number(prediction.input_score),
            }
        )
    return found


def _device(author: Author) -> dict[str, Any]:
    return {
        "identifier": [
            {"system": uuid.uuid5(_NAMESPACE, "model").urn, "value": author.fingerprint}
        ],
        "status": "active",
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": MANUFACTURER, "type": "manufacturer-name"}],
        "modelNumber": author.model_name,
        "version": [{"value": author.version}],
        "type": {"coding": [_SOFTWARE]},
        "note": [
            {"text": sentence}
            for sentence in (
                *author.cautions(),
                f"Threshold {author.threshold:.6f}: {author.rule}",
                *author.statements,
            )
        ],
    }


def _provenance(subject: Subject, author: Author, urls: dict[str, str], now: str) -> dict[str, Any]:
    assembler = {"system": f"{_TERMINOLOGY}/provenance-participant-type", "code": "assembler"}
    image = {"system": "urn:dicom:uid", "value": subject.image}
    if not subject.image.startswith("urn:oid:"):
        image = {"system": "urn:ietf:rfc:3986", "value": subject.image}
    return {
        "target": [{"reference": urls["DiagnosticReport"]}, {"reference": urls["Observation"]}],
        "recorded": now,
        "agent": [
            {
                "type": {"coding": [assembler]},
                "who": {"reference": urls["Device"], "display": author.model_name},
            }
        ],
        "entity": [{"role": "source", "what": {"identifier": image, "display": "the X-ray"}}],
    }


def _research() -> dict[str, Any]:
    """The security label for research."""
    reason = {"system": f"{_TERMINOLOGY}/v3-ActReason", "code": "HRESCH"}
    return {"security": [reason | {"display": "healthcare research"}]}


def _patient(subject: Subject) -> dict[str, Any] | None:
    if not subject.patient_id:
        return None
    code = {"system": f"{_TERMINOLOGY}/v2-0203", "code": "MR"}
    identifier = {"type": {"coding": [code]}, "value": subject.patient_id}
    if subject.issuer:
        identifier["assigner"] = {"display": subject.issuer}
    return {"type": "Patient", "identifier": identifier}


def _study(subject: Subject) -> dict[str, Any]:
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{subject.study}"}
    return {"type": "ImagingStudy", "identifier": identifier}


def _order(subject: Subject) -> dict[str, Any]:
    """The order of the examination, by its accession number."""
    code = {"system": f"{_TERMINOLOGY}/v2-0203", "code": "ACSN"}
    identifier = {"type": {"coding": [code]}, "value": subject.accession}
    return {"type": "ServiceRequest", "identifier": identifier}


def _number(value: float) -> dict[str, Any]:
    return {"value": round(value, 6), "unit": "1", "system": _UCUM, "code": "1"}


def _sentences(author: Author, prediction: Prediction) -> list[str]:
    """The result in words, with each warning of the input and the author's cautions."""
    warnings = (f"Warning: {warning}" for warning in prediction.warnings)
    cautions = (*warnings, *author.cautions())
    return [_finding(prediction), *(f"{text.rstrip('.')}." for text in cautions)]


def _finding(prediction: Prediction) -> str:
    if prediction.probability is None:
        reason = prediction.reason.value.replace("_", " ") if prediction.reason else "no score"
        return f"No score was given: {reason}. {prediction.detail}".strip().rstrip(".") + "."
    return (
        f"Model’s prediction {prediction.prediction}: probability of pneumonia "
        f"{prediction.probability:.3f}, threshold {prediction.threshold:.3f}."
    )


def _pruned(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource without its empty elements: FHIR has no null."""
    return {name: value for name, value in resource.items() if value is not None}


class FhirFolder:
    """Writes the Bundles of results as they arrive.

    Args:
        folder: output folder; created if it does not exist.
        manifest: of the model.
        limits: limits for reading one file.
        precision: numeric precision of inference.
        checks: of the predictor, as `checks_of` states them.

    Attributes:
        written: number of Bundles.
        skipped: number of inputs that can't be read, or whose UID FHIR does not allow.

    Raises:
        ExtraMissingError: fhir.resources is not installed.
        UsageError: the path is a file.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
        checks: tuple[str, ...] = (),
    ) -> None:
        check_installed()
        claim_folder(folder)
        self.folder = folder
        self.written = 0
        self.skipped = 0
        self._limits = limits or LimitsConfig()
        self._author = Author.of(manifest, precision, checks)

    def add(self, result: Result) -> None:
        """Write the Bundle of one result, or log why there is none.

        Raises:
            OSError: the folder can't be written.
        """
        path = result.prediction.path
        try:
            content = result.content(self._limits)
            subject = self._subject(content, path)
            text = fhir_bundle(subject, self._author, result.prediction)
        except (ImageRefusedError, ValueError) as error:
            _LOGGER.warning("%s: no FHIR resources: %s", path_text(path), error)
            self.skipped += 1
            return
        name = heatmap_name(path).removesuffix(".png")
        write_text(self.folder / f"{name}.fhir.json", text + "\n")
        self.written += 1

    def _subject(self, content: bytes, path: str) -> Subject:
        """Patient and study of a DICOM file; for another file only its digest."""
        if detect_format(content) == "dicom":
            return Subject.of(source_image(content, path, self._limits))
        return Subject(f"urn:sha256:{hashlib.sha256(content).hexdigest()}")

    def document(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {"folder": str(self.folder), "bundles": self.written, "without": self.skipped}

    def lines(self) -> list[str]:
        """The counts as text."""
        without = f", {self.skipped} inputs without" if self.skipped else ""
        return [f"fhir      {self.folder} ({self.written} bundles{without})"]
