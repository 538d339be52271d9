"""The heatmap as a fractional Segmentation, read back by pydicom and judged by dciodvfy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SegmentationStorage,
)

from pneumoscope.cli.app import run
from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.delivery.dicom_report import objects as objects_module
from pneumoscope.delivery.dicom_report.heatmap import _label, labelled
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.delivery.dicom_report.source import Author, source_image
from pneumoscope.inference.overlay import fit_map
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction
from support.dicom_reports import (
    MANIFEST,
    REJECTED,
    BrightnessBackend,
    judged_by_dciodvfy,
    needs,
    patient_xray,
    predicted,
    predictor,
    xray_bytes,
)
from support.image_files import dicom


def made(content: bytes) -> bytes:
    objects = Reporter(MANIFEST, segmentation=True).objects(content, predicted(content))
    assert [one.kind for one in objects] == ["report", "capture", "segmentation"]
    assert objects[2].sop_class == SegmentationStorage
    return objects[2].content


def read(content: bytes) -> Dataset:
    return dcmread(BytesIO(made(content)))


def test_it_lies_on_the_pixels_of_the_image_that_it_names() -> None:
    image = patient_xray()
    seg = read(dicom(image))
    assert (seg.Rows, seg.Columns) == (image.Rows, image.Columns) == (64, 56)
    cam = predicted(xray_bytes()).cam
    assert cam is not None
    heat = fit_map(cam, (64, 56), MANIFEST.preprocessing)
    np.testing.assert_allclose(seg.pixel_array / 255, heat, atol=0.5 / 255 + 1e-6)
    (source,) = seg.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert seg[keyword].value == image[keyword].value
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID


@pytest.mark.parametrize(
    "elements", [{"PixelSpacing": ["0.2", "0.1"]}, {"PixelAspectRatio": ["2", "1"]}]
)
def test_it_lies_on_pixels_that_are_not_square(elements: dict[str, Any]) -> None:
    # 64 stored rows are read as 128; preprocessing pads what was read.
    content = xray_bytes(**elements)
    manifest = replace(MANIFEST, preprocessing=PreprocessConfig(size=32, fit="pad"))
    cam = np.zeros((4, 4), np.float32)
    cam[1:, 1:3] = 1.0
    result = replace(predicted(content), cam=cam)
    made = Reporter(manifest, segmentation=True).objects(content, result)
    seg = dcmread(BytesIO(made[2].content))
    read = fit_map(cam, (128, 56), manifest.preprocessing)
    on_stored_rows = read.reshape(64, 2, 56).mean(1)
    np.testing.assert_allclose(seg.pixel_array / 255, on_stored_rows, atol=0.01)


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": ["0.2", "0.25"], "ImagerPixelSpacing": ["0.3", "0.3"]}, [0.2, 0.25]),
        ({"ImagerPixelSpacing": ["0.3", "0.3"]}, [0.3, 0.3]),
        ({"PixelSpacing": ["0", "0"]}, None),
        ({"PixelSpacing": "0.2"}, None),
        ({"PixelSpacing": ["0.2", ""], "ImagerPixelSpacing": ["0.3", "0.3"]}, [0.3, 0.3]),
        ({"PixelSpacing": ["0.2", "0.2", "0.2"]}, None),
        ({"PixelSpacing": ["nan", "0.2"]}, None),
        ({}, None),
    ],
)
def test_viewers_find_the_measures_of_its_pixels(
    elements: dict[str, Any], spacing: list[float] | None
) -> None:
    (shared,) = read(xray_bytes(**elements)).SharedFunctionalGroupsSequence
    (measures,) = shared.PixelMeasuresSequence
    assert measures.get("PixelSpacing") == spacing


@needs("dciodvfy")
@pytest.mark.parametrize(
    "elements",
    [
        {"FrameOfReferenceUID": "1.2.3.4", "PositionReferenceIndicator": ""},
        {"FrameOfReferenceUID": "1.2.3.4", "PixelSpacing": ["0.2", "0.2"]},
        {"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "NumberOfFrames": 1},
        {"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage},
        {"LossyImageCompression": ""},
        {"LossyImageCompression": "YES"},
    ],
)
def test_images_with_unusual_elements_get_a_valid_one(
    elements: dict[str, Any], tmp_path: Path
) -> None:
    content = xray_bytes(**elements)
    objects = Reporter(MANIFEST, segmentation=True).objects(content, predicted(content))
    assert [one.kind for one in objects] == ["report", "capture", "segmentation"]
    assert [judged_by_dciodvfy(one.content, tmp_path) for one in objects] == [[], [], []]
    seg = dcmread(BytesIO(objects[2].content))
    assert "FrameOfReferenceUID" not in seg
    assert seg.SourceImageSequence[0].ReferencedSOPClassUID == elements.get(
        "SOPClassUID", DigitalXRayImageStorageForPresentation
    )


def test_without_a_segmentation_there_is_a_capture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> Dataset:
        raise AttributeError("unusual")

    monkeypatch.setattr(objects_module, "segmentation", failing)
    content = xray_bytes()
    found = Reporter(MANIFEST, segmentation=True).objects(content, predicted(content))
    assert [one.kind for one in found] == ["report", "capture"]
    assert "image.dcm: no segmentation: " in caplog.text
    assert "no capture" not in caplog.text


def test_it_states_what_it_is() -> None:
    seg = read(xray_bytes())
    assert (seg.Modality, seg.SegmentationType) == ("SEG", "FRACTIONAL")
    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue) == ("PROBABILITY", 255)
    (segment,) = seg.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "233604007"
    assert "RESEARCH USE ONLY" in seg.SeriesDescription
    assert "RESEARCH USE ONLY" in seg.ContentDescription


OUTSIDE_THE_DICTIONARY = {
    ("SCT", "233604007", "Pneumonia"),
    ("SCT", "399208008", "Plain chest X-ray"),
    ("RFC5646", "en-US", "English (United States)"),
    ("99PNEUMOSCOPE", "UNLIKENESS", "Distance from the training images (limit 1)"),
}


def items_of(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            yield item
            yield from items_of(item)


def codes_of(dataset: Dataset) -> set[tuple[str, str, str]]:
    found = {
        (item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning)
        for item in items_of(dataset)
        if "CodeValue" in item
    }
    assert found
    return found


def test_every_code_has_the_meaning_that_the_standard_gives_it() -> None:
    # PS3.16 annex D and its context groups, as pydicom's dictionary has them.
    known = {
        (scheme, value, meaning)
        for scheme, keywords in concepts.items()
        for values in keywords.values()
        for value, (meaning, _) in values.items()
    }
    content = xray_bytes()
    scored = predicted(content)
    measured = replace(scored, prediction=replace(scored.prediction, input_score=0.5))
    for result in (measured, predicted(content, 0.1), Result(REJECTED)):
        for one in Reporter(MANIFEST, segmentation=True).objects(content, result):
            assert codes_of(dcmread(BytesIO(one.content))) <= known | OUTSIDE_THE_DICTIONARY


def test_its_algorithm_is_of_the_family_artificial_intelligence() -> None:
    # PS3.16 CID 7162.
    (algorithm,) = read(xray_bytes()).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    (family,) = algorithm.AlgorithmFamilyCodeSequence
    assert (family.CodeValue, family.CodingSchemeDesignator) == ("123110", "DCM")


def test_the_same_result_has_the_same_uid() -> None:
    assert read(xray_bytes()).SOPInstanceUID == read(xray_bytes()).SOPInstanceUID
    assert read(xray_bytes(2)).SOPInstanceUID != read(xray_bytes()).SOPInstanceUID


def test_warnings_of_an_input_are_in_all_of_its_objects() -> None:
    manifest, content = replace(MANIFEST, ages=(1, 5)), xray_bytes(BodyPartExamined="SMITH")
    result = Predictor(manifest, BrightnessBackend(), any_age=True).predict_bytes(content, "x")
    made = Reporter(manifest, segmentation=True).objects(content, result)
    assert [one.kind for one in made] == ["report", "capture", "segmentation"]
    report, capture, seg = (dcmread(BytesIO(one.content)) for one in made)
    for caution in ("predicted all the same (--any-age)", "body part 'SMITH' is not known"):
        assert any(caution in str(x.get("TextValue", "")) for x in items_of(report))
        assert caution in capture.ImageComments
        assert caution in seg.ImageComments
    author = Author.of(manifest)
    shown = " ".join(_label(author, result.prediction))
    assert "(--any-age)" in shown
    assert "SMITH" not in shown  # pixels can't be de-identified
    plain = _label(author, replace(result.prediction, warnings=()))
    assert len(_label(author, result.prediction)) > len(plain)
    assert capture.Rows > labelled_rows(author, replace(result.prediction, warnings=()))


def test_times_are_in_the_time_zone_of_the_image() -> None:
    # PS3.3 C.12.1: the offset applies to all times of an object, of which some are the image's.
    def made_with(offset: str | None) -> list[Dataset]:
        content = xray_bytes(TimezoneOffsetFromUTC=offset)
        reporter = Reporter(MANIFEST, segmentation=True)
        return [dcmread(BytesIO(o.content)) for o in reporter.objects(content, predicted(content))]

    for one in made_with("+1345"):
        assert one.TimezoneOffsetFromUTC == "+1345"
        for event in ("InstanceCreation", "Content"):
            stated = f"{one[f'{event}Date'].value}{one[f'{event}Time'].value}+1345"
            moment = datetime.strptime(stated, "%Y%m%d%H%M%S.%f%z")
            assert abs((datetime.now(UTC) - moment).total_seconds()) < 3600
    for offset in (None, "", "Z", "+01:00", "local"):
        assert all("TimezoneOffsetFromUTC" not in one for one in made_with(offset))


def test_the_issuer_of_the_patient_s_id_is_in_all_objects() -> None:
    content = xray_bytes(IssuerOfPatientID="NORTH")
    made = Reporter(MANIFEST, segmentation=True).objects(content, predicted(content))
    assert {dcmread(BytesIO(one.content)).IssuerOfPatientID for one in made} == {"NORTH"}
    assert source_image(content, "f", LimitsConfig()).bare().dataset.IssuerOfPatientID == "NORTH"


def test_settings_and_ages_are_in_all_objects() -> None:
    checks, content = ("any age", "no input check"), xray_bytes()
    manifest = replace(MANIFEST, ages=(1, 5))
    reporter = Reporter(manifest, segmentation=True, checks=checks)
    report, capture, seg = (
        dcmread(BytesIO(one.content)) for one in reporter.objects(content, predicted(content))
    )
    comments = [str(item.get("TextValue", "")) for item in report.ContentSequence]
    shown = _label(reporter.author, predicted(content).prediction)
    for caution in ("Setting: any age", "Setting: no input check", "The model is for children"):
        assert any(caution in comment for comment in comments)
        assert caution in capture.ImageComments
        assert caution in seg.ImageComments
        assert any(caution in line for line in shown)


@needs("dciodvfy")
def test_dciodvfy_finds_nothing_in_the_cautions(tmp_path: Path) -> None:
    content = xray_bytes()
    result = Predictor(replace(MANIFEST, ages=(1, 5)), BrightnessBackend(), any_age=True)
    made = Reporter(MANIFEST, segmentation=True).objects(
        content, result.predict_bytes(content, "x")
    )
    assert [judged_by_dciodvfy(one.content, tmp_path) for one in made] == [[], [], []]


def labelled_rows(author: Author, prediction: Prediction) -> int:
    """Rows of the capture of a 64 × 56 image, which is enlarged ten times."""
    return len(labelled(np.zeros((64, 56, 3), np.uint8), author, prediction))


@needs("dciodvfy")
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientOrientation": None, "PatientSex": None},
        {"LossyImageCompression": "01", "LossyImageCompressionRatio": "12"},
        {"PixelSpacing": ["0.2", "0.25"]},
    ],
)
def test_dciodvfy_finds_nothing(elements: dict[str, Any], tmp_path: Path) -> None:
    content = made(xray_bytes(**elements))
    assert judged_by_dciodvfy(content, tmp_path) == []
    if "PatientName" in elements:
        assert str(dcmread(BytesIO(content)).PatientName) == "Müller^Jörg"


def test_without_a_prediction_or_unless_asked_for_there_is_none() -> None:

    content = xray_bytes()
    rejected = Reporter(MANIFEST, segmentation=True).objects(content, Result(REJECTED))
    assert [one.kind for one in rejected] == ["report"]
    plain = Reporter(MANIFEST).objects(content, predicted(content))
    assert [one.kind for one in plain] == ["report", "capture"]


def test_predict_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor())
    (tmp_path / "a.dcm").write_bytes(xray_bytes())
    out = tmp_path / "out"
    asked = ["predict", str(tmp_path / "a.dcm"), "--segmentation", "--json", "-q"]
    assert run([*asked, "--dicom-out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)["dicom_out"]
    assert (told["reports"], told["captures"], told["segmentations"]) == (1, 1, 1)
    assert len(list(out.glob("*-segmentation.dcm"))) == 1
    assert run(asked) == 2
