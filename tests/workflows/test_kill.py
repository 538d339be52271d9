"""A training killed by SIGKILL, again and again and anywhere, ends as the unbroken one does.

The frozen recipe runs as the command that users give, over a real backbone, and is killed where the
disk shows it to be. The others run over a small network: `scratch` dies at seven moments, three of
them random, two in the midst of writing, the first checkpoint's among them.
`benchmarks/kills.py` kills predictions at ten random moments.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import (
    FinetuneConfig,
    FitConfig,
    IntervalConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
    to_toml,
)
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle, load_networks
from support.small_network import Death, small_network, train_in_child

FROZEN = TrainConfig(
    backbone="mobilenetv3small",
    weights="none",
    views=2,
    keep_val=True,
    preprocess=PreprocessConfig(size=32),
    fit=FitConfig(epochs=8, batch_size=16),
    interval=IntervalConfig(resamples=50),
)
SCRATCH = TrainConfig(
    recipe="scratch",
    weights="none",
    keep_val=True,
    preprocess=PreprocessConfig(size=48, normalisation="standardise"),
    fit=FitConfig(
        epochs=16,
        batch_size=8,
        schedule="one-cycle",
        stop_patience=16,
        label_smoothing=0.06,
        weight_decay=0.02,
        ema=0.98,
    ),
    scratch=ScratchConfig(sizes=(32, 48), shares=(0.25, 0.75)),
    interval=IntervalConfig(resamples=50),
)
FINETUNE = TrainConfig(
    recipe="finetune",
    weights="none",
    views=2,
    keep_val=True,
    preprocess=PreprocessConfig(size=32),
    fit=FitConfig(epochs=10, batch_size=8, schedule="cosine", stop_patience=10, ema=0.9),
    finetune=FinetuneConfig(head_epochs=5),
    interval=IntervalConfig(resamples=50),
)
IMAGES = 50
SEEN = 2 * IMAGES
"""Images that a run has gone through before its first file: each is hashed, then looked at."""
LONGEST_SECONDS = 120

# Spawned: a process forked from one that has loaded TensorFlow may wait for a lock for ever.
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("kill") / "phantoms", IMAGES, 5, size=64)


def weights(run: Path) -> list[np.ndarray]:
    found: list[np.ndarray] = load_networks(load_bundle(run))[0].get_weights()
    return found


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="", encoding="utf-8") as stream:
        return [row | {"seconds": ""} for row in csv.DictReader(stream)]


def assert_same(broken: Path, whole: Path) -> None:
    for mine, theirs in zip(weights(broken), weights(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert history(broken) == history(whole)
    metrics = [
        json.loads((run / "evaluation" / "metrics.json").read_text())["metrics"]
        for run in (broken, whole)
    ]
    assert metrics[0] == metrics[1]
    assert not list(broken.glob(".*")), "leftovers of the killed processes"
    assert not list(broken.glob("checkpoint*"))


def start(
    data: Path, out: Path, config: Path, cache: Path, resume: bool
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pneumoscope", "train", str(data), "--out", str(out), "-q"]
    command += ["--resume"] if resume else ["--config", str(config)]
    environment = os.environ | {"PNEUMOSCOPE_CACHE": str(cache)}
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def test_the_command_killed_at_every_stage_and_resumed(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(to_toml(FROZEN), encoding="utf-8")
    whole = start(data, tmp_path / "whole", config, tmp_path / "cache-a", resume=False)
    assert whole.wait(LONGEST_SECONDS) == 0, (tmp_path / "log").read_text()

    broken, cache = tmp_path / "broken", tmp_path / "cache-b"
    # What there is to see on disk when the process dies: its settings, its first features, its
    # first checkpoint, the beginnings of its bundle.
    marks: list[Callable[[], bool]] = [
        lambda: (broken / "config.toml").exists(),
        lambda: any(cache.rglob("*.npy")),
        lambda: (broken / "checkpoint-head-0.npz").exists(),
        lambda: any(broken.glob(".model.*")),
    ]
    killed = 0
    for number, reached in enumerate(marks):
        process = start(data, broken, config, cache, resume=number > 0)
        deadline = time.monotonic() + LONGEST_SECONDS
        while process.poll() is None and not reached():
            assert time.monotonic() < deadline, f"mark {number} was never reached"
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait(LONGEST_SECONDS)
    assert killed >= 3
    if process.returncode:  # else it finished before it was killed
        last = start(data, broken, config, cache, resume=True)
        assert last.wait(LONGEST_SECONDS) == 0, (tmp_path / "log").read_text()
    assert_same(broken, tmp_path / "whole")


Trainer = Callable[[str, TrainConfig | None, Death | None], int]


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Trainer:
    """Train `whole` or `broken` in a process of its own; returns how that ended."""

    def run(name: str, config: TrainConfig | None, death: Death | None) -> int:
        cache = tmp_path / f"cache-{name}"
        arguments = (data, tmp_path / name, config, cache, death, LONGEST_SECONDS)
        process = PROCESSES.Process(target=train_in_child, args=arguments)
        process.start()
        process.join(2 * LONGEST_SECONDS)
        hung = process.exitcode is None
        process.kill()
        process.join()
        assert not hung, f"{death}: {(tmp_path / 'log').read_text()}"
        assert process.exitcode is not None
        return process.exitcode

    return run


def random_deaths(seed: int, most_epochs: int, count: int) -> list[Death]:
    """Moments some epochs after the start, and a little later, while work goes on."""
    rng = np.random.default_rng(seed)
    return [
        Death(int(rng.integers(1, most_epochs + 1)), later=float(rng.uniform(0, 0.04)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("config", "deaths"),
    [
        pytest.param(
            SCRATCH,
            [
                Death(SEEN + 2, "images"),  # all are hashed and looked at, some are decoded
                Death(writing="checkpoint"),  # the first one
                *random_deaths(1, 4, 3),
                Death(SEEN + 2, "images"),  # in validation, when training is done
                Death(writing="bundle"),
            ],
            id="scratch",
        ),
        pytest.param(
            FINETUNE,
            [
                Death(steps=4),  # in the first stage
                Death(steps=7),  # early in the second
                *random_deaths(2, 4, 1),
                Death(writing="checkpoint"),
                Death(writing="bundle"),
            ],
            id="finetune",
        ),
    ],
)
def test_killed_again_and_again_and_resumed(
    trained: Trainer, tmp_path: Path, config: TrainConfig, deaths: list[Death]
) -> None:
    assert trained("whole", config, None) == 0, (tmp_path / "log").read_text()
    begun = False
    for death in deaths:
        ended = trained("broken", None if begun else config, death)
        assert ended == -signal.SIGKILL, f"{death}: {(tmp_path / 'log').read_text()}"
        begun = True
        assert (tmp_path / "broken" / "config.toml").exists()
    assert trained("broken", None, None) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "continuing after epoch" in said
    assert "training starts again" not in said  # no checkpoint was ever half written
    with small_network():
        assert_same(tmp_path / "broken", tmp_path / "whole")
