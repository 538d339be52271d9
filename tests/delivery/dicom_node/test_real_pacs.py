"""Orthanc, dcmtk and dciodvfy, as Debian has them, with the configuration of examples/pacs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from support import real_dicomweb, real_pacs
from support.dicom_reports import needs
from support.orthanc import in_isolation, isolated


@needs("Orthanc", "storescu", "echoscu", "dciodvfy", "unshare", "ip")
def test_orthanc_shows_the_reports_in_the_studies_of_the_images(tmp_path: Path) -> None:
    if not isolated():
        pytest.skip("no network namespace of its own is allowed here (unshare -n)")
    told = in_isolation(Path(real_pacs.__file__), str(tmp_path), timeout=240)
    assert told["direct"] == 0
    assert told["stopped"] == 0
    found = told["instances"]
    studies: dict[str, set[str]] = {}
    for entry in found:
        studies.setdefault(entry["PatientID"], set()).add(entry["StudyInstanceUID"])
    assert {patient: len(uids) for patient, uids in studies.items()} == {
        "P-0001": 1,
        "P-0002": 1,
        "P-0003": 1,
    }
    for patient in ("P-0001", "P-0002"):
        classes = [e["SOPClassUID"] for e in found if e["PatientID"] == patient]
        assert classes.count(Comprehensive3DSRStorage) == 1
        assert classes.count(SecondaryCaptureImageStorage) == 1
        assert len(classes) == 3
    # The rule routes images, so that the CT got nothing, and neither did reports.
    assert [e["Modality"] for e in found if e["PatientID"] == "P-0003"] == ["CT"]
    assert told["judged"] == [[], [], [], []]


@needs("Orthanc", "dciodvfy", "unshare", "ip")
def test_orthanc_is_searched_and_stored_to_by_dicomweb(tmp_path: Path) -> None:
    if not isolated():
        pytest.skip("no network namespace of its own is allowed here (unshare -n)")
    if not Path(real_dicomweb.PLUGIN).exists():
        pytest.skip("needs Orthanc's DICOMweb plugin: apt-get install orthanc-dicomweb")
    told = in_isolation(Path(real_dicomweb.__file__), str(tmp_path), timeout=240)
    assert told["stopped"] == 0
    found = told["instances"]
    for patient in ("P-0001", "P-0002"):
        own = [entry for entry in found if entry["PatientID"] == patient]
        assert len({entry["StudyInstanceUID"] for entry in own}) == 1
        classes = [entry["SOPClassUID"] for entry in own]
        assert classes.count(Comprehensive3DSRStorage) == 1
        assert classes.count(SecondaryCaptureImageStorage) == 1
    assert len(found) == 6
    assert told["events"].count("received") == 2
    assert told["events"].count("sent") == 4
    assert told["judged"] == [[], [], [], []]
