"""Images from bytes to results: a few threads read files, one thread runs inference on batches.

Engines score a batch far faster than its images one after the other, so a pass waits for images
that are being read. The number of reading threads is fixed: with one per request they contended for
Python's lock, and a fifth of the processor stood idle (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.preparing import Prepared
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction

PASSES = (1, 4, 8, 16)
"""Images per pass: few sizes, because engines compile a graph for each."""

LONGEST_WAIT = 0.2
"""Seconds that a pass waits for images which are being read: twice what sixteen of them take on two
cores. It ends early as soon as no more of them can come."""


class Pipeline:
    """One model behind a few threads.

    Args:
        predictor: the model; its passes are those of `PASSES`.
        readers: threads that read.
    """

    def __init__(self, predictor: Predictor, readers: int) -> None:
        self._predictor = predictor
        self.readers = ThreadPoolExecutor(readers, "reader")
        self._engine = ThreadPoolExecutor(1, "engine")
        self._changed = threading.Condition()
        self._coming = 0
        self._passing = False
        self._waiting: deque[tuple[Prepared, Future[Result]]] = deque()
        self._closed = False

    def submit(self, content: bytes, name: str, *, keep_image: bool = False) -> Future[Result]:
        """The future result for one file's content.

        As long as nobody has begun to read it, the future can be cancelled.

        Args:
            content: of a file of any format that `read_image` knows.
            name: for the row.
            keep_image: keep the pixels in the result, shrunk to the size of overlays.
        """
        result: Future[Result] = Future()
        with self._changed:
            self._coming += 1
        self.readers.submit(
            self._read,
            lambda: self._predictor.prepare_bytes(content, name, keep_image=keep_image),
            result,
        )
        return result

    def close(self) -> None:
        """Begin nothing more; what was begun is finished."""
        self._closed = True
        self.readers.shutdown(wait=False)

    def _read(self, prepare: Callable[[], Prepared | Prediction], result: Future[Result]) -> None:
        item: Prepared | Prediction | None = None
        try:
            if self._closed:
                result.cancel()
            if result.set_running_or_notify_cancel():
                item = prepare()
        except Exception as error:  # noqa: BLE001 - who waits for it has it
            result.set_exception(error)
        finally:
            with self._changed:
                self._coming -= 1
                if isinstance(item, Prepared):
                    self._waiting.append((item, result))
                    if not self._passing:
                        self._passing = True
                        self._engine.submit(self._run_passes)
                self._changed.notify_all()
        if isinstance(item, Prediction):
            result.set_result(Result(item))

    def _run_passes(self) -> None:
        """Score all images that wait, including those that arrive in between."""
        while asked := self._next_pass():
            try:
                found = list(self._predictor.results([item for item, _ in asked]))
            except Exception:  # noqa: BLE001 - see `_alone`
                # One image caused it: each is scored alone, and that one gets the error.
                for item, result in asked:
                    self._alone(item, result)
                continue
            for (_, result), one in zip(asked, found, strict=True):
                result.set_result(one)

    def _next_pass(self) -> list[tuple[Prepared, Future[Result]]]:
        """The images of the next pass; none ends the passes."""
        with self._changed:
            if not self._waiting:
                self._passing = False
                return []
            self._changed.wait_for(self._all_here, LONGEST_WAIT)
            return [self._waiting.popleft() for _ in range(_most(len(self._waiting)))]

    def _all_here(self) -> bool:
        """Whether the images being read would not make the next pass larger."""
        here = len(self._waiting)
        return _most(here) == _most(here + self._coming)

    def _alone(self, item: Prepared, result: Future[Result]) -> None:
        try:
            (found,) = self._predictor.results([item])
        except Exception as error:  # noqa: BLE001 - who waits for it has it
            result.set_exception(error)
        else:
            result.set_result(found)


def _most(images: int) -> int:
    """The number of images in a pass if `images` wait."""
    return max(size for size in PASSES if size <= images)
