"""`fetch --pseudonyms`: with pseudonyms a file is rejected for the same reasons."""

from __future__ import annotations

from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from pneumoscope.delivery import pseudonyms
from pneumoscope.delivery.pacs import FetchedFolder
from pneumoscope.delivery.pseudonyms import Pseudonyms
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.dicom.patient import AgeGate
from pneumoscope.images.phantom import draw
from pneumoscope.images.phantom.folder import encode_dicom
from pneumoscope.images.read import read_bytes
from support.dicom_reports import judged_by_dciodvfy, needs, patient_xray, xray_bytes
from support.image_files import dicom
from support.known import known

FACTS = {
    **{"image": "1.2", "study": "1.3", "series": "1.4", "accession": "A", "patient": "P"},
    **{"study_date": "20240229", "modality": "DX"},
}


def coded(value: str, scheme: str, meaning: str | None) -> dict[str, Any]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, scheme
    if meaning is not None:
        item.CodeMeaning = meaning
    return {"ViewPosition": None, "ViewCodeSequence": [item]}


def pseudonymous(content: bytes) -> bytes:
    return known(Pseudonyms(b"k" * 32).file(content, FACTS))


def reason(content: bytes) -> Reason | None:
    try:
        AgeGate((1, 5)).warnings(read_bytes(content, "x"))
    except ImageRefusedError as rejection:
        return rejection.reason
    return None


NO_PART: dict[str, Any] = {"BodyPartExamined": None, "ViewPosition": None}
NO_AGE: dict[str, Any] = {"PatientAge": None, "PatientBirthDate": "19600101", "StudyDate": ""}


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"ViewPosition": "LLAT"}, Reason.LATERAL_VIEW),
        (coded("R-10236", "SRT", "left lateral"), Reason.LATERAL_VIEW),
        (coded("399173006", "SCT", "seen by SECRET"), Reason.LATERAL_VIEW),
        (coded("399173006", "SCT", None), Reason.LATERAL_VIEW),
        (coded("SECRET", "99LOCAL", "SECRET lateral"), Reason.LATERAL_VIEW),
        (coded("R-10206", "SRT", "antero-posterior"), None),
        (coded("SECRET", "99LOCAL", "SECRET decubitus"), None),
        ({**NO_PART, "SeriesDescription": "SECRET lateral"}, Reason.LATERAL_VIEW),
        ({**NO_PART, "SeriesDescription": "SECRET hand"}, Reason.WRONG_BODY_PART),
        ({**NO_PART, "SeriesDescription": "SECRET", "StudyDescription": "L SPINE"}, "part"),
        ({**NO_AGE, "AcquisitionDate": "20240229"}, Reason.OUTSIDE_AGE_RANGE),
        ({**NO_AGE, "ContentDate": "20240229"}, Reason.OUTSIDE_AGE_RANGE),
        ({**NO_AGE, "PatientAge": "SECRET", "SeriesDate": "20240229"}, Reason.OUTSIDE_AGE_RANGE),
        (NO_AGE, None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom reads odd values aloud
def test_the_reason_is_the_same_under_pseudonyms(
    elements: dict[str, Any], expected: Reason | str | None
) -> None:
    child = {"PatientAge": "004Y", "PatientBirthDate": "20200101", "StudyDescription": None}
    content = xray_bytes(1, **{**child, **elements})
    made = pseudonymous(content)
    assert reason(content) == (Reason.WRONG_BODY_PART if expected == "part" else expected)
    assert reason(made) == reason(content)
    assert b"SECRET" not in made


def test_a_coded_view_is_whole_and_in_the_words_of_the_standard() -> None:
    # PS3.3 table 8.8-1: Code Meaning is of type 1.
    made = dcmread(BytesIO(pseudonymous(xray_bytes(1, **coded("R-10236", "SRT", "SECRET")))))
    (view,) = made.ViewCodeSequence
    assert (view.CodeValue, view.CodingSchemeDesignator) == ("399173006", "SCT")
    assert view.CodeMeaning == "left lateral"
    unknown = dcmread(BytesIO(pseudonymous(xray_bytes(1, **coded("1", "99LOCAL", "other")))))
    assert "ViewCodeSequence" not in unknown


def test_private_elements_overlays_and_texts_do_not_get_through() -> None:
    dataset = dcmread(BytesIO(xray_bytes(1, StudyDate="20260901")))
    dataset.add_new(0x00190010, "LO", "SECRET private")
    dataset.add_new(0x60003000, "OW", b"SECRET overlay..")
    dataset.ImageComments = "SECRET comment"
    dataset.OtherPatientIDs = "SECRET id"
    del dataset.PatientAge
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 16], b"\0\1\2\3\4\5\6\7"
    item.LUTExplanation = "SECRET table"
    dataset.VOILUTSequence = [item]
    dataset.InstitutionName = "SECRET hospital"
    content = BytesIO()
    dataset.save_as(content)
    written = pseudonymous(content.getvalue())
    assert b"SECRET" not in written
    made = dcmread(BytesIO(written))
    assert made.VOILUTSequence[0].LUTDescriptor == [4, 0, 16]
    assert made.PatientAge == "066Y"  # 1960-07-04 to 2026-09-01


