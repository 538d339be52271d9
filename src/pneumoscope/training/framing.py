"""Training images whose field is cut anew, so that how much of it the lungs fill tells nothing.

Comes in: a batch of squares as stored, where the lungs lie in each, how often to cut. Goes out: the
batch, some of it cut closer to the lungs and stretched to the square again. Knows nothing of
labels.

How closely a film is collimated, and in which form, depends on who lay on the table: an ill child
is held, a well one stands, and in the films of one hospital the lungs of the ill fill more of the
field's height. A crop of random size about the whole field moves both alike and leaves that
difference. Here the share that the lungs fill is drawn, from one range for all, in width and in
height by themselves: what fills less is cut until it fills as much; what fills more stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]

_FILLED = (0.6, 1.1)
"""Least and largest share of the field that the lungs are to fill, in either direction; above 1
the field ends within them."""

_USUAL = (0.11, 0.89)
"""From where to where lungs reach that were not found: the middle of those that were."""


def reframe(squares: Bytes, lungs: Bytes, chance: float, generator: np.random.Generator) -> Bytes:
    """Some images cut closer to the lungs, stretched to the square; the rest as they are.

    Args:
        squares: (n, side, side).
        lungs: of the same shape, as `LungExtractor` makes them.
        chance: that an image is cut; one whose lungs fill what is drawn stays whole all the same.
        generator: of all that is random here.
    """
    side = squares.shape[1]
    out = squares.copy()
    for k in np.flatnonzero(generator.random(len(squares)) < chance):
        left, right = _cut(lungs[k].any(axis=0), generator)
        top, bottom = _cut(lungs[k].any(axis=1), generator)
        box = (left * side, top * side, right * side, bottom * side)
        image = Image.fromarray(squares[k])
        out[k] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return out


def _cut(covered: NDArray[np.bool_], generator: np.random.Generator) -> tuple[float, float]:
    """Where the new field begins and ends, shares of the old one, from what lungs cover of it.

    Anywhere about the lungs, or within them, that needs nothing from beyond the old field.
    """
    at = np.flatnonzero(covered)
    first, last = (at[0] / covered.size, (at[-1] + 1) / covered.size) if at.size else _USUAL
    length = min((last - first) / generator.uniform(*_FILLED), 1.0)
    nearest, farthest = sorted((last - length, first))
    begin = generator.uniform(max(nearest, 0.0), min(farthest, 1.0 - length))
    return float(begin), float(begin + length)
