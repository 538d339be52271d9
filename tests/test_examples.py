"""The example of the Python API runs, over a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumoscope.images.phantom import write_phantoms
from support.scripts import load_script
from support.small_network import small_network


def test_the_example_of_the_python_api_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_phantoms(tmp_path / "xrays", 40, 1, size=64)
    module = load_script("examples/python_api.py")
    with small_network():
        module.main(
            data,
            tmp_path / "out",
            weights="none",
            views=1,
            epochs=2,
            keep_val=True,
            preprocess={"size": 32},
        )
    shown = capsys.readouterr().out
    for text in ("40 images", "epoch 2: validation AUC", "features (", "AUC ", "precision"):
        assert text in shown
    assert list((tmp_path / "out" / "logs" / "head-seed0").iterdir())
