"""How windows lie on maps, and how Keras' arrays become those of engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.graph.writer import Edges, FloatArray, Pair


def pair(value: Any) -> Pair:
    """A number for both directions, or one for each."""
    if isinstance(value, Sequence):
        first, second = value
        return int(first), int(second)
    return int(value), int(value)


def scale_and_shift(
    arrays: Sequence[NDArray[Any]], settings: Mapping[str, Any]
) -> tuple[FloatArray, FloatArray]:
    """Batch normalisation with its moving statistics as x × scale + shift, each (channels,)."""
    rest = [array.astype(np.float64) for array in arrays]
    gamma = rest.pop(0) if settings.get("scale", True) else np.ones(1)
    beta = rest.pop(0) if settings.get("center", True) else np.zeros(1)
    mean, variance = rest
    scale = gamma / np.sqrt(variance + float(settings["epsilon"]))
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def fitted(
    given: Edges, size: Pair, reach: Sequence[int], strides: Pair, padding: str
) -> tuple[Edges, Pair]:
    """The edges that a window needs, and the size of what it makes.

    Args:
        given: edges that the map has to get anyway.
        size: height and width of the map without them.
        reach: of the window, along height and width.
        strides: of the window.
        padding: Keras' `valid` or `same`.
    """
    top, left, bottom, right = given
    sides = size[0] + top + bottom, size[1] + left + right
    if padding == "valid":
        made = [(s - r) // step + 1 for s, r, step in zip(sides, reach, strides, strict=True)]
        if min(made) < 1:
            raise ValueError(f"found a map of {sides}, wanted {tuple(reach)} or more")
        return given, (made[0], made[1])
    if padding != "same":
        raise ValueError(f"found the padding {padding!r}, wanted valid or same")
    made = [-(-s // step) for s, step in zip(sides, strides, strict=True)]
    more = [
        max((m - 1) * step + r - s, 0)
        for m, step, r, s in zip(made, strides, reach, sides, strict=True)
    ]
    before = [m // 2 for m in more]
    edges = (
        top + before[0],
        left + before[1],
        bottom + more[0] - before[0],
        right + more[1] - before[1],
    )
    return edges, (made[0], made[1])


def depthwise_kernel(kernel: FloatArray) -> FloatArray:
    """(h, w, channels, times) → (channels × times, 1, h, w)."""
    height, width, channels, times = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * times, 1, height, width)
