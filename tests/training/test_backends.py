"""The same training on Torch, on JAX, on several devices; its model results alike on TensorFlow.

Keras takes one backend per process, so every part runs in a process of its own: this file, with
the name of one of the parts below.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from pneumoscope.config import (
    RECIPES,
    DistortConfig,
    FitConfig,
    IntervalConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
)
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.metrics import auc
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.progress import SILENT, SilentProgress
from pneumoscope.training.end_to_end import Squares, build_phase_schedule, stored_side
from pneumoscope.training.features import ArrayStore, FeatureTable
from pneumoscope.training.loop import Fitted, fit
from pneumoscope.training.runtime import describe_runtime, distribute, load_keras

pytestmark = pytest.mark.engines

LONGEST_SECONDS = 1800
SIZE = 32
BATCH = 4

SCRATCH = replace(
    RECIPES["scratch"],
    keep_val=True,
    preprocess=replace(RECIPES["scratch"].preprocess, size=SIZE),
    fit=replace(RECIPES["scratch"].fit, epochs=2, batch_size=BATCH, ema=0.5),
    scratch=ScratchConfig((SIZE,), (1.0,)),
    interval=IntervalConfig(resamples=50),
)


def installed(backend: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(backend) is None
    return pytest.mark.skipif(absent, reason=f"{backend} is not installed: pip install {backend}")


def run_part(name: str, *arguments: Path, backend: str, devices: int = 1) -> Any:
    """The JSON output of a part that ran with Keras on `backend`."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, __file__, name, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LONGEST_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("backends") / "phantoms", 50, 5, size=64)


@pytest.mark.parametrize(
    "backend",
    [pytest.param("torch", marks=installed("torch")), pytest.param("jax", marks=installed("jax"))],
)
def test_a_network_of_another_backend_predicts_alike_on_tensorflow(
    backend: str, phantoms: Path, tmp_path: Path
) -> None:
    trained = run_part("train", phantoms, tmp_path / "run", backend=backend)
    assert trained["runtime"].split()[3] == backend
    assert np.isfinite(trained["loss"]).all()
    found = run_part("predict", tmp_path / "run", backend="tensorflow")
    assert found["runtime"].split()[3] == "tensorflow"
    told = rows_of(tmp_path / "run" / "evaluation" / "predictions.csv")
    mine = np.array([float(row["probability"]) for row in told])
    np.testing.assert_allclose(found["probabilities"], mine, atol=1e-4)
    # A network after few steps may predict one class only, or calibration may flatten its output:
    # so compare the uncalibrated probabilities too, centred on their median.
    logits = (np.log(mine / (1 - mine)) - trained["intercept"]) / trained["slope"]
    centre = np.median(logits)
    mine, theirs = (expit(x - centre) for x in (logits, np.array(found["logits"])))
    assert np.ptp(mine) > 0.05
    np.testing.assert_allclose(theirs, mine, atol=1e-4)


@installed("jax")
def test_two_devices_train_as_one_does(tmp_path: Path) -> None:
    alone = run_part("spread", tmp_path / "one", backend="jax")
    both = run_part("spread", tmp_path / "two", backend="jax", devices=2)
    assert (alone["devices"], both["devices"]) == (1, 2)
    assert alone["refusal"] == ""
    assert "fit.batch_size: found 15, wanted a multiple of 2" in both["refusal"]
    assert both["shares"] == [8, 8]  # of a batch of 16, images per device
    assert both["uneven"] == [5, 5]  # five images go to both devices completely
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    one, two = (np.load(tmp_path / name / "weights.npz") for name in ("one", "two"))
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4)
    assert alone["moved"] > 1e-3


@installed("jax")
@pytest.mark.parametrize("devices", [1, 2])
def test_resumed_on_jax_as_if_unbroken(tmp_path: Path, devices: int) -> None:
    told = run_part("resume", tmp_path, backend="jax", devices=devices)
    assert told["epochs"] == 2
    assert told["difference"] == 0.0


# The parts, each in a process of its own.


def part_train(data: Path, out: Path) -> dict[str, Any]:
    from pneumoscope.workflows.train import train

    run = train(data, out, SCRATCH)
    calibration = run.bundle.manifest.calibration
    return {
        "runtime": describe_runtime(),
        "loss": [row.loss for row in run.history],
        "slope": calibration.slope,
        "intercept": calibration.intercept,
    }


def part_predict(run: Path) -> dict[str, Any]:
    """Probabilities and logits of the run's model for its validation images."""
    from pneumoscope.inference.predictor import Predictor

    paths = [row["path"] for row in rows_of(run / "evaluation" / "predictions.csv")]
    results = list(Predictor.load(run).predict_files(paths))
    return {
        "runtime": describe_runtime(),
        "probabilities": [result.prediction.probability for result in results],
        "logits": [result.logit for result in results],
    }


