"""Films from bytes to answers: a few threads read, one has the engine answer for many at once.

Comes in: films' bytes, from as many requests as there are. Goes out: a future of each one's answer.
Engines answer for many images in a pass far faster than for one after the other, so a pass waits
for films that are being read, until it is as large as they make it. It is always the same few
threads that read: where each request had its own, they took turns with Python's lock, and a
fifth of the processor stood idle (`benchmarks/RESULTS.md`). Knows nothing of requests.
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
"""Films per pass: few sizes, since engines compile a graph for each."""

LONGEST_WAIT = 0.2
"""Seconds that a pass waits for films which are being read: twice what sixteen of them take on two
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
        """The answer for one file's content, when it is there.

        As long as nobody has begun to read it, the future can be cancelled.

        Args:
            content: of a file of any format that `read_image` knows.
            name: for the row.
            keep_image: keep the pixels in the answer, shrunk to the size of overlays.
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
        """Result for all that wait, and for what comes meanwhile."""
        while asked := self._next_pass():
            try:
                found = list(self._predictor.answers([item for item, _ in asked]))
            except Exception:  # noqa: BLE001 - see `_alone`
                # Of whichever film it was: each is asked for alone, and has the error or not.
                for item, result in asked:
                    self._alone(item, result)
                continue
            for (_, result), one in zip(asked, found, strict=True):
                result.set_result(one)

    def _next_pass(self) -> list[tuple[Prepared, Future[Result]]]:
        """The films of the next pass; none, and no more passes, where none waits."""
        with self._changed:
            if not self._waiting:
                self._passing = False
                return []
            self._changed.wait_for(self._all_here, LONGEST_WAIT)
            return [self._waiting.popleft() for _ in range(_most(len(self._waiting)))]

    def _all_here(self) -> bool:
        """Whether the films that are being read would make the next pass no larger."""
        here = len(self._waiting)
        return _most(here) == _most(here + self._coming)

    def _alone(self, item: Prepared, result: Future[Result]) -> None:
        try:
            (found,) = self._predictor.answers([item])
        except Exception as error:  # noqa: BLE001 - who waits for it has it
            result.set_exception(error)
        else:
            result.set_result(found)


def _most(images: int) -> int:
    """Of so many films, how many make a pass."""
    return max(size for size in PASSES if size <= images)
