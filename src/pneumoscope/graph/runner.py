"""Run graphs on batches, and measure the activation ranges for int8.

`Runner` runs a graph on batches, split into requests that run in parallel.

`measure_ends` runs a backbone over preprocessed images and returns the smallest and largest input
of each convolution; `ranges_between` makes `Ranges` of them. The method is that of NNCF in
`certify` (`inference/certificates.py`), without NNCF. An end of a range is the mean over images of
each image's minimum or maximum (Jacob et al., CVPR 2018, arXiv:1712.05877). The first convolution,
which reads the pixels, stays in floating point.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import (
    build_frozen_part,
    compile_model,
    convolutions_of,
    load_openvino,
)
from pneumoscope.graph.writer import Device, Floats, Precision, Ranges

_LOGGER = logging.getLogger(__name__)

PART = 4
"""Images per request. With so few, an ordinary machine has one request per core, and an image takes
no longer than in larger requests."""

_CACHED_SIDE = 160
"""Pixels. The first float32 maps of four larger images exceed the processor's cache."""

_ENDS = ("low", "high")


def images_per_request(side: int, precision: Precision) -> int:
    """How many images of `side` × `side` pixels a request should have.

    At 224 pixels in float32 two images are faster than four; in bfloat16 and int8, and at 112
    pixels, four are as fast or faster (`benchmarks/engine.py`).
    """
    return PART // 2 if precision == "f32" and side > _CACHED_SIDE else PART


def batches_at_once(precision: Precision) -> int:
    """How many batches should be in the engine at once while `predict` reads files.

    With two, the next batch uses the cores that are idle at the end of the one before. In int8 the
    engine is so fast that the readers use these cores, and a second batch takes turns with them
    (`benchmarks/batches.py`).
    """
    return 1 if precision == "int8" else 2


class Runner:
    """Runs a graph; it is compiled for each batch size on first use.

    Several threads may call it at once. Two threads are a few percent faster than one: the first
    requests of one batch start while the last of the other run (`benchmarks/engine.py`).

    Args:
        build: number of images → model of `graph/openvino.py`.
        outputs: names of the model's outputs.
        floats: floating-point type of the computation.
        cache: folder of compiled graphs; `None` disables caching.
        part: images per request, where the batch is a multiple of it.
        device: device to run on.
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
            # Copied, because the engine writes its next outputs into the same memory.
            parts = (request.get_tensor(name).data for name in self._outputs)
            found.append([np.array(part, np.float32) for part in parts])
        with self._lock:
            graph.idle.extend(idle)
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _graph_for(self, images: int, count: int) -> _Graph:
        """The graph for `count` parallel requests of `images` images."""
        # A single request uses all threads; several requests share them.
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
        count: number of parallel requests that it was compiled for.
        request: makes a new request.
        idle: requests that are not in use.
    """

    count: int
    request: Callable[[], Any]
    idle: list[Any] = field(default_factory=list)


def measure_ends(
    network: NetworkArrays, size: int, batches: Sequence[NDArray[np.float32]], floats: Floats
) -> Float32Array:
    """Minimum and maximum of each convolution's input, float32 (2, convolutions), mean over images.

    Args:
        network: the backbone's arrays.
        size: side of the images, pixels.
        batches: preprocessed images, float32 (n, size, size, 3) each, all with the same n.
        floats: floating-point type of the computation.
    """
    runner = Runner(lambda images: _with_ends(network, size, images), _ENDS, floats)
    found = np.concatenate([np.stack(runner(batch)) for batch in batches], axis=1)
    ends: Float32Array = found.mean(axis=1, dtype=np.float64).astype(np.float32)
    return ends


def ranges_between(ends: Float32Array) -> Ranges:
    """Ranges from `measure_ends`; NaN for the first convolution and for ranges of width 0."""
    low, high = ends
    rounded = low < high
    rounded[0] = False
    return Ranges(np.where(rounded, low, np.nan), np.where(rounded, high, np.nan))


def count_convolutions(network: NetworkArrays, size: int) -> int:
    """Number of convolutions in the frozen part, up to the pooled features."""
    return len(convolutions_of(build_frozen_part(network, size, 1, None)))


def _with_ends(network: NetworkArrays, size: int, images: int) -> Any:
    """The frozen part's model with the outputs `low` and `high`, (n, convolutions) each."""
    model = build_frozen_part(network, size, images, None)
    to, axes = importlib.import_module("openvino.opset13"), np.array([1, 2, 3])
    read = [node.input_value(0) for node in convolutions_of(model)]
    results = []
    for name, reduce in zip(_ENDS, (to.reduce_min, to.reduce_max), strict=True):
        each = [to.reshape(reduce(x, axes), np.array([images, 1]), False) for x in read]
        node = to.concat(each, 1)
        node.output(0).set_names({name})
        results.append(to.result(node.output(0)))
    return load_openvino().Model(results, model.get_parameters(), "ends")
