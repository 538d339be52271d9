"""A graph that is asked for whole batches, each dealt into requests that run side by side.

Comes in: how to build the graph for so many images, batches. Goes out: its outputs. Knows nothing
of what it computes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.graph.openvino import compile_model
from pneumoscope.graph.precision import Device, Floats, Precision

_LOGGER = logging.getLogger(__name__)

PART = 4
"""Images per request: so few that there is a request for each core of an ordinary machine, and an
image takes no longer than among more."""

_CACHED_SIDE = 160
"""Pixels; the first maps of four larger images are more than processors' caches hold in float32."""


def images_per_request(side: int, precision: Precision) -> int:
    """How many images of `side` × `side` pixels a request should have.

    Of 224 pixels in float32 two are answered for faster than four; in bfloat16 and int8, and of 112
    pixels, four are as fast or faster (`benchmarks/engine.py`).
    """
    return PART // 2 if precision == "f32" and side > _CACHED_SIDE else PART


class Runner:
    """Runs a graph; it is compiled when the first batch of a size comes.

    Several threads may ask at once. Two gain a few hundredths over one: while the last requests of
    one's batch are worked on, the first of the other's are (`benchmarks/engine.py`).

    Args:
        build: from a number of images to a model of `graph/openvino.py`.
        outputs: names of the model's outputs.
        floats: what is computed in.
        cache: folder for compiled graphs; `None` keeps none.
        part: images per request, where a batch can be dealt into such.
        device: what it runs on.
    """

    def __init__(
        self,
        build: Callable[[int], Any],
        outputs: Sequence[str],
        floats: Floats,
        cache: Path | None = None,
        part: int = PART,
        device: Device = "CPU",
    ) -> None:
        self._build = build
        self._outputs = tuple(outputs)
        self._floats: Floats = floats
        self._cache = cache
        self._part = part
        self._device: Device = device
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The outputs, float32 (n, ...) each, for a batch (n, ...)."""
        images = len(batch)
        count = images // self._part if images % self._part == 0 else 1
        with self._lock:
            graph = self._graph_for(images // count, count)
            idle = [graph.idle.pop() if graph.idle else graph.request() for _ in range(count)]
        for request, part in zip(idle, np.split(batch, count), strict=True):
            request.start_async([np.ascontiguousarray(part)])
        found = []
        for request in idle:
            request.wait()
            # Copies: the engine writes its next answers into the same memory.
            parts = (request.get_tensor(name).data for name in self._outputs)
            found.append([np.array(part, np.float32) for part in parts])
        with self._lock:
            graph.idle.extend(idle)
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _graph_for(self, images: int, count: int) -> _Graph:
        """The graph for requests of so many images, so many of them at a time."""
        # One request has all threads to itself; of several each has its own.
        key = images, count > 1
        graph = self._graphs.get(key)
        if graph is None or graph.count < count:
            model = self._build(images)
            compiled = compile_model(model, self._floats, self._cache, count, self._device)
            graph = self._graphs[key] = _Graph(count, compiled.create_infer_request)
            _LOGGER.debug("graph compiled for %d requests of %d images", count, images)
        return graph


@dataclass(slots=True)
class _Graph:
    """A compiled graph.

    Attributes:
        count: requests at a time that its threads are dealt for.
        request: makes one more.
        idle: requests that nobody uses.
    """

    count: int
    request: Callable[[], Any]
    idle: list[Any] = field(default_factory=list)
