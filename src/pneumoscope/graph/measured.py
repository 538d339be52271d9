"""The ranges that int8 needs, read off a network's frozen part while it looks at some images.

Comes in: a backbone's arrays and preprocessed images. Goes out: how far the inputs of its
convolutions reach, and `Ranges` of that. Knows nothing of files or of training.

Method: as NNCF has it for `certify` (`inference/certificates.py`), without NNCF: an end of a range
is the mean over images of each one's least or largest value (Jacob et al., CVPR 2018,
arXiv:1712.05877), and the first convolution, which reads the pixels, stays in float.
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
    """Both ends of what each convolution reads, float32 (2, convolutions), mean over images.

    Args:
        network: the backbone's arrays.
        size: side of the images, pixels.
        batches: preprocessed images, float32 (n, size, size, 3) each, all of one length.
        floats: what is computed in.
    """
    runner = Runner(lambda images: _with_ends(network, size, images), _ENDS, floats)
    found = np.concatenate([np.stack(runner(batch)) for batch in batches], axis=1)
    ends: FloatArray = found.mean(axis=1, dtype=np.float64).astype(np.float32)
    return ends


def ranges_between(ends: FloatArray) -> Ranges:
    """The ranges of `measure_ends`: none for the first convolution, nor where there is no width."""
    low, high = ends
    rounded = low < high
    rounded[0] = False
    return Ranges(np.where(rounded, low, np.nan), np.where(rounded, high, np.nan))


def count_convolutions(network: NetworkArrays, size: int) -> int:
    """How many convolutions the frozen part has, up to the pooled features."""
    return len(convolutions_of(build_frozen_part(network, size, 1, None)))


def _with_ends(network: NetworkArrays, size: int, images: int) -> Any:
    """The frozen part's model, with `low` and `high`, (n, convolutions) each, for its outputs."""
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
