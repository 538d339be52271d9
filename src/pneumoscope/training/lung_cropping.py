"""Training images whose field is cut anew, so that how much of it the lungs fill tells nothing.

Comes in: where the lungs lie in each of a batch, how often to cut. Goes out: the part of each
square to be shown, which is then stretched to the square again. Knows nothing of labels.

How closely a film is collimated, and in which form, depends on who lay on the table: an ill child
is held, a well one stands, and in the films of one hospital the lungs of the ill fill more of the
field's height. A crop of random size about the whole field moves both alike and leaves that
difference. Here the share that the lungs fill is drawn, from one range for all, in width and in
height by themselves: what fills less is cut until it fills as much; what fills more stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

Fields = NDArray[np.float64]
"""What is to be shown of images (n, 4): left, top, right, bottom in shares of the side."""

_FILLED = (0.6, 1.05)
"""Least and largest share of the field that the lungs are to fill, in either direction; above 1
the field ends within them."""

_USUAL = (0.11, 0.89)
"""From where to where lungs reach that were not found: the middle of those that were."""


def draw_fields(lungs: Bytes, chance: float, generator: np.random.Generator) -> Fields:
    """What is to be shown of each image: the whole, or closer to the lungs.

    Args:
        lungs: (n, side, side), as `LungExtractor` makes them.
        chance: that an image is cut; one whose lungs fill what is drawn stays whole all the same.
        generator: of all that is random here.
    """
    fields = np.tile([0.0, 0.0, 1.0, 1.0], (len(lungs), 1))
    for k in np.flatnonzero(generator.random(len(lungs)) < chance):
        for axis in (0, 1):
            fields[k, axis::2] = _cut(lungs[k].any(axis=axis), generator)
    return fields


def _cut(covered: NDArray[np.bool_], generator: np.random.Generator) -> tuple[float, float]:
    """Where the new field begins and ends, shares of the old one, from what lungs cover of it.

    Anywhere about the lungs, or within them, that needs nothing from beyond the old field.
    """
    at = np.flatnonzero(covered)
    first, last = (at[0] / covered.size, (at[-1] + 1) / covered.size) if at.size else _USUAL
    length = min((last - first) / generator.uniform(*_FILLED), 1.0)
    nearest, farthest = sorted((last - length, first))
    begin = generator.uniform(max(nearest, 0.0), min(farthest, 1.0 - length))
    return float(begin), float(min(begin + length, 1.0))
