"""`predict` killed in its midst and resumed gives the table of an unbroken run, byte for byte."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import UsageError
from pneumoscope.progress import SILENT
from pneumoscope.workflows.predict import run_prediction
from support.scripts import load_script
from support.small_bundle import small_bundle

IMAGES = 200
CHUNK = 10

SLOWLY = f"""
import sys, time
from pneumoscope.cli import main
from pneumoscope.inference import preparing, results
results._CHUNK_ROWS = {CHUNK}
real = preparing.read_image
def slow(*a):
    time.sleep(0.01)
    return real(*a)
preparing.read_image = slow
main()
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    (folder / "100.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/kills.py")


def test_killed_and_resumed(images: Path, tmp_path: Path, script: ModuleType) -> None:
    model = str(small_bundle(tmp_path / "model").folder)
    # Among the images, where neither may be taken for one when the run is gone on with.
    out, partial = images / "p.csv", images / "p.csv.partial"
    command = ["predict", str(images), "--model", model, "--out", str(out), "--resume", "-q"]
    moments = np.random.default_rng(1).uniform(0, 0.3, 3)
    kills = list(
        script.kill_one_by_one([sys.executable, "-c", SLOWLY, *command], partial, moments, CHUNK)
    )
    assert [kill.alive for kill in kills] == [True, True, True]
    assert not out.exists()
    assert 3 * CHUNK <= script.rows_in(partial) == kills[-1].rows < IMAGES
    document, _, _ = run_prediction([images], model, out, None, SILENT, resume=True)
    assert document["resumed_after"] >= 3 * CHUNK
    assert document["counts"] == {"ok": IMAGES - 1, "refused": 1, "error": 0}
    assert len(document["predictions"]) == IMAGES
    whole = tmp_path / "whole.csv"
    table = out.read_bytes()
    out.unlink()
    unbroken, _, _ = run_prediction([images], model, whole, None, SILENT)
    assert table == whole.read_bytes()
    assert document["predictions"] == unbroken["predictions"]
    assert not partial.exists()


def test_other_inputs_are_not_gone_on_with(images: Path, tmp_path: Path) -> None:
    model = str(small_bundle(tmp_path / "model").folder)
    (tmp_path / "p.csv.partial").write_text('{"origin": "another"}\n')
    with pytest.raises(UsageError, match="Leave out --resume"):
        run_prediction([images], model, tmp_path / "p.csv", None, SILENT, resume=True)
    with pytest.raises(UsageError, match="wanted --out"):
        run_prediction([images], model, None, None, SILENT, resume=True)
