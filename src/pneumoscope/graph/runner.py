"""A graph that is asked for whole batches, each dealt into requests that run side by side.

Comes in: how to build the graph for so many images, batches. Goes out: its outputs. Knows nothing
of what it computes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.graph.openvino import compile_model
from pneumoscope.graph.precision import Floats

_LOGGER = logging.getLogger(__name__)

PART = 4
"""Images per request: so few that there is a request for each core of an ordinary machine, and an
image takes no longer than among more."""


class Runner:
    """Runs a graph on the processor; it is compiled when the first batch of a size comes.

    Args:
        build: from a number of images to a model of `graph/openvino.py`.
        outputs: names of the model's outputs.
        floats: what is computed in.
        cache: folder for compiled graphs; `None` keeps none.
    """

    def __init__(
        self,
        build: Callable[[int], Any],
        outputs: Sequence[str],
        floats: Floats,
        cache: Path | None = None,
    ) -> None:
        self._build = build
        self._outputs = tuple(outputs)
        self._floats: Floats = floats
        self._cache = cache
        self._requests: dict[int, list[Any]] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The outputs, float32 (n, ...) each, for a batch (n, ...); one caller at a time."""
        with self._lock:
            requests = self._requests_for(len(batch))
            for request, part in zip(requests, np.split(batch, len(requests)), strict=True):
                request.start_async([np.ascontiguousarray(part)])
            found = []
            for request in requests:
                request.wait()
                # Copies: the engine writes its next answers into the same memory.
                parts = (request.get_tensor(name).data for name in self._outputs)
                found.append([np.array(part, np.float32) for part in parts])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _requests_for(self, images: int) -> list[Any]:
        if images not in self._requests:
            count = images // PART if images % PART == 0 else 1
            model = self._build(images // count)
            compiled = compile_model(model, self._floats, self._cache, count)
            self._requests[images] = [compiled.create_infer_request() for _ in range(count)]
            _LOGGER.debug("graph compiled for %d requests of %d images", count, images // count)
        return self._requests[images]
