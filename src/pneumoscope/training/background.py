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

Training images whose field is cut anew, so that how much of it the lungs fill tells nothing.

Comes in: where the lungs lie in each of a batch, how often to cut. Goes out: the part of each
square to be shown, which is then stretched to the square again. Knows nothing of labels.

How closely a film is collimated, and in which form, depends on who lay on the table: an ill child
is held, a well one stands, and in the films of one hospital the lungs of the ill fill more of the
field's height. A crop of random size about the whole field moves both alike and leaves that
difference. Here the share that the lungs fill is drawn, from one range for all, in width and in
height by themselves: what fills less is cut until it fills as much; what fills more stays.

Two training images into one, with the labels of both.

Comes in: a batch in random order, how unevenly to mix. Goes out: each image laid over the one
before it, and how much of each label it carries. Between the two it is a film between two films,
for which the network must say something between two answers. Zhang et al., "mixup: Beyond
Empirical Risk Minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import DistortConfig
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import Mask, bounding_box, find_lungs, match_brightness
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.training.runtime import load_keras

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
            over = match_brightness(_grey(donors[k]), own, hidden)
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
    return wide if choice < 3 else bounding_box(wide)


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


_MOSTLY_OWN = 0.75
"""From this share of its own on, an image counts as showing itself alone."""


def draw_shares(generator: np.random.Generator, count: int, evenness: float) -> NDArray[np.float32]:
    """Share (n,) of its own that each image keeps, 0.5 to 1; the rest is of the one before it.

    From Beta(evenness, evenness), the larger part: near 0 most stay whole, at 1 all shares are
    equally likely.
    """
    drawn = generator.beta(evenness, evenness, count)
    return np.maximum(drawn, 1.0 - drawn).astype(np.float32)


def mixed(images: Any, shares: Any) -> Any:
    """Images (n, side, side), each over the one before it (the last before the first), in Keras."""
    ops = load_keras().ops
    own = ops.reshape(shares, (-1, 1, 1))
    return own * images + (1.0 - own) * ops.roll(images, 1, axis=0)


def mixed_lungs(lungs: Any, shares: Any) -> Any:
    """Where lungs are in images that `mixed` makes: (n, side, side), in Keras.

    Those of the image underneath count where it keeps more than a quarter.
    """
    ops = load_keras().ops
    seen = ops.cast(ops.reshape(shares, (-1, 1, 1)) < _MOSTLY_OWN, "float32")
    return ops.maximum(lungs, seen * ops.roll(lungs, 1, axis=0))


def mixed_labels(classes: NDArray[np.float32], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of either class (n, 2) in images that `mixed` makes of such of `classes` (n, 2).

    Each row of either adds up to 1.
    """
    return shares[:, None] * classes + (1.0 - shares[:, None]) * np.roll(classes, 1, axis=0)
