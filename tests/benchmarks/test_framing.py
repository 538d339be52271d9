"""The table of cut images: its threshold, its numbers, which sides are cut, what it rejects."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pneumoscope.images.phantom import write_phantoms
from support.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/framing.py")


def test_images_are_cut_where_the_table_says(script: ModuleType) -> None:
    image = np.zeros((100, 100), np.float32)
    image[:8] = 1.0  # a bright top
    image[:, :8] = 0.5  # and left side
    for name, cut in script.CUTS.items():
        rest = cut(image)
        assert rest.shape == image.shape
        assert (rest[0, 50] == 1) == ("left and right" in name), name
        assert (rest[50, 0] == 0.5) == ("top and bottom" in name), name


def test_the_threshold_is_that_of_images_as_they_are(script: ModuleType) -> None:
    labels = np.repeat([False, True], 20)
    plain = np.r_[np.arange(20), 18 + np.arange(20)] / 50
    found = script.rows(labels, np.stack([plain, plain + 0.09], axis=1), 0.05)
    # One of 20 lies above 0.36; with all moved by 0.09 six do. The order stays.
    assert found[0][1:] == pytest.approx((0.95, 0.95))
    assert found[1][1:] == pytest.approx((1.0, 0.7))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)


def test_models_stand_side_by_side(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_phantoms(tmp_path / "images", 24, 3, size=64)
    out = tmp_path / "table.md"
    asked = [str(images), "--split", "test", "--models", "default", "--false-alarms", "0.5"]
    assert script.main([*asked, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == text
    assert "| images | default |" in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 9
    assert script.main([str(tmp_path / "nowhere")]) > 0
    assert "nowhere" in capsys.readouterr().err
    shutil.rmtree(images / "val")
    assert script.main([str(images)]) == 3
    assert "has no val split" in capsys.readouterr().err
