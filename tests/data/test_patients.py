from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from pneumoscope.data.patients import (
    assign_patients,
    dicom_patient_id,
    from_file_name,
    id_series,
    natural_key,
    number_of,
)
from pneumoscope.data.public_tables import Record, with_dicom_header
from pneumoscope.images import budget
from pneumoscope.images.dicom.patient import image_attributes
from pneumoscope.records import ImageRecord
from support.hostile_files import items_before


@pytest.mark.parametrize(
    ("name", "patient", "subtype"),
    [
        ("person417_bacteria_1812.jpeg", "bacteria-417", "bacteria"),
        ("person12_virus_32.JPEG", "virus-12", "virus"),
        ("person1372_virus_2365_1.jpeg", "virus-1372", "virus"),
        ("Person3_Bacteria_10.png", "bacteria-3", "bacteria"),
        ("IM-0117-0001.jpeg", "IM-0117", ""),
        ("IM-0501-0001-0002.jpeg", "IM-0501", ""),
        ("NORMAL2-IM-1442-0001.jpeg", "NORMAL2-IM-1442", ""),
        ("NORMAL2-IM-0587-0001-0002.Jpg", "NORMAL2-IM-0587", ""),
        ("IM-0117-0001", "IM-0117", ""),
    ],
)
def test_kermany_names(name: str, patient: str, subtype: str) -> None:
    facts = from_file_name(name)
    assert facts is not None
    assert (facts.patient, facts.subtype) == (patient, subtype)


@pytest.mark.parametrize("name", ["scan.png", "person1.png", "person_bacteria_1.png", "IM-1.png"])
def test_other_names_have_no_patient(name: str) -> None:
    assert from_file_name(name) is None


def test_numbers_start_again_per_type() -> None:
    one, other = from_file_name("person12_bacteria_1.png"), from_file_name("person12_virus_2.png")
    assert one is not None
    assert other is not None
    assert one.patient != other.patient


@pytest.mark.parametrize(
    ("patient", "kind", "number"),
    [
        ("bacteria-417", "bacteria", 417),
        ("virus-12", "virus", 12),
        ("IM-0117", "IM", 117),
        ("NORMAL2-IM-1442", "NORMAL2-IM", 1442),
        ("P-001", "other", None),
        ("bacteria-" + "9" * 30, "bacteria", None),
    ],
)
def test_series_and_number(patient: str, kind: str, number: int | None) -> None:
    assert id_series(patient) == kind
    assert number_of(patient) == number


def test_natural_order() -> None:
    ids = ["p10", "p2", "p1", "q1", "p02", "10", "9"]
    assert sorted(ids, key=natural_key) == ["9", "10", "p1", "p02", "p2", "p10", "q1"]


@given(st.lists(st.text(), max_size=20))
def test_natural_key_orders_any_texts(texts: list[str]) -> None:
    assert len({natural_key(text) for text in texts}) == len(set(texts))
    sorted(texts, key=natural_key)


def write_dicom(path: Path, patient: str, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset = Dataset()
    dataset.PatientID = patient
    dataset.StudyDescription = "x" * 60
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_dicom_patient_id_whatever_the_name(tmp_path: Path, syntax: str) -> None:
    assert dicom_patient_id(write_dicom(tmp_path / "a.jpeg", "SITE1-7 ", syntax)) == "SITE1-7"


def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", "P7", DeflatedExplicitVRLittleEndian)
    wanted: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, wbits: int) -> None:
            self.inner = real(wbits)

        def decompress(self, content: bytes, most: int) -> bytes:
            wanted.append(most)
            return self.inner.decompress(content, most)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    assert dicom_patient_id(path) == "P7"
    assert wanted == [1 << 20]


@given(st.binary(max_size=300))
def test_broken_dicom_headers_give_no_patient(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + tail)
    assert isinstance(dicom_patient_id(path), str)


@pytest.mark.parametrize("cut", [133, 200, 300])
def test_cut_dicom_headers_give_no_patient(tmp_path: Path, cut: int) -> None:
    path = write_dicom(tmp_path / "a.dcm", "P7")
    path.write_bytes(path.read_bytes()[:cut])
    assert dicom_patient_id(path) == ""


def test_a_header_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of a sequence before the id count, as in the reader of images."""
    path = tmp_path / "a.dcm"
    path.write_bytes(items_before("PatientID", 2000))
    assert dicom_patient_id(path) == "p1"
    monkeypatch.setattr(budget, "MOST_ITEMS", 1000)
    assert dicom_patient_id(path) == ""
    assert with_dicom_header(Record(path, 0)).sex == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    os.mkfifo(path)
    assert dicom_patient_id(path) == ""
    assert with_dicom_header(Record(path, 0)) == Record(path, 0)
    assert image_attributes(path) == {}


def test_missing_and_tiny_files_give_no_patient(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_bytes(b"DICM")
    assert dicom_patient_id(tmp_path / "tiny") == ""
    assert dicom_patient_id(tmp_path / "missing") == ""


def test_manifest_before_dicom_before_name_before_own(tmp_path: Path) -> None:
    kermany = "person1_bacteria_2.jpeg"
    dicom = write_dicom(tmp_path / "person2_virus_1.jpeg", "D9")
    anonymous = write_dicom(tmp_path / "person3_virus_1.jpeg", "")
    plain = tmp_path / "plain.png"
    records = [
        ImageRecord(tmp_path / kermany, 1, "M1"),
        ImageRecord(dicom, 1, "M2"),
        ImageRecord(dicom, 1, ""),
        ImageRecord(anonymous, 1, ""),
        ImageRecord(tmp_path / kermany, 1, ""),
        ImageRecord(plain, 0, ""),
        ImageRecord(tmp_path / "sub" / "plain.png", 0, ""),
    ]
    named, warnings = assign_patients(records, tmp_path)
    assert [record.patient for record in named] == [
        "M1", "M2", "D9", "virus-3", "bacteria-1", "plain.png", "sub/plain.png"
    ]  # fmt: skip
    assert [record.subtype for record in named[:3]] == ["bacteria", "virus", "virus"]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of 7 images name no patient")
