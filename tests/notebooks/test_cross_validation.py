"""The researcher's notebook runs from its first cell to its last on a few phantoms."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from support.notebooks import NOTEBOOKS, code_cells, committed, execute, pictures_of, text_of

NOTEBOOK = NOTEBOOKS / "Cross-Validation.ipynb"
SMALL = {"IMAGES": "40", "SIZE": "32", "EPOCHS": "2", "FOLDS": "2", "WEIGHTS": "none,none"}
PICTURES = {"roc", "scatter", "embeddings"}
TABLES = {
    "data": ["NORMAL", "PNEUMONIA", "images", "patients"],
    "crossvalidate": ["densenet121", "mobilenetv2", "fold", "threshold"],
    "pooled": ["auc", "average_precision", "brier", "low", "high"],
    "predictions": ["label", "patient", "densenet121 correct", "mobilenetv2"],
    "delong": ["difference", "p"],
    "mcnemar": ["only densenet121 correct", "mid-p"],
    "next": ["mobilenetv2/out_of_fold.csv", "mobilenetv2/report.html"],
}
SILENT = {"parameters"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return execute(NOTEBOOK, tmp_path_factory.mktemp("notebook"), SMALL)


def test_every_code_cell_is_checked_and_introduced() -> None:
    cells = committed(NOTEBOOK)["cells"]
    assert set(code_cells(committed(NOTEBOOK))) == PICTURES | set(TABLES) | SILENT
    assert not [b for a, b in pairwise(cells) if a["cell_type"] == b["cell_type"] == "code"]


def test_committed_results_are_there() -> None:
    cells = code_cells(committed(NOTEBOOK))
    assert {name for name, cell in cells.items() if pictures_of(cell)} == PICTURES
    for name, wanted in TABLES.items():
        assert all(each in text_of(cells[name]) for each in wanted), name


def test_nothing_fails_or_warns(executed: dict[str, Any]) -> None:
    for name, cell in executed.items():
        assert all(output["output_type"] != "error" for output in cell["outputs"]), name
        assert "Warning" not in text_of(cell), name


def test_pictures_are_drawn(executed: dict[str, Any]) -> None:
    for name in PICTURES:
        (pixels,) = pictures_of(executed[name])
        assert min(pixels.shape) > 200, name
        assert (pixels < 250).mean() > 0.01, "an empty frame"


def test_tables_are_shown(executed: dict[str, Any]) -> None:
    for name, wanted in TABLES.items():
        assert all(each in text_of(executed[name]) for each in wanted), name


def test_every_image_is_held_out_once_by_each_backbone(executed: dict[str, Any]) -> None:
    rows = re.findall(
        r"(densenet121|mobilenetv2)\s*┆ (\d)\s*┆ (\d+)", text_of(executed["crossvalidate"])
    )
    assert [(name, fold) for name, fold, _ in rows] == [
        *(("densenet121", "1"), ("densenet121", "2")),
        *(("mobilenetv2", "1"), ("mobilenetv2", "2")),
    ]
    for name in ("densenet121", "mobilenetv2"):
        assert 30 <= sum(int(images) for backbone, _, images in rows if backbone == name) <= 40
