"""The whole way on phantoms: train, resume, evaluate, predict, by files and command line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import FitConfig, IntervalConfig, PreprocessConfig, TrainConfig, from_toml
from pneumoscope.errors import BundleError, DataError, SplitLeakError, UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle, load_networks
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SilentProgress, Task
from pneumoscope.workflows.train import TrainedRun, train
from support.known import known

CONFIG = TrainConfig(
    weights="none",
    views=2,
    keep_val=True,
    preprocess=PreprocessConfig(size=64),
    fit=FitConfig(epochs=6, batch_size=16),
    interval=IntervalConfig(resamples=200),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("way")


@pytest.fixture(scope="module")
def phantoms(shared: Path) -> Path:
    return write_phantoms(shared / "phantoms", 90, 3, size=96)


@pytest.fixture(scope="module")
def finished(shared: Path, phantoms: Path) -> TrainedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
        return train(phantoms, shared / "run", CONFIG)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_run_folder_is_the_contracts(finished: TrainedRun) -> None:
    folder = finished.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.toml",
        "evaluation",
        "history.csv",
        "model",
        "report.html",
        "split.csv",
    ]
    assert from_toml(TrainConfig, folder / "config.toml").preprocess == CONFIG.preprocess
    assert list(rows_of(folder / "split.csv")[0]) == ["path", "label", "patient", "split"]
    history = rows_of(folder / "history.csv")
    assert [(row["seed"], row["stage"]) for row in history] == [("0", "head")] * 6
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    predictions = rows_of(folder / "evaluation" / "predictions.csv")
    labels = rows_of(folder / "evaluation" / "labels.csv")
    assert metrics["n"] == len(predictions) == len(labels)
    for one, other in zip(predictions, labels, strict=True):
        assert Path(one["path"]) == (folder / "evaluation" / other["path"]).resolve()
    assert "http-equiv" in (folder / "report.html").read_text(encoding="utf-8")
    checklist = (folder / "evaluation" / "checklist.html").read_text(encoding="utf-8")
    assert "Recipe frozen, weights none, views per image 2" in checklist
    assert "split train" in (folder / "evaluation" / "figures" / "flow.svg").read_text()


def test_bundle_predicts_as_the_run_did(finished: TrainedRun) -> None:
    rows = rows_of(finished.folder / "evaluation" / "predictions.csv")
    predictor = Predictor.load(finished.folder)
    results = list(predictor.predict_files([row["path"] for row in rows]))
    for row, result in zip(rows, results, strict=True):
        assert result.prediction.probability == pytest.approx(float(row["probability"]), abs=1e-6)
        assert result.prediction.prediction == row["prediction"]


def test_network_and_predictor_agree(finished: TrainedRun, phantoms: Path) -> None:
    """The stock way (Keras model, sigmoid, calibration by hand) gives the predictor's numbers."""
    path = next((phantoms / "test").rglob("*.png"))
    predictor = Predictor.load(finished.folder)
    result = predictor.predict_file(path)
    from PIL import Image

    grey = Image.open(path).convert("L")
    assert grey.size == (96, 96)
    small = np.asarray(
        Image.fromarray(np.asarray(grey, np.float32) / 255).resize(
            (64, 64), Image.Resampling.BILINEAR
        ),
        np.float32,
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    tensor = ((small.clip(0, 1)[..., None] - mean) / std).astype(np.float32)
    (network,) = load_networks(load_bundle(finished.folder))
    raw = float(network.predict_on_batch(tensor[None])[0, 0])
    assert 1 / (1 + np.exp(-known(result.logit))) == pytest.approx(raw, abs=1e-4)


class KilledError(Exception):
    """Stands for SIGKILL."""


class KilledAfter(SilentProgress):
    """A progress that dies when the head has done so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        if unit == "epochs":
            yield self
        else:
            with super().task(title, total, unit) as task:
                yield task

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if self.left <= 0:
            raise KilledError


def test_resumed_run_equals_the_unbroken_one(
    finished: TrainedRun, phantoms: Path, tmp_path: Path
) -> None:
    """By a cache of its own; `test_loop.py` ends a training after each of its epochs."""
    with pytest.raises(KilledError):
        train(phantoms, tmp_path / "run", CONFIG, progress=KilledAfter(4))
    assert (tmp_path / "run" / "checkpoint-head-0.npz").exists()
    again = train(phantoms, tmp_path / "run", CONFIG, resume=True)
    for mine, theirs in zip(again.history, finished.history, strict=True):
        assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)
    mine, theirs = (load_networks(r.bundle)[0].get_weights() for r in (again, finished))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_resume_rejects_other_settings_and_other_data(
    finished: TrainedRun, phantoms: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    with pytest.raises(UsageError, match="is finished; nothing to resume"):
        train(phantoms, run, CONFIG, resume=True)
    (run / "report.html").unlink()  # the last file: without it the run is not finished
    other = replace(CONFIG, views=3)
    with pytest.raises(UsageError, match="the run has views = 2, you gave 3"):
        train(phantoms, run, other, resume=True, given=["views"])
    with pytest.raises(UsageError, match="holds no run"):
        train(phantoms, tmp_path / "nothing", CONFIG, resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        train(phantoms, finished.folder, CONFIG)
    fewer = tmp_path / "fewer"
    shutil.copytree(phantoms, fewer)
    next((fewer / "train").rglob("*.png")).unlink()
    with pytest.raises(DataError, match=r"changed\. Start a new run"):
        train(fewer, run, CONFIG, resume=True)


def test_shared_patients_refuse_to_train(phantoms: Path, tmp_path: Path) -> None:
    leaky = tmp_path / "leaky"
    shutil.copytree(phantoms, leaky)
    image = next((leaky / "train" / "PNEUMONIA").glob("person*_bacteria_*.png"))
    shutil.copy(image, leaky / "test" / "PNEUMONIA" / image.name.replace(".png", "9.png"))
    with pytest.raises(SplitLeakError, match="is in train"):
        train(leaky, tmp_path / "run", CONFIG)


def test_images_that_cant_be_read_are_left_out_of_what_the_model_saw(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: TrainedRun
) -> None:
    cache = finished.folder.parent / "cache"  # of the same images: only what is new is computed
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(cache))
    broken = tmp_path / "broken"
    shutil.copytree(phantoms, broken)
    for split in ("train", "val"):
        next((broken / split / "PNEUMONIA").glob("*.png")).write_bytes(b"text")
    run = train(broken, tmp_path / "run", replace(CONFIG, fit=replace(CONFIG.fit, epochs=2)))
    whole = finished.bundle.manifest.training_data
    assert run.bundle.manifest.training_data.images == whole.images - 1
    assert run.bundle.manifest.training_data.positives == whole.positives - 1
    assert run.evaluation.refused == 1
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "images of train that can&#39;t be read and were skipped: 1," in report
    statuses = [row["status"] for row in rows_of(run.folder / "evaluation" / "predictions.csv")]
    assert statuses.count("refused") == 1


def test_changed_bundle_is_rejected(finished: TrainedRun, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(finished.bundle.folder, copy)
    load_bundle(copy)
    weights = bytearray((copy / "model.keras").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.keras").write_bytes(weights)
    with pytest.raises(BundleError, match="changed or damaged"):
        load_bundle(copy)
    (copy / "bundle.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(BundleError, match="found schema version 99"):
        load_bundle(copy)
    (copy / "empty").mkdir()
    (copy / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="can't be read as JSON"):
        load_bundle(copy)
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        load_bundle(tmp_path / "model" / "empty")


def test_command_line_evaluates_and_predicts(
    finished: TrainedRun, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(finished.folder)]
    code = run(["evaluate", str(phantoms), "--out", str(tmp_path / "e"), *model, "--json", "-q"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["schema_version"] == 1
    assert set(document["metrics"]) == {
        *("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"),
        *("auc", "average_precision", "brier", "ece"),
    }
    (tmp_path / "notes.txt").write_text("not an image")
    out = tmp_path / "p.csv"
    asked = ["predict", str(phantoms / "test"), str(tmp_path / "notes.txt"), "--out", str(out)]
    maps = tmp_path / "maps"
    assert run([*asked, *model, "--heatmaps", str(maps), "-q"]) == 0
    rows = rows_of(out)
    assert len(rows) == document["n"] + 1
    assert rows[-1]["reason"] == "not_an_image"
    assert len(list(maps.glob("*.png"))) == document["n"]
    assert run([*asked, *model, "--strict", "-q"]) == 3
    assert run(["predict", str(tmp_path / "notes.txt"), *model, "-q"]) == 3
    assert run(["info", *model]) == 0
    assert "matches its SHA-256" in capsys.readouterr().out


def test_evaluating_a_split_that_is_not_there_states_which_are(
    finished: TrainedRun, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "only-train"
    shutil.copytree(phantoms / "train", data / "train")
    model = ["--model", str(finished.folder), "--out", str(tmp_path / "e")]
    assert run(["evaluate", str(data), *model]) == 3
    assert "has no test split, found train" in capsys.readouterr().err


def test_data_without_splits_are_evaluated_whole(
    finished: TrainedRun, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(finished.folder), "--out", str(tmp_path / "e"), "--json"]
    assert run(["evaluate", str(phantoms / "test"), *model]) == 0
    spoken = capsys.readouterr()
    assert "has no splits" in spoken.err
    images = len(list((phantoms / "test").rglob("*.png")))
    assert json.loads(spoken.out)["n"] == images


def test_the_runs_own_split_can_be_evaluated(
    finished: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = finished.folder / "split.csv"
    asked = ["evaluate", str(split), "--out", str(tmp_path / "e"), "--split", "val"]
    assert run([*asked, "--model", str(finished.folder), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = finished.evaluation.metrics["auc"].value
    assert document["metrics"]["auc"]["value"] == pytest.approx(wanted, abs=1e-9)
