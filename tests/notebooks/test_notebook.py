"""The notebook is whole as committed, its figures are of phantoms, and it runs on a few of them."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from support.notebooks import NOTEBOOKS, code_cells, committed, execute, pictures_of, text_of

NOTEBOOK = NOTEBOOKS / "Chest-Xray.ipynb"
SMALL = {"IMAGES": "60", "SIZE": "64", "EPOCHS": "3", "VIEWS": "1", "WEIGHTS": "none"}

PICTURES = {
    *("films", "history", "roc", "confusion", "reliability", "gradcam", "dicom-map"),
}
TABLES = {
    "index": ["train", "val", "test", "patients"],
    "audit": ["severity", "code", "text"],
    "small-val": ["0.806", "0.963", "0.993"],
    "split": ["train", "val", "test"],
    "no-leak": ["train and val", "train and test", "val and test"],
    "network": ["GlobalAveragePooling2D", "(1024,)", "262400", "head_probability", "→ (2, 1)"],
    "train": ["data and network", "training"],
    "metrics": ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv"],
    "flatters": ["validation", "test", "auc", "brier"],
    "dicom": ["status", "probability", "ok"],
    "refusal": ["refused", "not_an_image", "null"],
    "pointing": ["lungs", "pneumonia"],
    "next": ["run/model/bundle.json", "run/report.html", "run/split.csv"],
}
TEXTS = {
    "threshold": r"OperatingPoint\(value=0\.\d+, rule='.+', chosen_on='\d+ validation images of",
    "evaluate": r"[1-9]\d* images of [1-9]\d* patients predicted, 0 rejected",
    "classification-report": r"precision +recall.+NORMAL.+PNEUMONIA.+accuracy",
}
SILENT = {"parameters"}
"""Cells with nothing to show; `data` shows its progress."""


def test_every_code_cell_is_checked_and_introduced() -> None:
    cells = committed(NOTEBOOK)["cells"]
    code = {cell["id"] for cell in cells if cell["cell_type"] == "code"}
    assert code == PICTURES | set(TABLES) | set(TEXTS) | SILENT | {"data"}
    alone = {b["id"] for a, b in pairwise(cells) if a["cell_type"] == b["cell_type"] == "code"}
    assert alone == {"dicom-map"}, "a code cell without words before it"


def test_committed_figures_are_there_and_of_phantoms() -> None:
    cells = code_cells(committed(NOTEBOOK))
    assert {name for name, cell in cells.items() if pictures_of(cell)} == PICTURES
    assert {name for name, cell in cells.items() if not cell["outputs"]} == SILENT
    assert "Phantoms: " in text_of(cells["data"])
    for name, wanted in TABLES.items():
        assert all(each in text_of(cells[name]) for each in wanted), name


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cells by id after a run in an empty folder; a cell that fails raises here."""
    return execute(NOTEBOOK, tmp_path_factory.mktemp("notebook"), SMALL)


def test_nothing_fails_or_warns(executed: dict[str, Any]) -> None:
    for name, cell in executed.items():
        assert all(output["output_type"] != "error" for output in cell["outputs"]), name
        assert "Warning" not in text_of(cell), name
    assert "Phantoms: 60 images" in text_of(executed["data"])


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_drawn(executed: dict[str, Any], name: str) -> None:
    (pixels,) = pictures_of(executed[name])
    assert min(pixels.shape) > 200
    inked = (pixels < 250).mean()
    assert inked > 0.01, "an empty frame"
    if name in {"films", "gradcam", "dicom-map"}:
        assert inked > 0.4, "images fill their panels"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_are_shown(executed: dict[str, Any], name: str) -> None:
    text = text_of(executed[name])
    assert "┌" in text
    for wanted in TABLES[name]:
        assert wanted in text


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_texts_are_shown(executed: dict[str, Any], name: str) -> None:
    assert re.search(TEXTS[name], text_of(executed[name]), re.DOTALL)


def test_metrics_lie_in_their_intervals(executed: dict[str, Any]) -> None:
    from pneumoscope.evaluation.ranked_metrics import METRIC_NAMES

    lines = text_of(executed["metrics"]).splitlines()
    rows = [[part.strip() for part in line.strip("│").split("┆")] for line in lines if "┆" in line]
    values = {row[0]: row[1:] for row in rows if row[0] in METRIC_NAMES}
    assert set(values) == set(METRIC_NAMES)
    measured = {name: row for name, row in values.items() if "null" not in row}
    assert {"accuracy", "auc", "brier"} <= set(measured)
    for name, row in measured.items():
        value, low, high = map(float, row)
        assert 0.0 <= low <= high <= 1.0, name
        # An AUC's bootstrap may be skewed on nine images, but holds what was measured.
        if name in {"accuracy", "sensitivity", "specificity", "auc", "brier"}:
            assert low <= value <= high, name


def test_no_patient_is_shared(executed: dict[str, Any]) -> None:
    rows = re.findall(r"(\w+ and \w+)\s*┆\s*(\d+)", text_of(executed["no-leak"]))
    assert len(rows) == 3
    assert {count for _, count in rows} == {"0"}


def test_nothing_is_written_beside_the_notebook(executed: dict[str, Any]) -> None:
    assert [path.name for path in NOTEBOOKS.iterdir() if path.suffix != ".ipynb"] == []
