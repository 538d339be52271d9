"""Activation ranges for int8, measured on a network's frozen part with some images.

`measure_ends` runs a backbone over preprocessed images and returns the smallest and largest input
of each convolution; `ranges_between` makes `Ranges` of them.

The method is that of NNCF in `certify` (`inference/certificates.py`), without NNCF. An end of a
range is the mean over images of each image's minimum or maximum (Jacob et al., CVPR 2018,
arXiv:1712.05877). The first convolution, which reads the pixels, stays in floating point.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_frozen_part, convolutions_of, load_openvino
from pneumoscope.graph.precision import Floats, Ranges
from pneumoscope.graph.runner import Runner
from pneumoscope.graph.writer import FloatArray

_ENDS = ("low", "high")


def measure_ends(
    network: NetworkArrays, size: int, batches: Sequence[NDArray[np.float32]], floats: Floats
) -> FloatArray:
    """Minimum and maximum of each convolution's input, float32 (2, convolutions), mean over images.

    Args:
        network: the backbone's arrays.
        size: side of the images, pixels.
        batches: preprocessed images, float32 (n, size, size, 3) each, all with the same n.
        floats: floating-point type of the computation.
    """
    runner = Runner(lambda images: _with_ends(network, size, images), _ENDS, floats)
    found = np.concatenate([np.stack(runner(batch)) for batch in batches], axis=1)
    ends: FloatArray = found.mean(axis=1, dtype=np.float64).astype(np.float32)
    return ends


def ranges_between(ends: FloatArray) -> Ranges:
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
