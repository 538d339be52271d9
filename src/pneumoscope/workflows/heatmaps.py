"""Overlays of many answers into a folder, beside the engine and not in its way.

Comes in: answers with their images. Goes out: the same answers in the same order, each once its
overlay is on disk: so a row of a table is never without its picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pneumoscope.config import PreprocessConfig
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png
from pneumoscope.inference.predictor import Answer
from pneumoscope.storage import temporary_beside

_WRITERS = 4
"""Threads: most of what they do is waiting for the disk."""

_MOST_WAITING = 64
"""Answers whose overlays are under way: memory stays flat."""


def with_overlays(
    answers: Iterable[Answer], folder: Path, config: PreprocessConfig
) -> Iterator[Answer]:
    """Write the overlay of every answer that has an image and a map.

    Args:
        answers: of `Predictor.predict_files` with `keep_side`.
        folder: for the PNG files.
        config: how the images were preprocessed.

    Raises:
        OSError: an overlay can't be written; answers before it were yielded.
    """

    def write(answer: Answer) -> Answer:
        if answer.image is not None and answer.cam is not None:
            png = indexed_overlay_png(answer.image.pixels, answer.cam, config)
            _put(folder / heatmap_name(answer.prediction.path), png)
        return answer

    pool = ThreadPoolExecutor(_WRITERS)
    waiting: deque[Future[Answer]] = deque()
    try:
        for answer in answers:
            waiting.append(pool.submit(write, answer))
            while waiting and (len(waiting) > _MOST_WAITING or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # after Ctrl-C, or when nobody wants the rest
        pool.shutdown(cancel_futures=True)


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
