"""The picture of a result, read back by pydicom and judged by dciodvfy; clauses as cited."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pneumoscope.delivery.dicom_report.heatmap import labelled
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.inference.overlay import overlay_rgb
from support.dicom_reports import (
    MANIFEST,
    judged_by_dciodvfy,
    needs,
    patient_xray,
    predicted,
    xray_bytes,
)
from support.image_files import dicom, smooth_grey


def capture_bytes(content: bytes) -> bytes:
    made = Reporter(MANIFEST).objects(content, predicted(content))
    assert [entry.kind for entry in made] == ["report", "capture"]
    return made[1].content


def capture(content: bytes) -> Dataset:
    return dcmread(BytesIO(capture_bytes(content)))


def test_it_stands_in_the_image_s_study_and_names_the_image() -> None:
    # PS3.3 A.8.1; C.7.6.1.1.4: Source Image Sequence; C.8.6.1: drawn on a workstation.
    image = patient_xray()
    sc = capture(dicom(image))
    assert sc.SOPClassUID == SecondaryCaptureImageStorage
    assert (sc.Modality, sc.ConversionType) == ("OT", "WSD")
    assert sc.ImageType[0] == "DERIVED"
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge",
        "StudyInstanceUID", "StudyID", "StudyDate", "AccessionNumber", "StudyDescription",
        "PatientOrientation", "BodyPartExamined",
    ):  # fmt: skip
        assert sc[keyword].value == image[keyword].value, keyword
    assert sc.SeriesInstanceUID != image.SeriesInstanceUID
    (source,) = sc.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_it_shows_the_overlay_whole_with_the_label_below() -> None:
    samples = smooth_grey(500, 512, 4095)
    content = xray_bytes(samples=samples)
    result = predicted(content)
    assert result.image is not None
    assert result.cam is not None
    overlay = overlay_rgb(result.image.pixels, result.cam, MANIFEST.preprocessing)
    shown = capture(content).pixel_array
    assert shown.shape[1] == 512
    np.testing.assert_array_equal(shown[:500], overlay)
    label = shown[500:]
    assert len(label) > 40
    assert (label == 255).any(axis=2).sum() > 500  # white letters on black
    assert label.min() == 0


def test_the_label_is_what_it_should_be() -> None:
    author, result = Author.of(MANIFEST), predicted(xray_bytes())
    overlay = np.zeros((600, 600, 3), np.uint8)
    first = labelled(overlay, author, result.prediction)
    other = labelled(overlay, author, predicted(xray_bytes(), 0.1).prediction)
    # Another result changes the line of the result, and not that of research use.
    changed = np.flatnonzero((first != other).any(axis=(1, 2)))
    assert changed.min() >= 600 + 18 * 3 // 2
    assert not (first[600 : 600 + 18] == 0).all()
    assert "RESEARCH USE ONLY" in capture(xray_bytes()).SeriesDescription
    assert "not for diagnosis" in capture(xray_bytes()).ImageComments


def test_a_small_image_is_enlarged_so_that_the_label_can_be_read() -> None:
    shown = capture(xray_bytes())
    assert shown.Columns >= 512
    assert shown.Columns % 56 == 0


@pytest.mark.parametrize("orientation", [None, "", ["L"], ["LEFT", "F"], ["L", "F", "H"]])
def test_an_orientation_that_nobody_knows_stays_empty(orientation: Any) -> None:
    # PS3.3 C.7.6.1: PatientOrientation is of type 2C.
    sc = capture(xray_bytes(PatientOrientation=orientation))
    assert "PatientOrientation" in sc
    assert not sc.PatientOrientation


def test_once_lossy_is_always_lossy() -> None:
    # PS3.3 C.7.6.1.1.5.
    lossy: dict[str, Any] = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    sc = capture(xray_bytes(**lossy))
    assert {keyword: str(sc[keyword].value) for keyword in lossy} == lossy
    assert "LossyImageCompression" not in capture(xray_bytes())


def test_what_is_burnt_in_the_image_is_burnt_in_here() -> None:
    # PS3.3 C.7.6.1: BurnedInAnnotation is of what identifies the patient; our label does not.
    assert capture(xray_bytes(BurnedInAnnotation="YES")).BurnedInAnnotation == "YES"
    assert capture(xray_bytes(BurnedInAnnotation="NO")).BurnedInAnnotation == "NO"
    assert "BurnedInAnnotation" not in capture(xray_bytes())


@pytest.mark.parametrize(
    ("elements", "side"),
    [
        ({}, None),
        ({"Laterality": "L"}, None),
        ({"BodyPartExamined": None}, ""),
        ({"BodyPartExamined": "LUNG"}, ""),
        ({"BodyPartExamined": "LUNG", "Laterality": "L"}, "L"),
        ({"BodyPartExamined": "LUNG", "Laterality": "BOTH"}, ""),
        ({"BodyPartExamined": "Chest"}, None),
    ],
)
def test_a_part_that_may_be_paired_has_its_side_or_an_empty_one(
    elements: dict[str, Any], side: str | None
) -> None:
    # PS3.3 C.7.3.1: Laterality is of type 2C.
    assert capture(xray_bytes(**elements)).get("Laterality") == side


@pytest.mark.parametrize(
    ("stated", "written"), [("CHEST", "CHEST"), ("chest ", "CHEST"), ("Thorax (p.a.)", None)]
)
def test_the_body_part_is_a_code_in_capitals(stated: str, written: str | None) -> None:
    # PS3.5 6.2: a CS has capitals, digits, spaces and underscores.
    assert capture(xray_bytes(BodyPartExamined=stated)).get("BodyPartExamined") == written


@needs("dciodvfy")
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"BodyPartExamined": "chest"},
        {"PatientOrientation": None, "PatientName": ""},
        {"BodyPartExamined": "LUNG", "Laterality": "L"},
    ],
)
def test_dciodvfy_finds_nothing(elements: dict[str, Any], tmp_path: Path) -> None:
    assert judged_by_dciodvfy(capture_bytes(xray_bytes(**elements)), tmp_path) == []


@needs("dciodvfy")
@pytest.mark.parametrize(
    "elements",
    [
        {"BodyPartExamined": None},
        {"BodyPartExamined": ""},
        {"BodyPartExamined": "LUNG", "Laterality": "BOTH"},
    ],
)
def test_an_unknown_side_is_no_error(elements: dict[str, Any], tmp_path: Path) -> None:
    (warning,) = judged_by_dciodvfy(capture_bytes(xray_bytes(**elements)), tmp_path)
    assert "only permitted to be empty when actually unknown" in warning
