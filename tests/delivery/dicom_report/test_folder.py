"""`predict --dicom-out`: files for DICOM inputs, notes for others, and the batch goes on."""

from __future__ import annotations

import json
import shutil
from importlib import util
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from pneumoscope.cli.app import run
from pneumoscope.delivery.dicom_report.objects import ReportFolder
from pneumoscope.delivery.fhir import FhirFolder
from pneumoscope.inference.overlay import shrunk
from pneumoscope.inference.predictor import Predictor
from support.dicom_reports import MANIFEST, predictor, xray_bytes
from support.image_files import smooth_grey


@pytest.fixture(autouse=True)
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor())


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(xray_bytes(1))
    (folder / "b.dcm").write_bytes(xray_bytes(2, Modality="CT"))
    Image.fromarray(smooth_grey().astype(np.uint8)).save(folder / "c.png")
    (folder / "d.dcm").write_bytes(xray_bytes(3, StudyInstanceUID=None))
    (folder / "e.dcm").write_bytes(xray_bytes(5))
    return folder


def test_every_dicom_input_gets_a_report_and_every_other_one_a_note(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["predict", str(xrays), "--dicom-out", str(out), "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    told = document["dicom_out"]
    assert (told["reports"], told["captures"], told["without"]) == (3, 2, 2)
    assert {Path(note["path"]).name: note["note"] for note in told["notes"]} == {
        "c.png": "it is a png file, which belongs to no study. DICOM reports are written of DICOM "
        "files",
        "d.dcm": "its StudyInstanceUID is missing; a report must refer to the image by one. Ask "
        "whoever made the file to write it",
    }
    assert "c.png: no DICOM report: it is a png file" in shown.err
    assert document["counts"] == {"ok": 4, "refused": 1, "error": 0}
    made = [dcmread(path) for path in sorted(out.iterdir())]
    kinds = [dataset.SOPClassUID for dataset in made]
    assert kinds.count(Comprehensive3DSRStorage) == 3
    assert kinds.count(SecondaryCaptureImageStorage) == 2
    assert {d.PatientID for d in made} == {"P-0001", "P-0002", "P-0005"}
    names = {path.name[0] for path in out.iterdir()}
    assert names == {"a", "b", "e"}


def test_a_repeated_run_writes_the_same_objects_again(xrays: Path, tmp_path: Path) -> None:
    def uids() -> dict[str, str]:
        assert run(["predict", str(xrays), "--dicom-out", str(tmp_path / "out"), "-q"]) == 0
        found = (tmp_path / "out").iterdir()
        return {path.name: str(dcmread(path).SOPInstanceUID) for path in found}

    assert uids() == uids()
    assert len(uids()) == 5


def test_a_later_result_leaves_no_objects_of_an_earlier_one(tmp_path: Path) -> None:
    def kinds(content: bytes, *, segmentation: bool) -> set[str]:
        (tmp_path / "a.dcm").write_bytes(content)
        reports = ReportFolder(tmp_path / "out", MANIFEST, segmentation=segmentation)
        for result in predictor().predict_files([tmp_path / "a.dcm"], keep=shrunk):
            reports.add(result)
        return {path.stem.rsplit("-", 1)[1] for path in (tmp_path / "out").iterdir()}

    assert kinds(xray_bytes(1), segmentation=True) == {"report", "capture", "segmentation"}
    assert kinds(xray_bytes(1), segmentation=False) == {"report", "capture"}
    assert kinds(xray_bytes(1, Modality="CT"), segmentation=False) == {"report"}


def test_two_images_with_one_uid_get_objects_of_their_own(tmp_path: Path) -> None:
    # PS3.5 9: one UID, one object.
    other = smooth_grey(64, 56, 4095, seed=9)[::-1]
    for name, content in (("a", xray_bytes(1)), ("b", xray_bytes(1, samples=other))):
        (tmp_path / f"{name}.dcm").write_bytes(content)
    shutil.copy(tmp_path / "a.dcm", tmp_path / "c.dcm")
    reports = ReportFolder(tmp_path / "out", MANIFEST)
    resources = FhirFolder(tmp_path / "fhir", MANIFEST)
    for result in predictor().predict_files(sorted(tmp_path.glob("*.dcm"))):
        reports.add(result)
        resources.add(result)
    paths = sorted((tmp_path / "out").glob("*-report.dcm"))
    first, second, copy = (dcmread(path).SOPInstanceUID for path in paths)
    assert first == copy != second
    alone = ReportFolder(tmp_path / "alone", MANIFEST)
    alone.add(predictor().predict_file(tmp_path / "b.dcm"))
    (path,) = (tmp_path / "alone").glob("*-report.dcm")
    assert dcmread(path).SOPInstanceUID == second  # in another run, and in another order
    bundles = [json.loads(path.read_text()) for path in sorted((tmp_path / "fhir").iterdir())]
    one, two, same = (bundle["identifier"]["value"] for bundle in bundles)
    assert one == same != two


def test_what_is_reported_at_the_end(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["predict", str(xrays), "--dicom-out", str(tmp_path / "out")])
    assert "(3 reports, 2 captures, 2 inputs without)" in capsys.readouterr().out


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_changed_meanwhile_gets_no_report(
    xrays: Path, tmp_path: Path, refused: bool
) -> None:
    if refused:
        (xrays / "a.dcm").write_bytes(xray_bytes(1, BodyPartExamined="HAND"))
    reports = ReportFolder(tmp_path / "out", MANIFEST)
    result = predictor().predict_file(xrays / "a.dcm")
    assert result.status == ("refused" if refused else "ok")
    (xrays / "a.dcm").write_bytes(xray_bytes(9))
    reports.add(result)
    assert reports.reports == 0
    assert "changed" in reports.notes[0][1]
    assert list((tmp_path / "out").iterdir()) == []


def test_without_the_extra_it_states_what_to_install(
    xrays: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert run(["predict", str(xrays), "--dicom-out", str(tmp_path / "out")]) == 4
    assert "pip install 'pneumoscope[dicom]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
