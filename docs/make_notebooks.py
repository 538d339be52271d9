"""Run the notebooks on phantoms, and keep their results and figures in them.

    python docs/make_notebooks.py [NAME ...]

Pictures are reduced to 64 colours. Progress lines are left out, since they differ with every run.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
COLOURS = 64
KEPT_PROGRESS = {"data"}
"""Cells whose progress stays, since it says that the images are phantoms."""

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> None:
    """Run a notebook in an empty folder and write it with its results."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PNEUMOSCOPE_CACHE"] = str(folder / "cache")
        here = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=3600, resources=here).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            shown = (_plain(output) for output in cell.outputs if _is_kept(output, cell.id))
            cell.outputs = list(shown)
    notebook.metadata = _METADATA
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")


def _is_kept(output: Any, cell: str) -> bool:
    return output.get("name") != "stderr" or cell in KEPT_PROGRESS


def _plain(output: Any) -> Any:
    """An output as text or as a small picture."""
    if "data" in output:
        output.metadata = {}
        output.data.pop("text/html", None)
        if "image/png" in output.data:
            output.data = {"image/png": _small(output.data["image/png"])}
    return output


def _small(picture: str) -> str:
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(COLOURS)
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb")):
        run(FOLDER / each)
