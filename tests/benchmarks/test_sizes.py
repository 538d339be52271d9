"""The table of image sizes: its rows, its differences, and folds beside splits."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pneumoscope.images.phantom import write_phantoms
from support.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/sizes.py")


def group(script: ModuleType, wrong: int) -> Any:
    """40 patients; at the second size `wrong` normal images lie above all others."""
    labels = np.repeat([0, 1], 20)
    plain = np.linspace(0.1, 0.8, 40)
    other = plain.copy()
    other[:wrong] = 0.9
    ways = 1 + len(script.MATCHED)
    stacked = np.stack([np.tile(each, (ways, 1)).T for each in (plain, other)], axis=1)
    return script.Group(labels, [f"p{k}" for k in range(40)], stacked)


def test_differences_are_from_the_first_size(script: ModuleType) -> None:
    rows = script.table({"folds": [group(script, 0), group(script, 4)]}, [112, 160])[2:]
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]
    assert [row[1] for row in cells] == ["112", "160"]
    assert cells[0][2:7] == ["1.000"] * 5
    # One group loses 4 of 20 normal images, the other none.
    assert cells[1][2:7] == ["0.900"] * 5
    assert cells[1][7].startswith("-0.1000 (-0.2")
    assert "to -0.0" in cells[1][7]


def test_splits_of_a_model_have_a_row_together(script: ModuleType) -> None:
    found = {"A, val": [group(script, 0)], "A, test": [group(script, 8)]}
    rows = script.table(found, [112, 160])[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows[::2]] == [
        "A, val",
        "A, test",
        "A, mean of both",
    ]
    assert "-0.2000" in rows[-1]


def test_the_network_runs_at_other_sizes(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_phantoms(tmp_path / "images", 24, 3, size=64)
    out = tmp_path / "table.md"
    assert script.main([str(images), "--sizes", "112", "64", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| default")]
    assert [row[1] for row in rows] == ["112", "64"] * 3
    assert script.predictor_of("default", 64).preprocess(np.eye(90)).shape[1] == 64
    assert script.main([str(tmp_path / "nowhere")]) > 0
    assert "nowhere" in capsys.readouterr().err
