"""Single images of several threads, run together: an engine behind an engine.

Comes in: batches of one image, from as many threads as there are. Goes out: the outputs of each.
An engine is asked by one thread at a time, and answers for several images faster than for one after
the other; who gets hold of it takes along what waits. Knows nothing of films or requests.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.backends import Backend, Outputs

SIZES = (16, 8, 4, 1)
"""Images per pass: few sizes, since engines compile a graph for each."""


@dataclass(slots=True, eq=False)
class _Asked:
    batch: NDArray[np.float32]
    outputs: Outputs | None = None


class GatheringBackend:
    """A `Backend` around another, for many threads.

    Args:
        backend: the engine.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._engine = threading.Lock()
        self._waiting: deque[_Asked] = deque()

    def warm_up(self, size: int) -> None:
        """Have the engine make what it needs for every size of a pass over `size` pixels."""
        for images in SIZES:
            self._backend.run(np.zeros((images, size, size, 3), np.float32))

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The engine's outputs for preprocessed images, float32 (n, size, size, 3)."""
        if len(batch) != 1:
            with self._engine:
                return self._backend.run(batch)
        mine = _Asked(batch)
        self._waiting.append(mine)
        with self._engine:
            while mine.outputs is None:
                self._run_some(mine)
        return mine.outputs

    def _run_some(self, mine: _Asked) -> None:
        """Run as many of the first that wait as make a pass; of too few, only `mine`."""
        count = next(size for size in SIZES if size <= len(self._waiting))
        if count == 1:
            self._waiting.remove(mine)
            mine.outputs = self._backend.run(mine.batch)
            return
        # Whoever is taken along waits for the lock, and finds its outputs when it has it.
        asked = [self._waiting.popleft() for _ in range(count)]
        try:
            found = self._backend.run(np.concatenate([one.batch for one in asked]))
            for row, one in enumerate(asked):
                here = slice(row, row + 1)
                one.outputs = Outputs(found.logits[here], found.cams[here], found.embeddings[here])
        except (RuntimeError, MemoryError):
            # Of whichever image it was: each thread runs its own alone, and has the error or not.
            mine.outputs = self._backend.run(mine.batch)
        finally:
            left = [one for one in asked if one.outputs is None and one is not mine]
            self._waiting.extendleft(reversed(left))
