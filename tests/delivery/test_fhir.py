"""FHIR resources of a result, validated by fhir.resources and read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fhir.resources", reason="needs the extra 'fhir': pip install '.[fhir]'")

from fhir.resources.R4B.bundle import Bundle

from pneumoscope.cli.app import run
from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.source import Author, source_image
from pneumoscope.delivery.fhir import Subject, fhir_bundle
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import Prediction
from support.dicom_reports import MANIFEST, REJECTED, predicted, predictor, xray_bytes

AUTHOR = Author.of(MANIFEST, "f32")


def subject(content: bytes) -> Subject:
    return Subject.of(source_image(content, "image.dcm", LimitsConfig()))


def resources(
    about: Subject, prediction: Prediction, author: Author = AUTHOR
) -> dict[str, dict[str, Any]]:
    text = fhir_bundle(about, author, prediction)
    Bundle.model_validate_json(text)
    document = json.loads(text)
    return {entry["resource"]["resourceType"]: entry["resource"] for entry in document["entry"]}


def test_a_result_becomes_four_resources_that_refer_to_each_other() -> None:
    content = xray_bytes()
    text = fhir_bundle(subject(content), AUTHOR, predicted(content).prediction)
    urls = {
        entry["resource"]["resourceType"]: entry["fullUrl"] for entry in json.loads(text)["entry"]
    }
    found = resources(subject(content), predicted(content).prediction)
    assert set(found) == {"DiagnosticReport", "Observation", "Device", "Provenance"}
    report, observation = found["DiagnosticReport"], found["Observation"]
    assert report["result"] == [{"reference": urls["Observation"]}]
    assert observation["device"] == {"reference": urls["Device"]}
    assert found["Provenance"]["target"] == [
        {"reference": urls["DiagnosticReport"]},
        {"reference": urls["Observation"]},
    ]
    assert observation["valueQuantity"]["value"] == 0.75
    assert observation["interpretation"][0]["coding"][0]["code"] == "POS"
    assert observation["component"][0]["valueQuantity"]["value"] == 0.6
    assert (report["status"], observation["status"]) == ("preliminary", "preliminary")
    assert report["subject"]["identifier"]["value"] == "P-0001"
    # An accession number identifies the order, not the report.
    assert report["identifier"] == [
        {"system": "urn:ietf:rfc:3986", "value": urls["DiagnosticReport"]}
    ]
    (order,) = report["basedOn"]
    assert (order["type"], order["identifier"]["value"]) == ("ServiceRequest", "A1")
    assert order["identifier"]["type"]["coding"][0]["code"] == "ACSN"
    assert report["effectiveDateTime"] == "2024-02-29"
    study = source_image(content, "f", LimitsConfig()).dataset.StudyInstanceUID
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{study}"
    assert "RESEARCH USE ONLY" in report["conclusion"]
    assert found["Device"]["identifier"][0]["value"] == AUTHOR.fingerprint
    assert found["Provenance"]["entity"][0]["what"]["identifier"]["system"] == "urn:dicom:uid"


def test_a_rejected_input_states_why_and_has_no_value() -> None:
    observation = resources(subject(xray_bytes()), REJECTED)["Observation"]
    assert observation["status"] == "cancelled"
    assert "valueQuantity" not in observation
    assert "wrong modality" in observation["dataAbsentReason"]["text"]


def test_the_device_states_whom_its_model_is_for() -> None:
    content = xray_bytes()
    author = Author.of(replace(MANIFEST, ages=(1, 5)), "f32")
    document = json.loads(fhir_bundle(subject(content), author, predicted(content).prediction))
    (device,) = (
        entry["resource"]
        for entry in document["entry"]
        if entry["resource"]["resourceType"] == "Device"
    )
    assert [note["text"] for note in device["note"]] == [
        "RESEARCH USE ONLY – not for diagnosis",
        "The model is for children aged 1–5 years",
        "Threshold 0.600000: for the test",
        "sensitivity on validation 0.900 (0.850 to 0.940)",
    ]


def test_report_and_observation_state_warnings_settings_and_ages() -> None:
    content = xray_bytes()
    author = Author.of(replace(MANIFEST, ages=(1, 5)), "f32", ("any age", "no input check"))
    warned = replace(predicted(content).prediction, warnings=("age not known",))
    found = resources(subject(content), warned, author)
    notes = [note["text"] for note in found["Observation"]["note"]]
    assert notes[1:] == [
        "Warning: age not known.",
        "RESEARCH USE ONLY – not for diagnosis.",
        "Setting: any age.",
        "Setting: no input check.",
        "The model is for children aged 1–5 years.",
    ]
    assert found["DiagnosticReport"]["conclusion"] == " ".join(notes)
    device = {note["text"] for note in found["Device"]["note"]}
    assert {"Setting: any age", "Setting: no input check"} <= device


def test_the_same_result_has_the_same_identifiers_and_another_image_others() -> None:
    first, second = xray_bytes(1), xray_bytes(2)
    texts = [
        fhir_bundle(subject(content), AUTHOR, predicted(content).prediction)
        for content in (first, first, second)
    ]
    urls = [[entry["fullUrl"] for entry in json.loads(text)["entry"]] for text in texts]
    assert urls[0] == urls[1]
    assert urls[0][0] != urls[2][0]
    assert urls[0][2] == urls[2][2]  # one device


def test_nothing_is_stated_that_a_file_does_not_state() -> None:
    bare = xray_bytes(PatientID=None, StudyDate="", AccessionNumber=None)
    report = resources(subject(bare), predicted(xray_bytes()).prediction)["DiagnosticReport"]
    assert {"subject", "effectiveDateTime", "basedOn"}.isdisjoint(report)


def test_a_patient_id_is_stated_with_its_issuer() -> None:
    content = xray_bytes(IssuerOfPatientID="NORTH")
    found = resources(subject(content), predicted(content).prediction)
    for kind in ("DiagnosticReport", "Observation"):
        patient = found[kind]["subject"]["identifier"]
        assert (patient["value"], patient["assigner"]) == ("P-0001", {"display": "NORTH"})
        assert patient["type"]["coding"][0]["code"] == "MR"
    alone = resources(subject(xray_bytes()), predicted(content).prediction)
    assert "assigner" not in alone["DiagnosticReport"]["subject"]["identifier"]


def test_of_a_header_that_fhir_does_not_allow_the_uids_are_stated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    about = replace(subject(xray_bytes()), date="2024-13-99")
    report = resources(about, predicted(xray_bytes()).prediction)["DiagnosticReport"]
    assert "subject" not in report
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{about.study}"
    assert "image.dcm: its header has values that FHIR does not allow" in caplog.text
    with pytest.raises(ValueError, match="value"):
        fhir_bundle(replace(about, image=""), AUTHOR, predicted(xray_bytes()).prediction)


def test_predict_writes_one_for_every_input_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor())
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.dcm").write_bytes(xray_bytes(PatientName="Müller^Jörg"))
    grey = np.tile(np.arange(64, dtype=np.uint8), (64, 1)) * 4
    Image.fromarray(grey).save(images / "b.png")
    asked = ["predict", str(images), "--fhir", str(tmp_path / "fhir"), "--json", "-q"]
    assert run(asked) == 0
    told = json.loads(capsys.readouterr().out)["fhir"]
    assert (told["bundles"], told["without"]) == (2, 0)
    written = sorted((tmp_path / "fhir").glob("*.fhir.json"))
    bundles = [Bundle.model_validate_json(path.read_text()) for path in written]
    assert len(bundles) == 2
    provenance = json.loads(written[1].read_text())["entry"][3]["resource"]
    value = provenance["entity"][0]["what"]["identifier"]["value"]
    assert value.startswith("urn:sha256:")
