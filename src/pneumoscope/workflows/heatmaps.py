"""Overlays of many answers into a folder, beside the engine and not in its way.

Comes in: answers with their images, one at a time. Goes out: PNG files. Knows nothing of tables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pneumoscope.config import PreprocessConfig
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png
from pneumoscope.inference.predictor import Answer
from pneumoscope.storage import temporary_beside


def overlay_writer(folder: Path, config: PreprocessConfig) -> Callable[[Answer], None]:
    """What writes the overlay of an answer, if it has an image and a map.

    For `Predictor.predict_files`, which calls it before it yields the answer: so a row of a table
    is never without its picture.

    Args:
        folder: for the PNG files.
        config: how the images were preprocessed.
    """

    def write(answer: Answer) -> None:
        if answer.image is not None and answer.cam is not None:
            png = indexed_overlay_png(answer.image.pixels, answer.cam, config)
            _put(folder / heatmap_name(answer.prediction.path), png)

    return write


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, as far as kills go.

    It is not flushed by itself, which takes as long as making the picture: where the power fails,
    the last pictures may have to be made again.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
