"""`predict` killed in its midst and resumed gives the table of an unbroken run, byte for byte."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import UsageError
from pneumoscope.progress import SILENT
from pneumoscope.workflows.predict import run_prediction
from support.small_bundle import small_bundle

FILMS = 200
CHUNK = 10

SLOWLY = f"""
import sys, time
from pneumoscope.cli import main
from pneumoscope.inference import decoding, table
table._CHUNK_ROWS = {CHUNK}
real = decoding.read_image
def slow(*a):
    time.sleep(0.01)
    return real(*a)
decoding.read_image = slow
main()
"""


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(FILMS):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    (folder / "100.png").write_bytes(b"no image")
    return folder


def lines(partial: Path) -> int:
    return partial.read_bytes().count(b"\n") if partial.exists() else 0


def test_killed_and_resumed(films: Path, tmp_path: Path) -> None:
    model = str(small_bundle(tmp_path / "model").folder)
    # Among the films, where neither may be taken for one when the run is gone on with.
    out, partial = films / "p.csv", films / "p.csv.partial"
    command = ["predict", str(films), "--model", model, "--out", str(out), "--resume", "-q"]
    generator = np.random.default_rng(1)
    kills = 0
    for _ in range(3):
        before = lines(partial)
        with subprocess.Popen([sys.executable, "-c", SLOWLY, *command]) as process:
            while lines(partial) < before + CHUNK and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert not out.exists()
    assert 3 * CHUNK < lines(partial) < FILMS
    document, _, _ = run_prediction([films], model, out, None, SILENT, resume=True)
    assert document["resumed_after"] >= 3 * CHUNK
    assert document["counts"] == {"ok": FILMS - 1, "refused": 1, "error": 0}
    assert len(document["predictions"]) == FILMS
    whole = tmp_path / "whole.csv"
    table = out.read_bytes()
    out.unlink()
    unbroken, _, _ = run_prediction([films], model, whole, None, SILENT)
    assert table == whole.read_bytes()
    assert document["predictions"] == unbroken["predictions"]
    assert not partial.exists()


def test_other_inputs_are_not_gone_on_with(films: Path, tmp_path: Path) -> None:
    model = str(small_bundle(tmp_path / "model").folder)
    (tmp_path / "p.csv.partial").write_text('{"origin": "another"}\n')
    with pytest.raises(UsageError, match="Leave out --resume"):
        run_prediction([films], model, tmp_path / "p.csv", None, SILENT, resume=True)
    with pytest.raises(UsageError, match="wanted --out"):
        run_prediction([films], model, None, None, SILENT, resume=True)
