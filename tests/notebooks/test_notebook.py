"""The notebook is clean as committed, and runs from first cell to last on a few phantoms."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "Chest-Xray.ipynb"
REASON = "nbclient is not installed: pip install 'pneumoscope[notebook]'"
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
    "network": ["GlobalAveragePooling2D", "(1024,)", "262400", "head_probability"],
    "train": ["features", "head"],
    "metrics": ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv"],
    "flatters": ["validation", "test", "auc", "brier"],
    "pointing": ["lungs", "pneumonia"],
    "next": ["run/model/bundle.json", "run/report.html", "run/split.csv"],
}
TEXTS = {
    "threshold": r"OperatingPoint\(value=0\.\d+, rule='.+', chosen_on='\d+ validation images of",
    "evaluate": r"[1-9]\d* films of [1-9]\d* patients answered, 0 refused",
    "dicom": r"status='ok'.+probability=0\.\d+, prediction='(NORMAL|PNEUMONIA)'",
    "refusal": r"status='refused'.+not_an_image.+probability=None",
}
SILENT = {"parameters"}
"""Cells with nothing to show; `data` tells its progress."""


def committed() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return document


def text_of(cell: dict[str, Any]) -> str:
    """What a cell shows as plain text, whatever way it came."""
    shown = [output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return "\n".join(shown + [output.get("text", "") for output in cell["outputs"]])


def test_committed_notebook_holds_no_outputs_and_stable_ids() -> None:
    document = committed()
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    # Names, not random digits: the tests and the history of the file hang on them.
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ids)
    for cell in document["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_committed_notebook_says_first_what_it_is_not() -> None:
    first = "".join(committed()["cells"][0]["source"])
    assert "Research software. Not a medical device" in first


def test_every_code_cell_is_checked_and_introduced() -> None:
    cells = committed()["cells"]
    code = {cell["id"] for cell in cells if cell["cell_type"] == "code"}
    assert code == PICTURES | set(TABLES) | set(TEXTS) | SILENT | {"data"}
    alone = {b["id"] for a, b in pairwise(cells) if a["cell_type"] == b["cell_type"] == "code"}
    assert alone == {"dicom-map"}, "a code cell without words before it"


def test_committed_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat", reason=REASON)
    nbformat.validate(committed(), version=4, version_minor=5)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cells by id after a run in an empty folder; a cell that fails raises here."""
    nbclient = pytest.importorskip("nbclient", reason=REASON)
    import nbformat

    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # The kernel manager leaves its sockets to the garbage collector.
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        for name, value in SMALL.items():
            patch.setenv(f"PNEUMOSCOPE_NOTEBOOK_{name}", value)
        patch.delenv("PNEUMOSCOPE_NOTEBOOK_DATA", raising=False)
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            (folder / name).mkdir()
            patch.setenv(name, str(folder / name))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        here = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=300, resources=here).execute()
    return {cell["id"]: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_nothing_fails_or_warns(executed: dict[str, Any]) -> None:
    for name, cell in executed.items():
        assert all(output["output_type"] != "error" for output in cell["outputs"]), name
        assert "Warning" not in text_of(cell), name
    assert "Phantoms: 60 images" in text_of(executed["data"])


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_drawn(executed: dict[str, Any], name: str) -> None:
    found = [output.get("data", {}).get("image/png") for output in executed[name]["outputs"]]
    content = [picture for picture in found if picture]
    assert len(content) == 1
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content[0]))).convert("L"))
    assert min(pixels.shape) > 200
    inked = (pixels < 250).mean()
    assert inked > 0.01, "an empty frame"
    if name in {"films", "gradcam", "dicom-map"}:
        assert inked > 0.4, "films fill their panels"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_are_shown(executed: dict[str, Any], name: str) -> None:
    text = text_of(executed[name])
    assert "┌" in text
    for wanted in TABLES[name]:
        assert wanted in text


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_answers_are_shown(executed: dict[str, Any], name: str) -> None:
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
        # An AUC's bootstrap may be skewed on nine films, but holds what was measured.
        if name in {"accuracy", "sensitivity", "specificity", "auc", "brier"}:
            assert low <= value <= high, name


def test_no_patient_is_shared(executed: dict[str, Any]) -> None:
    rows = re.findall(r"(\w+ and \w+)\s*┆\s*(\d+)", text_of(executed["no-leak"]))
    assert len(rows) == 3
    assert {count for _, count in rows} == {"0"}


def test_nothing_is_written_beside_the_notebook(executed: dict[str, Any]) -> None:
    assert [path.name for path in NOTEBOOK.parent.iterdir() if path.suffix != ".ipynb"] == []
