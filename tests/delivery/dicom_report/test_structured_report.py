"""The report of a result, read back by pydicom and judged by dciodvfy; clauses as cited."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report import objects
from pneumoscope.delivery.dicom_report.objects import Reporter, structured_report
from pneumoscope.delivery.dicom_report.source import (
    Author,
    SourceImage,
    checks_of,
    source_image,
)
from pneumoscope.images.read import read_bytes
from pneumoscope.inference.bundle import InputCheck, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.records import UNCERTAIN
from support.dicom_reports import (
    MANIFEST,
    REJECTED,
    BrightnessBackend,
    judged_by_dciodvfy,
    needs,
    patient_xray,
    predicted,
    xray_bytes,
)
from support.image_files import dicom


def report_bytes(content: bytes, result: Result) -> bytes:
    made = Reporter(MANIFEST).objects(content, result)
    assert made[0].kind == "report"
    return made[0].content


def report(content: bytes, result: Result) -> Dataset:
    return dcmread(BytesIO(report_bytes(content, result)))


def items(node: Dataset, meaning: str) -> list[Dataset]:
    """Every content item below `node` whose concept name has this meaning, in order."""
    found = []
    for item in node.get("ContentSequence", []):
        name = item.get("ConceptNameCodeSequence")
        if name and name[0].CodeMeaning == meaning:
            found.append(item)
        found += items(item, meaning)
    return found


def item(node: Dataset, meaning: str) -> Dataset:
    found = items(node, meaning)
    assert len(found) == 1, (meaning, len(found))
    return found[0]


def code(entry: Any) -> tuple[str, str]:
    return entry.CodeValue, entry.CodingSchemeDesignator


def number(node: Dataset, meaning: str) -> float:
    measured = item(node, meaning).MeasuredValueSequence[0]
    assert code(measured.MeasurementUnitsCodeSequence[0]) == ("1", "UCUM")
    return float(measured.NumericValue)


def test_it_stands_in_the_image_s_study_in_a_series_of_its_own() -> None:
    # PS3.3 A.35.3: a Comprehensive SR; C.7.1.1, C.7.2.1: patient and study are the image's.
    image = patient_xray()
    sr = report(dicom(image), predicted(dicom(image)))
    assert sr.SOPClassUID == Comprehensive3DSRStorage
    assert sr.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert sr.Modality == "SR"
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge",
        "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
        "StudyDescription", "ReferringPhysicianName",
    ):  # fmt: skip
        assert sr[keyword].value == image[keyword].value, keyword
    assert sr.SeriesInstanceUID != image.SeriesInstanceUID
    assert sr.SOPInstanceUID != image.SOPInstanceUID
    assert sr.Manufacturer == "pneumoscope"


def test_it_is_complete_and_nobody_has_verified_it() -> None:
    # PS3.3 C.17.2: SR Document General.
    sr = report(xray_bytes(), predicted(xray_bytes()))
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert "VerifyingObserverSequence" not in sr


def test_it_is_a_measurement_report_by_a_device() -> None:
    # PS3.16 TID 1500, and TID 1004 for the observer.
    sr = report(xray_bytes(), predicted(xray_bytes()))
    assert code(sr.ConceptNameCodeSequence[0]) == ("126000", "DCM")
    template = sr.ContentTemplateSequence[0]
    assert (template.TemplateIdentifier, template.MappingResource) == ("1500", "DCMR")
    assert code(item(sr, "Observer Type").ConceptCodeSequence[0]) == ("121007", "DCM")
    assert item(sr, "Device Observer Name").TextValue == "pneumoscope"


@pytest.mark.parametrize(
    ("probability", "presence"),
    [(0.75, ("52101004", "SCT")), (0.6, ("52101004", "SCT")), (0.5999, ("272519000", "SCT"))],
)
def test_probability_threshold_and_class(probability: float, presence: tuple[str, str]) -> None:
    # PS3.16 TID 1501: finding, measurements (TID 300), qualitative evaluation (CID 240).
    sr = report(xray_bytes(), predicted(xray_bytes(), probability))
    group = item(sr, "Measurement Group")
    assert code(item(group, "Finding").ConceptCodeSequence[0]) == ("233604007", "SCT")
    assert number(group, "Probability") == pytest.approx(probability, abs=1e-9)
    assert number(group, "Threshold Value") == 0.6
    assert code(item(group, "Presence of property").ConceptCodeSequence[0]) == presence
    assert not items(group, "Comment")


def test_an_uncertain_prediction_is_neither_present_nor_absent() -> None:
    # CID 240: undetermined. The probability stays, and a remark says why there is no class.
    result = predicted(xray_bytes(), 0.58)
    withheld = replace(result, prediction=replace(result.prediction, prediction=UNCERTAIN))
    sr = report(xray_bytes(), withheld)
    presence = item(sr, "Presence of property").ConceptCodeSequence[0]
    assert code(presence) == ("373068000", "SCT")
    assert number(sr, "Probability") == pytest.approx(0.58)
    assert "no class" in item(item(sr, "Measurement Group"), "Comment").TextValue


def test_how_unlike_the_training_images_it_is_where_that_is_measured() -> None:
    result = predicted(xray_bytes())
    name = "Distance from the training images (limit 1)"
    assert not items(report(xray_bytes(), result), name)
    scored = replace(result, prediction=replace(result.prediction, input_score=1.25))
    sr = report(xray_bytes(), scored)
    assert number(sr, name) == 1.25
    # PS3.16 8.2: a private scheme's designator begins with 99.
    scheme = item(sr, name).ConceptNameCodeSequence[0].CodingSchemeDesignator
    assert scheme.startswith("99")


def test_it_names_the_algorithm_its_version_and_its_model() -> None:
    # PS3.16 TID 4019: Algorithm Identification.
    sr = report(xray_bytes(), predicted(xray_bytes()))
    author = Author.of(MANIFEST)
    assert item(sr, "Algorithm Name").TextValue == "pneumoscope"
    assert item(sr, "Algorithm Version").TextValue == author.version
    parameters = [entry.TextValue for entry in items(sr, "Algorithm Parameters")]
    assert author.fingerprint in parameters[0]
    assert parameters[1] == "threshold: 0.600000 (for the test)"
    # How sure: validation's intervals, where there are any.
    manifest = replace(MANIFEST, ages=(1, 5))
    made = Reporter(manifest, precision="int8").objects(xray_bytes(), predicted(xray_bytes()))
    told = [
        entry.TextValue
        for entry in items(dcmread(BytesIO(made[0].content)), "Algorithm Parameters")
    ]
    assert told[2:4] == ["precision: int8", "The model is for children aged 1–5 years"]
    assert parameters[2:] == ["sensitivity on validation 0.900 (0.850 to 0.940)"]


def test_it_refers_to_the_image() -> None:
    # PS3.3 C.17.2.3: what the content refers to is in the evidence as well.
    image = patient_xray()
    sr = report(dicom(image), predicted(dicom(image)))
    group = item(sr, "Measurement Group")
    images = [entry for entry in group.ContentSequence if entry.ValueType == "IMAGE"]
    (reference,) = images[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == image.SOPClassUID
    (study,) = sr.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == image.StudyInstanceUID
    series = study.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_it_states_that_it_is_for_research_only() -> None:
    for result in (predicted(xray_bytes()), Result(REJECTED)):
        sr = report(xray_bytes(), result)
        last = sr.ContentSequence[-1]
        assert last.TextValue.startswith("RESEARCH USE ONLY – not for diagnosis")
        assert "RESEARCH USE ONLY" in sr.SeriesDescription


def test_a_rejected_image_gets_a_report_with_the_reason_and_no_number() -> None:
    made = Reporter(MANIFEST).objects(xray_bytes(), Result(REJECTED))
    assert [entry.kind for entry in made] == ["report"]
    sr = dcmread(BytesIO(made[0].content))
    group = item(sr, "Measurement Group")
    assert items(group, "Probability") == []
    assert items(group, "Threshold Value") == []
    evaluation = item(group, "Presence of property").ConceptCodeSequence[0]
    assert code(evaluation) == ("373121007", "SCT")
    assert item(group, "Comment").TextValue == (
        "No score: wrong_modality: its modality is 'MG'; a chest is wanted"
    )
    # Nobody here can say that what was rejected is a chest X-ray.
    assert code(item(sr, "Procedure reported").ConceptCodeSequence[0]) == ("363679005", "SCT")


def test_uids_are_the_same_in_every_run_and_of_one_image_by_one_model() -> None:
    # PS3.5 9: one UID, one object. What is sent again must be recognised.
    def uids(content: bytes, reporter: Reporter) -> list[str]:
        return [entry.sop_uid for entry in reporter.objects(content, predicted(content))]

    first = uids(xray_bytes(1), Reporter(MANIFEST))
    assert uids(xray_bytes(1), Reporter(MANIFEST)) == first
    other_xray = uids(xray_bytes(2), Reporter(MANIFEST))
    stricter = replace(MANIFEST, threshold=OperatingPoint(0.7, "for the test", ""))
    other_model = uids(xray_bytes(1), Reporter(stricter))
    other_precision = uids(xray_bytes(1), Reporter(MANIFEST, precision="bf16"))
    assert len({*first, *other_xray, *other_model, *other_precision}) == 8


def test_a_result_with_other_checks_has_other_uids() -> None:
    manifest = replace(MANIFEST, ages=(1, 5))
    default, lenient = (Predictor(manifest, BrightnessBackend(), any_age=x) for x in (False, True))
    assert checks_of(default) == checks_of(Predictor(MANIFEST, BrightnessBackend())) == ()
    checked = replace(manifest, input_check=InputCheck(method="gaussians"))
    assert checks_of(Predictor(checked, BrightnessBackend())) == ("no input check",)
    content, uids = xray_bytes(), []
    for model in (default, lenient):
        reporter = Reporter(manifest, checks=checks_of(model))
        made = reporter.objects(content, model.predict_bytes(content, "x"))
        uids.append(made[0].sop_uid)
    assert uids[0] != uids[1]
    image = source_image(content, "x", LimitsConfig())
    assert uids[0] == Author.of(manifest).uid("report", image.identity)
    told = items(dcmread(BytesIO(made[0].content)), "Algorithm Parameters")
    assert "Setting: any age" in [entry.TextValue for entry in told]


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Иванов^Иван"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "王^小東"),
    ],
)
def test_names_in_any_character_set_come_through(character_set: Any, name: str) -> None:
    # PS3.3 C.12.1.1.2; the report is in UTF-8 (ISO_IR 192) whatever the image is in.
    content = xray_bytes(SpecificCharacterSet=character_set, PatientName=name)
    sr = report(content, predicted(content))
    assert sr.SpecificCharacterSet == "ISO_IR 192"
    assert str(sr.PatientName) == name


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientName": None, "PatientID": None, "StudyID": None, "ReferringPhysicianName": None},
        {"PatientSex": "U", "PatientBirthDate": "unknown", "StudyDate": "1.4.99", "StudyTime": "x"},
        {"InstanceNumber": None, "PatientOrientation": None, "Manufacturer": None},
        {"InstanceNumber": "", "PatientOrientation": ""},
    ],
    ids=["absent", "impossible", "no number", "empty number"],
)
def test_odd_patients_and_studies_get_a_report_too(elements: dict[str, Any]) -> None:
    content = xray_bytes(**elements)
    sr = report(content, predicted(content))
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        assert keyword in sr  # type 2: there, if empty
    assert sr.PatientSex in ("", "F")
    assert sr.InstanceNumber >= 1


@needs("dciodvfy")
@pytest.mark.parametrize("what", ["scored", "rejected"])
def test_dciodvfy_finds_nothing(what: str, tmp_path: Path) -> None:
    result = predicted(xray_bytes()) if what == "scored" else Result(REJECTED)
    assert judged_by_dciodvfy(report_bytes(xray_bytes(), result), tmp_path) == []


def comments(sr: Dataset) -> list[str]:
    """The comments of a report on its differences from the file."""
    return [
        str(entry.TextValue).removeprefix("Changed from the image's header: ")
        for entry in sr.ContentSequence
        if str(entry.get("TextValue", "")).startswith("Changed from")
    ]


ODD_TAGS: list[tuple[str, dict[str, Any], str, Any, str]] = [
    (
        "two referrers",
        {"ReferringPhysicianName": ["A^B", "C^D"]},
        "ReferringPhysicianName",
        "A^B",
        "has 2 values; the first",
    ),
    (
        "first referrer empty",
        {"ReferringPhysicianName": ["", "C^D"]},
        "ReferringPhysicianName",
        "C^D",
        "has 2 values",
    ),
    ("two patient names", {"PatientName": ["A^B", "C^D"]}, "PatientName", "A^B", "has 2 values"),
    ("two ids", {"PatientID": ["A", "B"]}, "PatientID", ["A", "B"], ""),
    (
        "zeros in the study's UID",
        {"StudyInstanceUID": "1.2.03.4"},
        "StudyInstanceUID",
        "1.2.03.4",
        "kept as it stands",
    ),
    (
        "letters in the study's UID",
        {"StudyInstanceUID": "1.2.x.4"},
        "StudyInstanceUID",
        "1.2.x.4",
        "kept as it stands",
    ),
    (
        "a long UID",
        {"StudyInstanceUID": "1." + "2" * 70},
        "StudyInstanceUID",
        "1." + "2" * 70,
        "kept as it stands",
    ),
    ("two sexes", {"PatientSex": ["M", "F"]}, "PatientSex", "", "was emptied"),
    (
        "a birth date that is none",
        {"PatientBirthDate": "0000"},
        "PatientBirthDate",
        "",
        "was emptied",
    ),
    ("two dates", {"StudyDate": ["20200101", "20210101"]}, "StudyDate", "", "was emptied"),
    ("long accession", {"AccessionNumber": "A" * 40}, "AccessionNumber", "A" * 40, ""),
    ("an odd age", {"PatientAge": "4 years"}, "PatientAge", "4 years", ""),
    ("a long description", {"StudyDescription": "A" * 200}, "StudyDescription", "A" * 200, ""),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom reads odd values aloud
@pytest.mark.parametrize("case", ODD_TAGS, ids=lambda case: case[0])
def test_one_odd_tag_loses_no_report(case: tuple[str, dict[str, Any], str, Any, str]) -> None:
    _, elements, keyword, kept, words = case
    content = xray_bytes(**elements)
    result = predicted(content)
    made = Reporter(MANIFEST).objects(content, result)
    assert [each.kind for each in made] == ["report", "capture"]
    for each in made:
        found = dcmread(BytesIO(each.content))[keyword].value
        assert (list(found) if isinstance(kept, list) else str(found)) == kept
    assert words in "; ".join(comments(dcmread(BytesIO(made[0].content))))


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom reads odd values aloud
@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "SOPInstanceUID"])
def test_odd_uids_of_series_and_image_are_referred_to_as_they_stand(keyword: str) -> None:
    odd: dict[str, Any] = {keyword: "1.2.03.4"}
    content = xray_bytes(**odd)
    sr = report(content, predicted(content))
    study = sr.CurrentRequestedProcedureEvidenceSequence[0]
    series = study.ReferencedSeriesSequence[0]
    uids = (series.SeriesInstanceUID, series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    assert "1.2.03.4" in uids
    assert "kept as it stands" in comments(sr)[0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom reads odd values aloud
def test_what_can_not_be_read_is_left_out() -> None:
    content = xray_bytes(PatientWeight="72.5", PatientSize="1.70", PregnancyStatus=4)
    content = content.replace(b"72.5", b"hevy")
    # Of two bytes, and by its type of eight.
    content = content.replace(b"\x10\x00\xc0\x21US", b"\x10\x00\xc0\x21FD")
    sr = report(content, predicted(content))
    assert "PregnancyStatus" not in sr
    assert (str(sr.PatientWeight), sr.PatientSize) == ("hevy", 1.7)
    assert comments(sr) == ["its PregnancyStatus can't be read and was left out"]


@pytest.mark.parametrize(
    ("stated", "words"), [(None, "no character set"), ("UTF8", "unknown character set UTF8")]
)
def test_utf_8_without_a_character_set_comes_through(stated: str | None, words: str) -> None:
    plain = xray_bytes(PatientName="Muxxller^Jyyrgen", SpecificCharacterSet=stated)
    content = plain.replace(b"xx", "ü".encode()).replace(b"yy", "ü".encode())
    sr = report(content, predicted(content))
    assert str(sr.PatientName) == "Muüller^Jürgen"
    assert sr.SpecificCharacterSet == "ISO_IR 192"
    assert words in comments(sr)[0]
    assert "UTF-8" in comments(sr)[0]


def test_text_that_is_no_utf_8_is_read_byte_by_byte_and_reported() -> None:
    content = xray_bytes(PatientName="Mxller^J").replace(b"Mxller", b"M\xfcller")
    sr = report(content, predicted(content))
    assert str(sr.PatientName) == "Müller^J"
    assert "ISO_IR 100" in comments(sr)[0]


def test_an_instance_uid_may_stand_in_the_meta_information_alone() -> None:
    content = xray_bytes(SOPInstanceUID=None)
    sr = report(content, Result(REJECTED))
    reference = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert "file meta information" in comments(sr)[0]


def test_what_the_library_rejects_costs_the_rest_of_the_header_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first_fails(source: SourceImage, *rest: Any) -> Any:
        if "StudyDescription" in source.dataset:
            raise ValueError("odd")
        return structured_report(source, *rest)

    monkeypatch.setattr(objects, "structured_report", first_fails)
    sr = report(xray_bytes(), Result(REJECTED))
    assert str(sr.PatientName) == "XRAY^0001"
    assert "were left out" in comments(sr)[0]


def test_a_capture_that_can_not_be_made_does_not_cost_the_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reject(*_: Any) -> Any:
        raise ValueError("odd")

    monkeypatch.setattr(objects, "secondary_capture", reject)
    content = xray_bytes()
    made = Reporter(MANIFEST).objects(content, predicted(content))
    assert [each.kind for each in made] == ["report"]
    assert "no capture" in caplog.text


def test_the_warnings_of_an_input_stand_in_its_report() -> None:
    content = xray_bytes(WindowCenter=128, WindowWidth=256)
    result = predicted(content)
    warned = replace(result.prediction, warnings=read_bytes(content, "x").warnings)
    sr = report(content, replace(result, prediction=warned))
    found = [str(entry.TextValue) for entry in items(sr, "Comment")]
    assert any(text.startswith("Caution: its window (centre 128") for text in found)
