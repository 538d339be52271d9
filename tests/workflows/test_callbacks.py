"""What follows a training as it goes on: callbacks, history.csv, TensorBoard; its arguments."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from pneumoscope.config import (
    RECIPES,
    FinetuneConfig,
    FitConfig,
    IntervalConfig,
    PreprocessConfig,
    TrainConfig,
)
from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.engine import load_model
from pneumoscope.inference.predictor import Predictor
from pneumoscope.training.recipes import StageEpoch
from pneumoscope.workflows.tracking import HISTORY_COLUMNS, MLflow, TensorBoard, crc32c
from pneumoscope.workflows.train import TrainedRun, _chosen, train
from support.small_network import small_network

CONFIG = TrainConfig(
    recipe="finetune",
    weights="none",
    views=1,
    keep_val=True,
    flip=True,
    seeds=(0, 1),
    preprocess=PreprocessConfig(size=32),
    fit=FitConfig(epochs=2, batch_size=8),
    finetune=FinetuneConfig(head_epochs=2),
    interval=IntervalConfig(resamples=50),
)
STAGES = [
    (seed, stage, epoch) for seed in (0, 1) for stage in ("head", "network") for epoch in (0, 1)
]


class Stopped(Exception):  # noqa: N818 - no error: a callback's way to stop
    """What a callback raises."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("callbacks") / "phantoms", 40, 1, size=64)


@pytest.fixture(scope="module")
def followed(
    data: Path, tmp_path_factory: pytest.TempPathFactory, small: None
) -> tuple[TrainedRun, list[StageEpoch], list[list[dict[str, str]]], Path]:
    """A run, what its callback received, `history.csv` at each call, and the event files."""
    folder = tmp_path_factory.mktemp("followed")
    received: list[StageEpoch] = []
    files: list[list[dict[str, str]]] = []

    def follow(epoch: StageEpoch) -> None:
        received.append(epoch)
        files.append(rows_of(folder / "run" / "history.csv"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        logger = TensorBoard(folder / "logs")
        run = train(data, folder / "run", CONFIG, callbacks=[follow, logger])
    return run, received, files, folder / "logs"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_callbacks_receive_every_epoch_when_it_ends(followed: Any) -> None:
    run, received, files, _ = followed
    assert [(each.seed, each.stage, each.epoch) for each in received] == STAGES
    assert tuple(received) == run.history
    assert [len(rows) for rows in files] == list(range(1, len(STAGES) + 1))


def test_the_history_ends_with_the_accuracy(followed: Any) -> None:
    run, _, files, _ = followed
    rows = rows_of(run.folder / "history.csv")
    assert rows == files[-1]
    assert tuple(rows[0])[-2:] == ("seconds", "val_accuracy")
    assert tuple(rows[0]) == HISTORY_COLUMNS
    count = len([row for row in rows_of(run.folder / "split.csv") if row["split"] == "val"])
    for row, epoch in zip(rows, run.history, strict=True):
        assert float(row["val_accuracy"]) == epoch.val_accuracy
        right = epoch.val_accuracy * count
        assert 0 <= round(right) <= count
        assert right == pytest.approx(round(right))
    frame = run.history_frame()
    assert frame.columns == list(HISTORY_COLUMNS)
    assert frame["stage"].to_list() == [row["stage"] for row in rows]
    assert frame["val_accuracy"].dtype == pl.Float64


def test_a_callback_can_stop_a_run_that_is_resumed_later(
    data: Path, followed: Any, tmp_path: Path
) -> None:
    def stop(epoch: StageEpoch) -> None:
        seen.append(epoch)
        if len(seen) == 3:
            raise Stopped

    seen: list[StageEpoch] = []
    with pytest.raises(Stopped):
        train(data, tmp_path / "run", CONFIG, callbacks=[stop])
    stopped = rows_of(tmp_path / "run" / "history.csv")
    assert len(stopped) == 3
    rest: list[StageEpoch] = []
    run = train(data, tmp_path / "run", resume=True, callbacks=[rest.append])
    assert [(each.seed, each.stage, each.epoch) for each in rest] == STAGES[3:]
    timeless = [replace(epoch, seconds=0) for epoch in run.history]
    assert timeless == [replace(epoch, seconds=0) for epoch in followed[0].history]
    assert rows_of(tmp_path / "run" / "history.csv")[:3] == stopped


def test_tensorboards_own_reader_reads_the_event_files(followed: Any) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    run, _, _, folder = followed
    names = ["head-seed0", "head-seed1", "network-seed0", "network-seed1"]
    assert sorted(path.name for path in folder.iterdir()) == names
    found = {}
    for name in names:
        (path,) = (folder / name).iterdir()
        first, *events = tensorflow.compat.v1.train.summary_iterator(str(path))
        assert first.file_version == "brain.Event:2"
        for event in events:
            scalars = {value.tag: value.simple_value for value in event.summary.value}
            found[name, event.step] = scalars
            assert event.wall_time > first.wall_time - 1
    assert len(found) == len(run.history)
    for epoch in run.history:
        scalars = found[f"{epoch.stage}-seed{epoch.seed}", epoch.epoch + 1]
        assert scalars == {
            "loss/train": np.float32(epoch.loss),
            "loss/validation": np.float32(epoch.val_loss),
            "auc/validation": np.float32(epoch.val_auc),
            "learning_rate": np.float32(epoch.learning_rate),
            "accuracy/validation": np.float32(epoch.val_accuracy),
        }


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_event_files_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("taken", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file, wanted a folder"):
        TensorBoard(tmp_path / "logs")


def test_mlflow_gets_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in with MLflow's signature."""
    logged: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(metrics: dict[str, float], step: int | None = None) -> None:
        logged.append((metrics, step))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=log_metrics))
    MLflow()(StageEpoch(1, 1e-3, 0.5, 0.6, 0.9, 2.0, 0.8, seed=3, stage="head"))
    values = {"loss/train": 0.5, "loss/validation": 0.6, "auc/validation": 0.9}
    values |= {"learning_rate": 1e-3, "accuracy/validation": 0.8}
    assert logged == [({f"head-seed3/{name}": value for name, value in values.items()}, 2)]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ExtraMissingError, match=r"pip install 'pneumoscope\[mlflow\]'"):
        MLflow()


