"""DICOM headers: geometry, chest X-ray or not, and the elements passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.grey import warning_type
from pneumoscope.images.read import DicomInfo, read_bytes, read_image
from support.dicom_images import GREY12, HEIGHT, WIDTH, read, stretched, twelve
from support.image_files import dicom
from support.known import known


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (2 * HEIGHT, WIDTH)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (HEIGHT, 2 * WIDTH)),
        ({"PixelAspectRatio": [3, 2]}, (HEIGHT * 3 // 2, WIDTH)),
        ({"PixelSpacing": [0.1005, 0.1]}, (HEIGHT, WIDTH)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [3, 2]}, (HEIGHT, WIDTH)),
    ],
)
def test_pixels_are_made_square(elements: dict[str, Any], shape: tuple[int, int]) -> None:
    image = read(twelve(**elements))
    assert image.pixels.shape == shape
    resampled = shape != (HEIGHT, WIDTH)
    assert any("not square" in text for text in image.warnings) == resampled
    whole = np.asarray(Image.fromarray(stretched(GREY12).astype(np.float32)).resize(shape[::-1], 2))
    np.testing.assert_allclose(image.pixels, whole, atol=1e-6)


def test_resampling_keeps_to_the_limits() -> None:
    content = dicom(twelve(PixelSpacing=[0.8, 0.1]))
    with pytest.raises(ImageRefusedError) as rejection:
        read_bytes(content, "x", LimitsConfig(max_side=8 * HEIGHT - 1))
    assert rejection.value.reason is Reason.TOO_MANY_PIXELS


def test_impossible_spacing_is_not_used() -> None:
    image = read(twelve(PixelSpacing=[0, 0.1]))
    assert image.pixels.shape == (HEIGHT, WIDTH)
    assert "PixelSpacing" in image.warnings[0]


def test_the_header_is_passed_on() -> None:
    dataset = twelve(
        PatientAge="004Y",
        PatientSex="F",
        Manufacturer="Maker",
        PatientBirthDate="20200101",
        StudyDate="20240229",
        StudyDescription="XR chest",
        SeriesDescription="AP",
    )
    assert read(dataset).dicom == DicomInfo(
        modality="DX",
        body_part="CHEST",
        view_position="AP",
        patient_id="phantom-7",
        photometric="MONOCHROME2",
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        sop_uid=str(dataset.SOPInstanceUID),
        study_date="20240229",
        study_description="XR chest",
        series_description="AP",
        patient_birth_date="20200101",
        patient_age="004Y",
        patient_sex="F",
        manufacturer="Maker",
        transfer_syntax=ExplicitVRLittleEndian,
    )


def test_absent_header_elements_are_empty_text() -> None:
    names = ("PatientID", "ViewPosition", "BodyPartExamined", "StudyInstanceUID")
    absent: dict[str, Any] = dict.fromkeys(names)
    info = read(twelve(**absent)).dicom
    assert info is not None
    assert (info.patient_id, info.view_position, info.body_part, info.study_uid) == ("",) * 4
    assert (info.patient_age, info.patient_sex, info.manufacturer) == ("",) * 3


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "OT", "cr"])
def test_xray_modalities_pass(modality: str) -> None:
    assert read(twelve(Modality=modality)).warnings == ()


@pytest.mark.parametrize("modality", ["CT", "US", "MG", "NM", "PT", "XA", "PR", "SEG", "ECG"])
def test_other_modalities_are_rejected(modality: str) -> None:
    with pytest.raises(ImageRefusedError, match=modality) as rejection:
        read(twelve(Modality=modality))
    assert rejection.value.reason is Reason.WRONG_MODALITY


def test_missing_modality_passes_by_its_class_with_a_warning() -> None:
    assert "no modality" in read(twelve(Modality=None)).warnings[0]


@pytest.mark.parametrize("part", ["chest", "CHEST/ABDOMEN", "THORAX", "LUNG", "WHOLEBODY", "RIBS"])
def test_parts_with_lungs_pass(part: str) -> None:
    assert read(twelve(BodyPartExamined=part)).warnings == ()


@pytest.mark.parametrize("part", ["HAND", "Skull", "ABDOMEN", "KNEE", "C SPINE", "FOOT"])
def test_parts_without_lungs_are_rejected(part: str) -> None:
    with pytest.raises(ImageRefusedError) as rejection:
        read(twelve(BodyPartExamined=part))
    assert rejection.value.reason is Reason.WRONG_BODY_PART


def test_an_odd_part_and_an_odd_view_give_warnings() -> None:
    image = read(twelve(BodyPartExamined="PORT", ViewPosition="LLD"))
    assert "PORT" in image.warnings[0]
    assert "LLD" in image.warnings[1]


@pytest.mark.parametrize("view", ["LL", "RL", "lateral", "LAT", "LLAT", "RLAT", "LAT ERECT"])
def test_lateral_views_are_rejected(view: str) -> None:
    with pytest.raises(ImageRefusedError, match=f"{view!r}.*frontal") as rejection:
        read(twelve(ViewPosition=view))
    assert rejection.value.reason is Reason.LATERAL_VIEW


@pytest.mark.parametrize("view", ["LAO", "RAO", "SWIMMERS", "AP LLD", "PA LAT", "RLD", "AP AXIAL"])
def test_other_views_than_frontal_ones_give_a_warning(view: str) -> None:
    (warning,) = read(twelve(ViewPosition=view)).warnings
    assert warning == f"its view is {view!r}; upright frontal images are expected"
    assert warning_type(warning) == "its view is …, upright frontal images are expected"


@pytest.mark.parametrize("view", ["PA", "AP", "", "AP ERECT", "postero-anterior"])
def test_frontal_and_unstated_views_pass(view: str) -> None:
    assert read(twelve(ViewPosition=view)).warnings == ()


@pytest.mark.parametrize(
    ("meaning", "passes"),
    [
        ("left lateral", False),
        ("Medio-lateral", False),
        ("postero-anterior", True),
        ("left lateral decubitus", True),
        ("right posterior oblique, lateral", True),
    ],
)
def test_a_coded_view_counts_where_no_other_is_stated(meaning: str, passes: bool) -> None:
    code = Dataset()
    code.CodeMeaning = meaning
    coded = twelve(ViewPosition=None, ViewCodeSequence=[code])
    if passes:
        info = read(coded).dicom
        assert info is not None
        assert info.view_position == meaning
    else:
        with pytest.raises(ImageRefusedError, match=meaning) as rejection:
            read(coded)
        assert rejection.value.reason is Reason.LATERAL_VIEW
    stated = twelve(ViewPosition="AP", ViewCodeSequence=[code])
    assert known(read(stated).dicom).view_position == "AP"


@pytest.mark.parametrize(
    ("series", "study", "reason"),
    [
        ("Knee AP", "", Reason.WRONG_BODY_PART),
        ("", "XR LEFT HAND", Reason.WRONG_BODY_PART),
        ("", "L SPINE 2 views", Reason.WRONG_BODY_PART),
        ("ABDOMEN", "CHEST AND ABDOMEN", Reason.WRONG_BODY_PART),
        ("CHEST AP", "CHEST AND ABDOMEN", None),
        ("", "Chest and abdomen", None),
        ("", "", None),
        ("AP", "XR portable", None),
        ("LATERAL", "Chest 2 views", Reason.LATERAL_VIEW),
        ("Thorax seitlich", "", Reason.LATERAL_VIEW),
        ("", "CHEST LAT", Reason.LATERAL_VIEW),
        ("", "CHEST PA AND LATERAL", None),
        ("PA", "CHEST LATERAL", None),
        ("CHEST LATERAL DECUBITUS", "", None),
    ],
)
def test_descriptions_decide_if_part_and_view_are_not_stated(
    series: str, study: str, reason: Reason | None
) -> None:
    said: dict[str, Any] = {"SeriesDescription": series, "StudyDescription": study}
    silent = twelve(BodyPartExamined=None, ViewPosition=None, **said)
    if reason is None:
        assert read(silent).format == "dicom"
    else:
        with pytest.raises(ImageRefusedError, match=series or study) as rejection:
            read(silent)
        assert rejection.value.reason is reason
    assert read(twelve(**said)).format == "dicom"  # stated values take precedence


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm"])
def test_a_dicom_file_with_a_tiff_header_as_preamble_is_detected(name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    assert path.read_bytes().startswith((b"II", b"MM"))
    with pytest.raises(ImageRefusedError, match=name[:2]) as rejection:
        read_image(path)
    assert rejection.value.reason is Reason.WRONG_MODALITY


def test_pydicom_warnings_are_not_shown() -> None:
    dataset = twelve(PatientAge="four", StudyInstanceUID="1.02.x")
    assert known(read(dataset).dicom).patient_age == "four"


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "DX"),  # CT
        ("1.2.840.10008.5.1.4.1.1.1.2", "DX"),  # mammography
        ("1.2.840.10008.5.1.4.1.1.88.11", "OT"),  # basic text SR
    ],
)
def test_a_class_that_contradicts_the_modality_is_rejected(sop_class: str, modality: str) -> None:
    with pytest.raises(ImageRefusedError, match="object of class") as rejection:
        read(twelve(SOPClassUID=sop_class, Modality=modality))
    assert rejection.value.reason is Reason.WRONG_MODALITY


def test_a_private_class_with_a_modality_is_accepted() -> None:
    assert read(twelve(SOPClassUID="1.2.392.200036.9125.1.1.2", Modality="CR")).warnings == ()


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
        {"PresentationIntentType": "FOR PROCESSING"},
    ],
)
def test_an_image_for_processing_gives_a_warning(elements: dict[str, Any]) -> None:
    (warning,) = read(twelve(**elements)).warnings
    assert "FOR PROCESSING" in warning
    assert "FOR PRESENTATION image of the same study" in warning
    assert read(twelve(PresentationIntentType="FOR PRESENTATION")).warnings == ()


def test_class_decides_where_no_modality_is_stated() -> None:
    capture = "1.2.840.10008.5.1.4.1.1.7"
    assert "no modality" in read(twelve(Modality=None, SOPClassUID=capture)).warnings[0]
    assert "no modality" in read(twelve(Modality=None, SOPClassUID=f"{capture}.2")).warnings[0]
    photograph = "1.2.840.10008.5.1.4.1.1.77.1.4"
    with pytest.raises(ImageRefusedError, match="Photographic") as rejection:
        read(twelve(Modality=None, SOPClassUID=photograph))
    assert rejection.value.reason is Reason.WRONG_MODALITY
