"""`benchmarks/half_precision.py` compares weights, under one calibration and threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pneumoscope.images.phantom import write_phantoms
from pneumoscope.inference.bundle import OperatingPoint, write_revised
from support.scripts import load_script
from support.small_bundle import small_bundle


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/half_precision.py")


def test_rounding_moves_predictions_a_little_and_other_weights_move_them_more(
    script: ModuleType, tmp_path: Path
) -> None:
    images = write_phantoms(tmp_path / "images", 12)
    exact = small_bundle(tmp_path / "exact")
    elsewhere = replace(exact.manifest, threshold=OperatingPoint(0.0, "fixed", "nothing"))
    other_threshold = write_revised(tmp_path / "other-threshold", exact, elsewhere, "card")
    rounded = small_bundle(tmp_path / "rounded", store="float16")
    apart = small_bundle(tmp_path / "apart", seed=7)
    same = script.agreement(images, "test", other_threshold, exact)
    assert same.images > 0
    assert (same.largest_difference, same.decisions_changed) == (0.0, 0)
    little = script.agreement(images, "test", exact, rounded).largest_difference
    much = script.agreement(images, "test", apart, exact).largest_difference
    assert 0.0 < little < 2e-3 < much