def test_the_keras_model_and_its_preprocessing_give_the_logits_of_the_predictor(
    data: Path, followed: Any
) -> None:
    run = followed[0]
    predictor = Predictor.load(run.folder, input_check=False)
    images = sorted((data / "test").rglob("*.png"))
    model = load_model(run.folder)
    probabilities = model.predict(predictor.preprocess(images), verbose=0)[:, 0]
    logits = np.array([result.logit for result in predictor.predict(images)])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_recipe_and_single_settings_stand_for_a_configuration() -> None:
    config, given = _chosen(None, "scratch", {"epochs": 3, "fit": {"batch_size": 8}, "views": 2})
    base = RECIPES["scratch"]
    assert config == replace(base, views=2, fit=replace(base.fit, epochs=3, batch_size=8))
    assert given == {"recipe", "fit.epochs", "fit.batch_size", "views"}
    config, given = _chosen(CONFIG, None, {"preprocess": PreprocessConfig(size=64)})
    assert config == replace(CONFIG, preprocess=PreprocessConfig(size=64))
    assert {"preprocess.size", "preprocess.fit"} <= given
    assert _chosen(None, None, {}) == (TrainConfig(), set())
    assert _chosen(CONFIG, "finetune", {})[0] == CONFIG
    with pytest.raises(UsageError, match="found 'scratch' beside a configuration of 'finetune'"):
        _chosen(CONFIG, "scratch", {})
    with pytest.raises(UsageError, match="Did you mean 'views'"):
        _chosen(None, None, {"view": 1})


def test_what_can_not_be_called_is_rejected_before_training(tmp_path: Path) -> None:
    """A callback of Keras takes other arguments; it would fail after the first epoch."""
    with pytest.raises(UsageError, match="callbacks: found 'print', wanted functions"):
        train(tmp_path / "none", tmp_path / "run", callbacks=cast("Any", ["print"]))
    assert not (tmp_path / "run").exists()
