"""Plain Keras opens a bundle's network, as the user guide shows, and predicts the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from pneumoscope.images.phantom import draw
from pneumoscope.inference.bundle import write_bundle
from pneumoscope.inference.predictor import Predictor
from support.small_bundle import manifest_for, random_network
from support.small_network import small_network

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
PLAIN = "<!-- plain keras: run by tests/inference/test_plain_keras.py -->\n```python\n"
OURS = PLAIN.replace("plain keras", "keras")
Store = Literal["float32", "float16"]
Normalisation = Literal["imagenet", "standardise"]
REPORT = """
import sys
assert "pneumoscope" not in sys.modules
print([type(layer).__name__ for layer in network.layers[-4:]])
print(sorted({str(weight.dtype) for weight in network.weights}))
"""


def bundle_and_image(folder: Path, store: Store, normalisation: Normalisation) -> float:
    """Write `runs/a/model` and `image.png`; returns the image's probability before calibration."""
    with small_network():
        network = random_network(3, 96)
    manifest = replace(manifest_for(96), store=store)
    manifest = replace(
        manifest, preprocessing=replace(manifest.preprocessing, normalisation=normalisation)
    )
    model = folder / "runs" / "a" / "model"
    write_bundle(model, network, manifest, "card")
    pixels = draw(0, "p", 0, 1, size=150).pixels
    Image.fromarray((pixels * 255).astype(np.uint8)).save(folder / "image.png")
    result = Predictor.load(model, "f32", input_check=False).predict_file(folder / "image.png")
    assert result.logit is not None
    return float(1 / (1 + np.exp(-result.logit)))


def printed(folder: Path, lines: str, environment: dict[str, str]) -> list[str]:
    """The lines that a program prints in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=folder,
        env=environment | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_the_lines_for_plain_keras_give_our_probability(tmp_path: Path, store: Store) -> None:
    wanted = bundle_and_image(tmp_path, store, "imagenet")
    lines = GUIDE.read_text(encoding="utf-8").split(PLAIN)[1].split("```")[0]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    *_, found, layers, types = printed(tmp_path, lines + REPORT, environment)
    assert layers == "['GlobalAveragePooling2D', 'Dropout', 'Dense', 'Dense']"
    assert types == "['float32']"
    assert 0.01 < wanted < 0.99
    assert float(re.findall(r"[\d.e-]+", found)[-1]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("normalisation", ["imagenet", "standardise"])
def test_load_model_gives_our_probability_for_every_normalisation(
    tmp_path: Path, normalisation: Normalisation
) -> None:
    wanted = bundle_and_image(tmp_path, "float32", normalisation)
    lines = GUIDE.read_text(encoding="utf-8").split(OURS)[1].split("```")[0]
    *_, found = printed(tmp_path, lines, dict(os.environ))
    assert 0.01 < wanted < 0.99
    assert float(re.findall(r"[\d.e-]+", found)[-1]) == pytest.approx(wanted, abs=1e-5)
