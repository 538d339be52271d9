"""The table of perturbations on phantoms: its numbers, its order, its verdict, what it rejects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import IntervalConfig, PreprocessConfig
from pneumoscope.data.index import index
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.metrics import point_metrics
from pneumoscope.images.perturbation_sweeps import PERTURBATIONS
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from support.known import known
from support.scripts import load_script

# ImageNet's normalisation turns a grey of 0.485 into 0, so that is where this model decides.
MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32, normalisation="imagenet"),
    threshold=OperatingPoint(0.5, "for the test", "nothing"),
    calibration=Calibration("platt", 4.0, 0.0),
)


class MeanBackend:
    """Logit: the mean of the input's first channel. Exposure is all that it looks at."""

    def run(self, batch: np.ndarray) -> Outputs:
        means = batch[..., 0].mean((1, 2)).astype(np.float32)
        cams = np.ones((len(batch), 2, 2), np.float32)
        return Outputs(means, cams, np.zeros((len(batch), 4), np.float32))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/perturbations.py")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("perturbed") / "images", 60, 3, size=64)


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    predictor = Predictor(MANIFEST, MeanBackend())
    monkeypatch.setattr(Predictor, "load", lambda model, **_: predictor)
    return predictor


def exposed(folder: Path, normal: int = 112, pneumonia: int = 136, images: int = 12) -> Path:
    """A split CSV of images whose greys lie about two levels, one on each side of 0.485 (124)."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(images):
        for label, level in enumerate((normal, pneumonia)):
            name = f"{label}-{k}.png"
            grey = level + rng.integers(-5, 6, (60, 70))
            folder.mkdir(exist_ok=True)
            Image.fromarray(grey.astype(np.uint8)).save(folder / name)
            rows.append((name, label, f"p{label}{k // 2}", "test"))
    path = folder / "split.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "patient", "split"), *rows])
    return path


def measured(
    script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> dict[str, Any]:
    assert script.main([*map(str, arguments), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_plain_row_is_what_the_files_themselves_score(
    script: ModuleType, phantoms: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measured(script, capsys, phantoms, "--split", "all")
    records = index(phantoms).records
    labels = [record.label for record in records]
    results = fake_model.predict_files([record.path for record in records])
    wanted = bootstrap_metrics(
        labels,
        [known(result.prediction.probability) for result in results],
        [record.patient for record in records],
        0.5,
        IntervalConfig(),
    ).estimates
    for name in ("auc", "sensitivity", "specificity"):
        found = document["plain"][name]
        assert (found["value"], found["low"], found["high"]) == (
            wanted[name].value,
            wanted[name].low,
            wanted[name].high,
        )
        assert found["low"] < found["value"] < found["high"]
    assert (document["images"], document["refused"]) == (60, 0)
    assert document["patients"] == len({record.patient for record in records})
    assert document["positives"] == sum(labels)
    assert document["threshold"] == {"value": 0.5, "rule": "for the test"}


def test_falls_are_those_of_copies_made_one_by_one_and_the_worst_comes_first(
    script: ModuleType, phantoms: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measured(script, capsys, phantoms, "--split", "train", "--seed", 7)
    records = index(phantoms).subset("train").records
    labels = [record.label for record in records]
    images = [known(fake_model.predict_file(record.path).image).pixels for record in records]
    plain = [known(fake_model.predict_image(image).prediction.probability) for image in images]
    rows = {row["name"]: row for row in document["perturbations"]}
    assert set(rows) == {p.name for p in PERTURBATIONS}
    for perturbation in PERTURBATIONS:
        changed = [
            known(fake_model.predict_image(perturbation.apply(image, 7)).prediction.probability)
            for image in images
        ]
        row = rows[perturbation.name]
        before, after = (point_metrics(labels, each, 0.5) for each in (plain, changed))
        for name in ("sensitivity", "specificity"):
            assert row[name]["value"] == pytest.approx(after[name])
            assert row[f"{name}_fall"] == pytest.approx(before[name] - after[name])
        assert row["auc"]["value"] == pytest.approx(after["auc"])
        assert (row["title"], row["strength"]) == (perturbation.title, perturbation.strength)
    worst = [max(r["sensitivity_fall"], r["specificity_fall"]) for r in document["perturbations"]]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 0.3  # a model that looks at exposure alone


def test_verdict_names_what_falls_and_only_that(
    script: ModuleType, tmp_path: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    data = exposed(tmp_path / "images")
    document = measured(script, capsys, data)
    # Means are 12 of 255 from the threshold: a shift of 40 crosses it, contrast leaves them be.
    assert document["plain"]["auc"]["value"] == 1.0
    assert not document["holds"]
    rows = {row["name"]: row for row in document["perturbations"]}
    assert rows["brighter_40"]["specificity_fall"] == 1.0
    assert rows["brighter_40"]["sensitivity_fall"] == 0.0
    assert rows["darker_40"]["sensitivity_fall"] == 1.0
    assert rows["contrast_double"]["specificity_fall"] == 0.0
    crossing = {"brighter_40", "darker_40", "gamma_06", "gamma_16", "border_10"}
    assert set(document["beyond"]) == crossing
    assert script.main([str(data)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("**Fails**: 5 of 12 take more than 0.050 of sensitivity or specificity")
    assert "brightness +40 of 255 (1.000)" in last
    assert "contrast" not in last


def test_verdict_holds_up_to_the_limit_itself(
    script: ModuleType, tmp_path: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    data = exposed(tmp_path / "images")
    assert measured(script, capsys, data, "--limit", 1)["holds"]
    assert not measured(script, capsys, data, "--limit", 0.999)["holds"]
    assert script.main([str(data), "--limit", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("**Holds**: none of 12 perturbations takes more than 1.000")


def test_markdown_is_a_table_of_all_rows_and_is_what_the_file_holds(
    script: ModuleType, tmp_path: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = exposed(tmp_path / "images"), tmp_path / "new" / "table.md"
    assert script.main([str(data), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {6}
    plain, *metrics, fall, other_fall = rows[2]
    assert (plain, fall, other_fall) == ("as they are", "–", "–")
    # All right, in few patients: no interval collapses (`tests/evaluation/test_edges.py`).
    assert all(re.fullmatch(r"1\.000 \(0\.[56]\d\d–1\.000\)", cell) for cell in metrics), metrics
    assert sorted(row[0] for row in rows[3:]) == sorted(p.title for p in PERTURBATIONS)
    assert "24 images of 12 patients, 12 with pneumonia, 0 rejected" in text
    assert "threshold 0.5000 (for the test)" in text


def test_an_image_that_cant_be_read_is_left_out_of_every_row(
    script: ModuleType, tmp_path: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    data = exposed(tmp_path / "images")
    (data.parent / "0-3.png").write_bytes(b"no image")
    assert script.main([str(data), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["images"], document["refused"]) == (23, 1)
    assert "0-3.png: not_an_image" in err


def test_what_cant_be_measured_is_reported_with_its_exit_code(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = exposed(tmp_path / "images", images=2)
    assert script.main([str(data), "--split", "val"]) == 3
    assert "has no val split, found test" in capsys.readouterr().err
    assert script.main([str(data), "--model", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert "no such folder" in err
    assert out == ""


def test_one_class_alone_is_rejected(
    script: ModuleType, tmp_path: Path, fake_model: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    data = exposed(tmp_path / "images", images=2)
    for name in ("1-0.png", "1-1.png"):
        (data.parent / name).write_bytes(b"no image")
    assert script.main([str(data)]) == 3
    assert "the 2 of 4 images that can be read" in capsys.readouterr().err


def test_a_model_without_a_number_is_reported(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(MeanBackend):
        def run(self, batch: np.ndarray) -> Outputs:
            outputs = super().run(batch)
            outputs.logits[:] = np.nan
            return outputs

    monkeypatch.setattr(Predictor, "load", lambda model, **_: Predictor(MANIFEST, Broken()))
    assert script.main([str(exposed(tmp_path / "images", images=2))]) == 1
    assert "not finite" in capsys.readouterr().err
