"""The range of an image's values that its picture lies in, stray values at the ends left out.

Hot and dead pixels, burnt-in marks and values that stand for "no data" lie far beyond the others; a
range that includes them leaves the picture as good as black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

STRAY = 0.001
"""The share of pixels at either end that may be stray."""

_SAMPLED = 1 << 20
_LEAST_DISTINCT = 4


def quantiles(values: Values, counts: Counts) -> tuple[float, float]:
    """The values below and above which lies the share `STRAY` of the pixels.

    Args:
        values: (n,), in any order.
        counts: (n,), how many pixels have each; some.
    """
    order = np.argsort(values, kind="stable")
    running = np.cumsum(counts[order])
    least, most = STRAY * running[-1], (1 - STRAY) * running[-1]
    low = values[order[np.searchsorted(running, least, side="right")]]
    high = values[order[min(int(np.searchsorted(running, most, side="left")), len(order) - 1)]]
    return float(low), float(high)


def trusted(values: Values, counts: Counts) -> tuple[float, float]:
    """From where to where values are near enough to the bulk of them to be a part of the picture.

    A value is stray that lies further from the bulk than the bulk is wide. A lone value at an end
    that is further from its neighbour than all others span is left out however many pixels have it.

    Args:
        values: (n,), in any order.
        counts: (n,), how many pixels have each, more than 0.
    """
    kept = _without_lone_ends(values)
    low, high = quantiles(values[kept], counts[kept])
    spread = high - low
    if not spread:
        return float(values.min()), float(values.max())
    return low - spread, high + spread


def range_of(samples: Values) -> tuple[float, float, float]:
    """Least and greatest value of the picture in samples of any shape, and the share of strays."""
    flat = samples.ravel()
    values, counts = np.unique(flat[:: -(-flat.size // _SAMPLED)], return_counts=True)
    low, high = trusted(values, counts)
    near = (flat >= low) & (flat <= high)
    if near.all():
        return float(flat.min()), float(flat.max()), 0.0
    found = flat[near]
    return float(found.min()), float(found.max()), 1.0 - float(near.mean())


def _without_lone_ends(values: Values) -> npt.NDArray[np.bool_]:
    kept = np.ones(values.shape, np.bool_)
    distinct = np.unique(values)
    if len(distinct) < _LEAST_DISTINCT:
        return kept
    if distinct[1] - distinct[0] > distinct[-1] - distinct[1]:
        kept &= values != distinct[0]
    elif distinct[-1] - distinct[-2] > distinct[-2] - distinct[0]:
        kept &= values != distinct[-1]
    return kept
