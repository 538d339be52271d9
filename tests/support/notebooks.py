"""Notebooks as committed, and after a run in an empty folder."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
REASON = "nbclient is not installed: pip install 'pneumoscope[notebook]'"
_FOLDERS = ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")


def committed(path: Path) -> dict[str, Any]:
    """The document of a notebook."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def code_cells(document: dict[str, Any]) -> dict[str, Any]:
    """The code cells of a notebook by id."""
    return {cell["id"]: cell for cell in document["cells"] if cell["cell_type"] == "code"}


def _joined(text: str | list[str]) -> str:
    """A text as files hold it, a list of lines, or as it is in memory."""
    return text if isinstance(text, str) else "".join(text)


def text_of(cell: dict[str, Any]) -> str:
    """What a cell shows as plain text, whatever way it came."""
    shown = [_joined(output.get("data", {}).get("text/plain", "")) for output in cell["outputs"]]
    return "\n".join(shown + [_joined(output.get("text", "")) for output in cell["outputs"]])


def pictures_of(cell: dict[str, Any]) -> list[np.ndarray]:
    """The pictures that a cell shows, grey, uint8 (h, w)."""
    found = [output.get("data", {}).get("image/png") for output in cell["outputs"]]
    contents = [base64.b64decode(_joined(picture)) for picture in found if picture]
    return [np.asarray(Image.open(io.BytesIO(content)).convert("L")) for content in contents]


def execute(path: Path, folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """The code cells of a notebook by id, after a run in the empty folder `folder`.

    Args:
        path: the notebook.
        folder: the working folder of its kernel.
        settings: values of its settings, by their names.
    """
    nbclient = pytest.importorskip("nbclient", reason=REASON)
    import nbformat

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # The kernel manager leaves its sockets to the garbage collector.
        warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
        for name, value in settings.items():
            patch.setenv(f"PNEUMOSCOPE_NOTEBOOK_{name}", value)
        patch.delenv("PNEUMOSCOPE_NOTEBOOK_DATA", raising=False)
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        for name in _FOLDERS:
            (folder / name).mkdir()
            patch.setenv(name, str(folder / name))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        notebook = nbformat.read(path, as_version=4)
        here = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=300, resources=here).execute()
    return code_cells(notebook)
