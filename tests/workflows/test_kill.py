"""A training killed by SIGKILL, several times and anywhere, ends as the unbroken one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import FitConfig, IntervalConfig, PreprocessConfig, TrainConfig, to_toml
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle, load_networks

CONFIG = TrainConfig(
    weights="none",
    views=2,
    keep_val=True,
    preprocess=PreprocessConfig(size=64),
    fit=FitConfig(epochs=8, batch_size=16),
    interval=IntervalConfig(resamples=100),
)
LONGEST_SECONDS = 300


def start(
    data: Path, out: Path, config: Path, cache: Path, resume: bool
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pneumoscope", "train", str(data), "--out", str(out), "-q"]
    command += ["--resume"] if resume else ["--config", str(config)]
    environment = os.environ | {"PNEUMOSCOPE_CACHE": str(cache)}
    with (out.parent / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def weights(run: Path) -> list[np.ndarray]:
    found: list[np.ndarray] = load_networks(load_bundle(run))[0].get_weights()
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("kill") / "phantoms", 60, 5, size=80)


def test_killed_at_every_stage_and_resumed(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(to_toml(CONFIG), encoding="utf-8")
    whole = start(data, tmp_path / "whole", config, tmp_path / "cache-a", resume=False)
    assert whole.wait(LONGEST_SECONDS) == 0, (tmp_path / "log").read_text()

    broken, cache = tmp_path / "broken", tmp_path / "cache-b"
    # What there is to see on disk when the process dies: its settings, its first features, its
    # first checkpoint, the beginnings of its bundle.
    marks = [
        lambda: (broken / "config.toml").exists(),
        lambda: any(cache.rglob("*.npy")),
        lambda: (broken / "checkpoint.npz").exists(),
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
    last = start(data, broken, config, cache, resume=True)
    assert last.wait(LONGEST_SECONDS) == 0, (tmp_path / "log").read_text()

    for mine, theirs in zip(weights(broken), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    metrics = [
        json.loads((run / "evaluation" / "metrics.json").read_text())["metrics"]
        for run in (broken, tmp_path / "whole")
    ]
    assert metrics[0] == metrics[1]
    assert not list(broken.glob(".*")), "leftovers of the killed processes"
