"""Attributes of a DICOM header for subgroups, without the identity of the patient."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom import dcmread

from pneumoscope.images.dicom.patient import age_band, image_attributes, patient_age
from pneumoscope.images.phantom import draw
from pneumoscope.images.phantom.folder import encode_dicom


@pytest.fixture
def dicom_file(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.write_bytes(encode_dicom(draw(1, "guest", number=1, label=1), serial=1, seed=1))
    return path


def changed(path: Path, **values: object) -> Path:
    header = dcmread(path)
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(path)
    return path


def test_attributes_of_a_dicom_file(dicom_file: Path) -> None:
    changed(
        dicom_file,
        PatientAge="004Y",
        PatientSex="F",
        ViewPosition="AP",
        Manufacturer="Some\tMaker <b>",
        PatientName="Somebody",
    )
    found = image_attributes(dicom_file)
    assert found == {
        "age_band": "1 to 4",
        "sex": "female",
        "view": "AP",
        "manufacturer": "Some Maker <b>",
    }


def test_attributes_that_are_not_stated_are_missing(dicom_file: Path) -> None:
    changed(dicom_file, PatientAge="", PatientSex="", ViewPosition="", Manufacturer="")
    changed(dicom_file, ViewCodeSequence=[])
    assert image_attributes(dicom_file) == {}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("011M", "under 1"),
        ("300D", "under 1"),
        ("018M", "1 to 4"),
        ("005Y", "5 to 17"),
        ("064Y", "40 to 64"),
        ("101Y", "65 or older"),
        ("4", ""),
        ("", ""),
        ("18 M", "1 to 4"),  # as the check of ages reads it
        ("999Y", ""),
    ],
)
def test_age_bands(dicom_file: Path, age: str, band: str) -> None:
    found = patient_age(age, "", "")[0]
    assert (age_band(found) if found else "") == band
    with pydicom.config.disable_value_validation():
        changed(dicom_file, PatientAge=age)
    assert image_attributes(dicom_file).get("age_band", "") == band


def test_age_and_view_are_those_of_the_reader(dicom_file: Path) -> None:
    """Without PatientAge and ViewPosition: by the dates, and by the coded view."""
    changed(dicom_file, PatientAge="", PatientBirthDate="20200101", ViewPosition="")
    changed(dicom_file, StudyDate="", AcquisitionDate="20240229")
    found = image_attributes(dicom_file)
    assert (found["age_band"], found["view"]) == ("1 to 4", "AP")
    view = dcmread(dicom_file).ViewCodeSequence
    view[0].CodeValue, view[0].CodeMeaning = "399173006", "of any wording"
    changed(dicom_file, ViewCodeSequence=view)
    assert image_attributes(dicom_file)["view"] == "LEFT LATERAL"
    changed(dicom_file, ViewPosition="PA")
    assert image_attributes(dicom_file)["view"] == "PA"


def test_other_files_have_no_attributes(tmp_path: Path, dicom_file: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"\x89PNG" + bytes(400))
    assert image_attributes(other) == {}
    assert image_attributes(tmp_path / "none") == {}
    for cut in (140, 200, 400, 700):
        cut_file = tmp_path / f"cut-{cut}"
        cut_file.write_bytes(dicom_file.read_bytes()[:cut])
        assert set(image_attributes(cut_file)) <= {
            "age_band",
            "sex",
            "view",
            "manufacturer",
        }
