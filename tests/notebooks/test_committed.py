"""Every notebook as committed: valid, with stable ids, small figures, and nothing of a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.notebooks import NOTEBOOKS, REASON, committed

ALL = sorted(NOTEBOOKS.glob("*.ipynb"))
MOST_BYTES = 400_000
"""Of the pictures of all notebooks together, as they are stored."""


def test_there_are_two() -> None:
    assert [path.name for path in ALL] == ["Chest-Xray.ipynb", "Cross-Validation.ipynb"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_ids_are_stable_and_outputs_are_plain(path: Path) -> None:
    document = committed(path)
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    # Names, not random digits: the tests and the history of the file hang on them.
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ids)
    for cell in document["cells"]:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            assert output["output_type"] in {"stream", "display_data", "execute_result"}
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
            assert output.get("metadata", {}) == {}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_code_cells_ran_in_their_order(path: Path) -> None:
    cells = [cell for cell in committed(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_says_first_what_it_is_not(path: Path) -> None:
    first = "".join(committed(path)["cells"][0]["source"])
    assert "Research software. Not a medical device" in first
    assert "phantoms" in first


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_is_valid(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason=REASON)
    nbformat.validate(committed(path), version=4, version_minor=5)


def test_pictures_are_small() -> None:
    stored = [
        len("".join(output["data"]["image/png"]))
        for path in ALL
        for cell in committed(path)["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(stored) > 8
    assert sum(stored) < MOST_BYTES
