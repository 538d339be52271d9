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
MARK = "<!-- plain keras: run by tests/inference/test_plain_keras.py -->\n```python\n"
REPORT = """
import sys
assert "pneumoscope" not in sys.modules
print([type(layer).__name__ for layer in network.layers[-4:]])
print(sorted({str(weight.dtype) for weight in network.weights}))
"""


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_the_lines_of_the_readme_give_our_probability(
    tmp_path: Path, store: Literal["float32", "float16"]
) -> None:
    with small_network():
        network = random_network(3, 96)
    folder = tmp_path / "runs" / "a" / "model"
    write_bundle(folder, network, replace(manifest_for(96), store=store), "card")
    pixels = draw(0, "p", 0, 1, size=150).pixels
    Image.fromarray((pixels * 255).astype(np.uint8)).save(tmp_path / "image.png")
    lines = GUIDE.read_text(encoding="utf-8").split(MARK)[1].split("```")[0]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", lines + REPORT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, found, layers, types = done.stdout.splitlines()
    assert layers == "['GlobalAveragePooling2D', 'Dropout', 'Dense', 'Dense']"
    assert types == "['float32']"
    result = Predictor.load(folder, "f32", input_check=False).predict_file(tmp_path / "image.png")
    assert result.logit is not None
    wanted = 1 / (1 + np.exp(-result.logit))
    assert 0.01 < wanted < 0.99
    assert float(re.findall(r"[\d.e-]+", found)[-1]) == pytest.approx(wanted, abs=1e-5)