def test_a_deflated_bomb_gets_no_pseudonyms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that inflates beyond any image is not inflated by the DICOM library."""
    content = dicom(patient_xray(1), "1.2.840.10008.1.2.1.99")
    monkeypatch.setattr(pseudonyms, "_MOST_INFLATED", 1000)
    folder = FetchedFolder(tmp_path / "got", 1 << 24, 0, pseudonyms=True)
    assert not folder.add(content)
    assert not list((tmp_path / "got").rglob("*.dcm"))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"])
def test_every_encoding_is_kept(syntax: str) -> None:
    content = dicom(patient_xray(1), syntax)
    made = dcmread(BytesIO(pseudonymous(content)))
    assert made.file_meta.TransferSyntaxUID == syntax
    assert made.PixelData == dcmread(BytesIO(content)).PixelData
    assert made.SOPInstanceUID == Pseudonyms(b"k" * 32).of("image", FACTS["image"])


@needs("dciodvfy")
@pytest.mark.parametrize(
    ("scheme", "region"), [("SCT", "51185008"), ("SCT", "816094009"), ("SRT", "T-D3000")]
)
def test_a_file_under_pseudonyms_is_whole_by_the_standard(
    tmp_path: Path, scheme: str, region: str
) -> None:
    phantom = dcmread(BytesIO(encode_dicom(draw(1, "guest", number=1, label=1), serial=1, seed=1)))
    phantom.AnatomicRegionSequence[0].CodeValue = region
    phantom.AnatomicRegionSequence[0].CodingSchemeDesignator = scheme
    phantom.AnatomicRegionSequence[0].CodeMeaning = "SECRET"
    content = BytesIO()
    phantom.save_as(content)
    made = pseudonymous(content.getvalue())
    assert [line for line in judged_by_dciodvfy(made, tmp_path) if line.startswith("Error")] == []
    assert b"SECRET" not in made
    kept = dcmread(BytesIO(made))
    assert kept.ImageType == phantom.ImageType
    assert kept.AnatomicRegionSequence[0].CodeMeaning == "Chest"


def test_a_region_by_an_unknown_code_is_left_out() -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "SECRET", "99X", "SECRET"
    made = pseudonymous(xray_bytes(1, AnatomicRegionSequence=[item]))
    assert b"SECRET" not in made
    assert len(dcmread(BytesIO(made)).AnatomicRegionSequence) == 0


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [(12, 11), (10, 12)])
def test_overlays_in_unused_bits_are_cleared(bits: tuple[int, int], syntax: str) -> None:
    clean = patient_xray(1, BitsStored=bits[0], HighBit=bits[1])
    values = np.frombuffer(clean.PixelData, "<u2")
    low = clean.HighBit - clean.BitsStored + 1
    values = (values >> low & (1 << clean.BitsStored) - 1) << low
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    clean.PixelData = values.astype(order).tobytes()
    marked = deepcopy(clean)
    marked.PixelData = (values | 0x8000).astype(order).tobytes()
    marked.add_new(0x60000100, "US", 16)
    marked.add_new(0x60000102, "US", 15)
    written = pseudonymous(dicom(marked, syntax))
    made = dcmread(BytesIO(written))
    assert made.PixelData == clean.PixelData
    mine, theirs = read_bytes(written, "x"), read_bytes(dicom(clean, syntax), "x")
    assert np.array_equal(mine.pixels, theirs.pixels)


def test_overlays_in_unused_bits_of_compressed_pixels_are_turned_away() -> None:
    dataset = patient_xray(1)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    made = Pseudonyms(b"k" * 32)
    assert made.file(dicom(dataset, ExplicitVRLittleEndian), FACTS) is not None
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert made.file(dicom(dataset, RLELossless), FACTS) is None
    dataset[0x60000102].value = 0  # one of the stored bits: an overlay that is none
    assert made.file(dicom(dataset, RLELossless), FACTS) is not None


def test_segmented_palettes_are_kept() -> None:
    content = xray_bytes(1, SegmentedRedPaletteColorLookupTableData=b"\0\0\1\0")
    made = dcmread(BytesIO(pseudonymous(content)))
    assert made.SegmentedRedPaletteColorLookupTableData == b"\0\0\1\0"
