"""Training images with other surroundings, or without lungs: so that the lungs are what is read.

Comes in: a batch of squares as stored, where the lungs lie in each, how often to do which. Goes
out: the batch with some of its images changed, and which of them show no lungs any more. Knows
nothing of labels.

What lies around the lungs (collimation, arms, markers, how a child was held) tells of the room
and of the day, and in one hospital of the illness too. Where it comes from another film it says
nothing, and what is asked is still the lungs' own label; where the lungs are painted over there
is nothing to say, and the target is how frequent pneumonia is. Masks are never so good that no
opacity lies beside them, and a seam must not tell what was done: hence several outlines, soft
and hard, and several paints. After "Noise or Signal: The Role of Image Backgrounds in Object
Recognition", Xiao et al., arXiv:2006.09994.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import DistortConfig
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import Mask, find_lungs
from pneumoscope.images.occlusion import as_bright, box_around
from pneumoscope.images.preprocess import Preprocessor

Bytes = NDArray[np.uint8]

_NARROW, _WIDE = 1, 2
"""Bits of a pixel: in a lung; in one field or the mirror image of the other."""

_LEAST_QUALITY = 0.5
"""Films whose lungs are found less surely count as without: `StressConfig.lung_quality`'s."""

_WIDEST_RING = 0.2
"""Of the side: where no lungs were found, a frame of 5 % to this is what lies around."""

_SOFTEST = 4.0
"""Deviation of the softest seam, pixels as stored."""


class LungExtractor:
    """Where the lungs are, uint8 (size, size): 0, or 2 around them, 3 in them; found once."""

    kind = "u1"
    noun = "finding lungs"
    fingerprint = "lungs u1"

    def __init__(self, size: int) -> None:
        self.shape: tuple[int, ...] = (size, size)

    def prepare(self, square: FloatArray, preprocessor: Preprocessor) -> NDArray[Any]:
        """Of one image; nothing where lungs are not found surely enough."""
        found = find_lungs(square)
        codes = _NARROW * found.mask + _WIDE * (found.wide | found.mask)
        return (codes * (found.quality >= _LEAST_QUALITY)).astype(np.uint8)

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The same."""
        return batch


def in_lungs(lungs: Bytes) -> Bytes:
    """255 in the lungs and 0 elsewhere, from rows of `LungExtractor` (n, side, side)."""
    return ((lungs & _NARROW) * np.uint8(255)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Changed:
    """A batch (n, side, side), uint8, and which (n,) of it show no lungs."""

    squares: Bytes
    silent: NDArray[np.bool_]


def change_surroundings(
    squares: Bytes, lungs: Bytes, config: DistortConfig, generator: np.random.Generator
) -> Changed:
    """Some images with other surroundings, some without lungs, the rest as they are.

    Args:
        squares: (n, side, side), n ≥ 2.
        lungs: of the same shape, as `LungExtractor` makes them.
        config: how often to do which (`surround`, `surround_frame`, `silence`).
        generator: of all that is random here.
    """
    drawn = generator.random(len(squares))
    silent = drawn < config.silence
    donors = np.roll(squares, int(generator.integers(1, len(squares))), axis=0)
    out = squares.copy()
    for k in np.flatnonzero(drawn < config.silence + config.surround):
        framed = config.surround_frame > 0 and not silent[k]
        if framed and generator.random() < config.surround_frame:
            shown = _centre(lungs[k].shape, generator)
        elif framed and not lungs[k].any():
            continue  # or a frame would tell that no lungs were found, and that of an ill lung
        else:
            shown = _outline(lungs[k], generator)
        own = _grey(squares[k])
        hidden = shown if silent[k] else ~shown
        if silent[k] or generator.random() < 0.5:
            over: FloatArray = np.full_like(own, _ink(own[~hidden], generator))
        else:
            over = as_bright(_grey(donors[k]), own, hidden)
        out[k] = np.rint(255 * (own + _softened(hidden, generator) * (over - own)))
    return Changed(out, silent)


def _outline(lungs: Bytes, generator: np.random.Generator) -> Mask:
    """The lungs, narrow or wide, or a box about them; without lungs all but a frame."""
    wide = (lungs & _WIDE) > 0
    if not wide.any():
        return _centre(lungs.shape, generator)
    choice = generator.integers(4)
    if choice == 0:
        return (lungs & _NARROW) > 0
    return wide if choice < 3 else box_around(wide)


def _centre(shape: tuple[int, ...], generator: np.random.Generator) -> Mask:
    """All but a frame."""
    inside = np.zeros(shape, bool)
    edge = max(round(generator.uniform(0.05, _WIDEST_RING) * shape[0]), 1)
    inside[edge:-edge, edge:-edge] = True
    return inside


def _grey(square: Bytes) -> FloatArray:
    return square.astype(np.float32) / np.float32(255)


def _ink(left: FloatArray, generator: np.random.Generator) -> float:
    """Black, any grey, or the mean of what is left, black where that is nothing."""
    choice = generator.integers(3)
    if choice == 0:
        return 0.0
    if choice == 1:
        return float(generator.random())
    return float(left.mean()) if left.size else 0.0


def _softened(mask: Mask, generator: np.random.Generator) -> FloatArray:
    """The mask from 0 to 1, its edge hard in half of the cases."""
    from scipy.ndimage import gaussian_filter

    hard = mask.astype(np.float32)
    if generator.random() < 0.5:
        return hard
    deviation = generator.uniform(0.5, _SOFTEST)
    soft = gaussian_filter(hard, deviation, mode="nearest")
    return np.asarray(soft, dtype=np.float32)
