"""`evaluate` by columns of the manifest and by DICOM headers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from pneumoscope.cli.app import run
from pneumoscope.config import PreprocessConfig
from pneumoscope.evaluation.evaluate import from_metrics_json
from pneumoscope.images.phantom import draw
from pneumoscope.images.phantom.folder import encode_dicom
from pneumoscope.inference.bundle import Abstention, BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32), threshold=OperatingPoint(0.5, "for the test", "")
)

FAST = ("--resamples", "30")


class MeanBackend:
    """Logit: the mean of the input's first channel."""

    def run(self, batch: np.ndarray) -> Outputs:
        means = 4 * batch[..., 0].mean((1, 2)).astype(np.float32)
        cams = np.ones((len(batch), 2, 2), np.float32)
        return Outputs(means, cams, np.zeros((len(batch), 4), np.float32))


def load(monkeypatch: pytest.MonkeyPatch, manifest: BundleManifest = MANIFEST) -> None:
    monkeypatch.setattr(
        Predictor, "load", lambda model, *_, **__: Predictor(manifest, MeanBackend())
    )


def xrays(folder: Path) -> Path:
    """40 images of two sites; at the second one those with pneumonia are dark and so are missed."""
    rows = ["path,label,patient,site,note"]
    for k in range(40):
        positive, far = k % 2, k >= 28
        level = 60 if positive == far else 190
        grey = np.random.default_rng(k).normal(level, 8, (40, 40)).clip(0, 255)
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"f{k}.png")
        rows.append(f"f{k}.png,{positive},p{k},{'far' if far else 'near'},free text {k}")
    table = folder / "images.csv"
    table.write_text("\n".join(rows))
    return table


def test_a_column_of_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch)
    out = tmp_path / "out"
    assert run(["evaluate", str(xrays(tmp_path)), "--out", str(out), "-q", *FAST]) == 0
    document = json.loads((out / "metrics.json").read_text())
    (column,) = document["groups"]  # free text makes no groups
    assert document["ungrouped"] == {"note": "40 different values, too many to compare (limit 12)"}
    assert (column["name"], column["without"]) == ("site", 0)
    near, far = column["groups"]
    assert (near["name"], near["images"], far["name"], far["images"]) == ("near", 28, "far", 12)
    assert (near["sensitivity"]["value"], far["sensitivity"]["value"]) == (1.0, 0.0)
    assert far["gaps"]["sensitivity"]["value"] == -1.0
    assert far["gaps"]["sensitivity"]["high"] < -0.5
    assert far["too_few"] == ["sensitivity", "specificity", "auc"]
    assert from_metrics_json(document).groups[0].to_dict() == {
        **column,
        "groups": tuple(
            {**group, "too_few": tuple(group["too_few"])} for group in column["groups"]
        ),
    }
    page = (out / "report.html").read_text()
    assert "Differences by site" in page
    assert "too few patients" in page
    assert (out / "figures" / "group-0-sensitivity.svg").is_file()
    assert document["subgroups"] == {}
    assert document["model"]["name"] == "default"
    assert len(document["model"]["fingerprint"]) == 64


def test_dicom_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch)
    for k in range(12):
        folder = tmp_path / "data" / ("NORMAL", "PNEUMONIA")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"image-{k}"
        path.write_bytes(encode_dicom(draw(k, f"p{k}", number=1, label=k % 2), serial=k, seed=k))
        header = dcmread(path)
        header.PatientSex, header.PatientName = ("F", "M")[k // 2 % 2], f"Somebody^{k}"
        header.save_as(path)
    out = tmp_path / "out"
    data = str(tmp_path / "data")
    assert run(["evaluate", data, "--out", str(out), "-q", *FAST]) == 0
    document = json.loads((out / "metrics.json").read_text())
    columns = {column["name"]: column for column in document["groups"]}
    assert {g["name"]: g["images"] for g in columns["sex"]["groups"]} == {"female": 6, "male": 6}
    for name in ("metrics.json", "labels.csv", "predictions.csv", "report.html"):
        assert "Somebody" not in (out / name).read_text()


def test_withheld_predictions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    band = Abstention("band", 0.0, 0.5, "for the test", "")
    load(monkeypatch, replace(MANIFEST, abstention=band))
    out = tmp_path / "out"
    assert run(["evaluate", str(xrays(tmp_path)), "--out", str(out), "-q", *FAST]) == 0
    document = json.loads((out / "metrics.json").read_text())
    withheld = (out / "predictions.csv").read_text().count(",uncertain,")
    assert document["abstention"]["uncertain"] == withheld == 20
    caution = "The model abstains: 20 of 40 predictions are indeterminate (for the test)."
    assert any(caution in one for one in document["cautions"])
    assert caution in (out / "report.html").read_text()
    assert document["confusion_matrix"]["fn"] == 6  # rates are those of the threshold
    assert (out / "report.html").read_text().count("<figcaption><strong>") == 6  # false alarms
