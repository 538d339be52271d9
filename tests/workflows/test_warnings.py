"""What is odd about files is counted at the end of `predict`, `evaluate` and `stress`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import IntervalConfig, PreprocessConfig, StressConfig
from pneumoscope.images.phantom import draw
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT
from pneumoscope.workflows.stress import run_stress
from support.dicom_images import TWELVE
from support.dicom_reports import BrightnessBackend
from support.image_files import dicom, xray

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32), threshold=OperatingPoint(0.5, "for the test", "")
)
KIND = "its window (centre …, width …) clips …% of the pixels, so it was not used"
WINDOWS = ((128, 256), (2048, 4096), (100, 200), (2048, 4096))


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(MANIFEST, BrightnessBackend())
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four DICOM images of two classes, two with a window of 8 bits on values of 12."""
    for k, (centre, width) in enumerate(WINDOWS):
        grey = draw(3, f"p{k}", 0, k % 2, size=96).pixels
        window = {"WindowCenter": centre, "WindowWidth": width, "PatientID": f"p{k}"}
        content = dicom(xray(np.rint(grey * 4095).astype("u2"), **TWELVE, **window))
        folder = tmp_path / "images" / ("NORMAL", "PNEUMONIA")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.dcm").write_bytes(content)
    return tmp_path / "images"


def test_predict_counts_them_by_kind(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    assert run(["predict", str(data), "--out", str(out)]) == 0
    assert f"warnings  2 × {KIND}" in capsys.readouterr().out
    with out.open(newline="", encoding="utf-8") as stream:
        found = {Path(row["path"]).stem: row["warnings"] for row in csv.DictReader(stream)}
    assert {name for name, warnings in found.items() if warnings} == {"0", "2"}
    assert "(centre 128, width 256)" in found["0"]
    assert run(["predict", str(data), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["warnings"] == {KIND: 2}
    assert [bool(row["warnings"]) for row in document["predictions"]] == [True, True, False, False]


def test_evaluate_counts_them_by_kind(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    assert run(["evaluate", str(data), "--out", str(out), "--resamples", "5"]) == 0
    assert f"warnings  2 × {KIND}" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["warnings"] == {KIND: 2}
    assert "warnings" in (out / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]


def test_stress_counts_them_by_kind(data: Path, tmp_path: Path) -> None:
    config = StressConfig(limit=4, shortcuts=False)
    for resume in (False, True):
        document, text = run_stress(
            data,
            tmp_path / "stress",
            "m",
            "all",
            config,
            IntervalConfig(resamples=5),
            None,
            SILENT,
            resume=resume,
        )
        assert document["warnings"] == {KIND: 2}
        assert f"warnings  2 × {KIND}" in text