def part_spread(folder: Path) -> dict[str, Any]:
    """An epoch of the loop on as many devices as there are."""
    folder.mkdir()
    try:
        distribute(15)
        refusal = ""
    except UsageError as error:
        refusal = str(error)
    devices = distribute(16)
    network = small_network()
    before = network.get_weights()
    fitted = train_small(network, folder, {"epochs": 1})
    np.savez(folder / "weights.npz", *fitted.weights)
    moved = max(float(np.abs(b - a).max()) for a, b in zip(before, fitted.weights, strict=True))
    return {
        "devices": devices,
        "refusal": refusal,
        "shares": images_per_device(16),
        "uneven": images_per_device(5),
        "loss": fitted.history[0].loss,
        "moved": moved,
    }


def images_per_device(count: int) -> list[int]:
    """Number of images of a batch per device."""
    keras = load_keras()
    distribution = keras.distribution.distribution()
    if distribution is None:
        return [count]
    layout = distribution.get_data_layout((count, 3))
    from jax import make_array_from_process_local_data

    batch = make_array_from_process_local_data(layout.backend_layout, np.zeros((count, 3)))
    return [shard.data.shape[0] for shard in batch.addressable_shards]


def part_resume(folder: Path) -> dict[str, Any]:
    """Largest difference between two epochs in one run and two with an interruption."""
    distribute(16)
    # Nine steps per epoch: the interruption splits two steps of one accumulated update.
    settings: dict[str, Any] = {"epochs": 2, "accumulate": 2}
    whole = train_small(small_network(), folder / "whole", settings)
    try:
        train_small(small_network(), folder / "broken", settings, DeadAfterOne())
    except DeadError:
        again = train_small(small_network(), folder / "broken", settings)
    pairs = zip(whole.weights, again.weights, strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    return {"epochs": len(again.history), "difference": difference}


class DeadError(Exception):
    """Simulates SIGKILL."""


class DeadAfterOne(SilentProgress):
    """Raises after one epoch, when its checkpoint is written."""

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Any]:
        class Task:
            def advance(self, count: int = 1, note: str = "") -> None:
                if count:
                    raise DeadError

        yield Task()


def small_network() -> Any:
    """Convolution, batch normalisation and two dense layers, which backends treat differently."""
    keras = load_keras()
    layers = keras.layers
    image = keras.Input((None, None, 3))
    initial = [keras.initializers.GlorotUniform(seed=k) for k in range(3)]
    x = layers.Conv2D(8, 3, 2, use_bias=False, kernel_initializer=initial[0])(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2, seed=4)(x)
    x = layers.Dense(8, activation="relu", kernel_initializer=initial[1])(x)
    return keras.Model(image, layers.Dense(1, kernel_initializer=initial[2])(x))


def train_small(
    network: Any, folder: Path, settings: dict[str, Any], progress: Any = SILENT
) -> Fitted:
    """The loop over noise: 144 images to train on, 21 to validate on."""
    fit_config = FitConfig(batch_size=16, schedule="cosine", weight_decay=0.01, ema=0.5, **settings)
    config = TrainConfig(
        preprocess=PreprocessConfig(size=SIZE, normalisation="standardise"),
        distort=DistortConfig(),
        fit=fit_config,
    )
    parts = [noise(folder / f"squares-{count}", count) for count in (144, 21)]
    sizes = ScratchConfig((SIZE,), (1.0,))
    factors = {network.trainable_variables[0].path: 0.1}
    schedule = build_phase_schedule(network, (parts[0], parts[1]), config, sizes, factors)
    checkpoint = folder / "checkpoint.npz"
    labels = [part.labels for part in parts]
    return fit(schedule, labels[0], labels[1], fit_config, auc, checkpoint, "", progress)


def noise(folder: Path, count: int) -> Squares:
    """Squares of noise in a store, with unrelated labels."""
    side = stored_side(SIZE)
    store = ArrayStore(folder, "u1", (side, side))
    keys = [bytes([k]) * 32 for k in range(count)]
    if keys[0] not in store:
        generator = np.random.default_rng(count)
        store.add(keys, generator.integers(0, 256, (count, side, side), np.uint8))
    table = FeatureTable(store, tuple((key,) for key in keys), tuple(range(count)), ())
    numbers = np.arange(count, dtype=np.int64)
    return Squares(table, numbers % 2, numbers % 3 - 1)


if __name__ == "__main__":
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "train": part_train,
        "predict": part_predict,
        "spread": part_spread,
        "resume": part_resume,
    }
    sys.stdout.write(json.dumps(parts[sys.argv[1]](*map(Path, sys.argv[2:]))))
