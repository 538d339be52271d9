"""Augmentation against shortcuts around the lungs: background swap, lung-based cropping, mixup.

*Background swap and lung masking* (`change_backgrounds`). What surrounds the lungs (collimation,
arms, markers, how the child was held) identifies the room and the day. In images of one hospital it
may therefore correlate with the disease. In some images the background is replaced by that of
another image or painted over, and the label stays. In others the lungs are painted over, and the
target becomes the prevalence of pneumonia, because nothing that is left allows a prediction. Lung
masks may miss an opacity, and the seam must not reveal the change, so outlines (narrow, wide,
boxes), seams (soft, hard) and fill values vary. After Xiao et al., "Noise or Signal: The Role of
Image Backgrounds in Object Recognition", arXiv:2006.09994.

*Lung-based cropping* (`draw_crops`). How tightly an image is collimated depends on the patient:
children with pneumonia are held and healthy children stand, so in images of one hospital the lungs
of children with pneumonia fill more of the field's height. Random crops of the whole field keep
this difference. Here the share of width and height that the lungs fill is drawn from one range for
all images. An image whose lungs fill less is cropped until they fill that share; an image whose
lungs fill more is not cropped.

*Mixup* (`mix_images`). Each image is blended with its predecessor in the batch, and so are their
labels. Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.config import DistortConfig
from pneumoscope.images.lungs import Mask, bounding_box, find_lungs, match_brightness
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.training.runtime import load_keras

Bytes = NDArray[np.uint8]

_NARROW, _WIDE = 1, 2
"""Bits of a pixel value: in a lung; in a lung field or the mirror image of the other field."""

_SHARES_OF_LUNG = np.array([0, 255, 128, 255], np.uint8)
"""Value of a mask, by the two bits: outside, in a lung, near one, and in and near."""

_LEAST_QUALITY = 0.5
"""Lungs found with less quality count as not found; the default of `StressConfig.lung_quality`."""

_WIDEST_RING = 0.2
"""Widest frame, share of the side. Where no lungs were found, a frame of 5 % to this share counts
as background."""

_SOFTEST = 4.0
"""Standard deviation of the softest seam, in pixels of the stored image."""

_FILLED = (0.6, 1.05)
"""Smallest and largest share of the field that the lungs fill after cropping, per axis; above 1 the
crop ends within the lungs."""

_USUAL = (0.11, 0.89)
"""Extent assumed for lungs that were not found: the median of those that were."""

_MOSTLY_OWN = 0.75
"""An image that keeps at least this share of itself counts as unmixed."""


class LungExtractor:
    """Lung masks, made once per image: uint8 (size, size), 0 outside, 2 near, 3 in the lungs."""

    kind = "u1"
    noun = "finding lungs"
    fingerprint = "lungs u1"

    def __init__(self, size: int) -> None:
        self.shape: tuple[int, ...] = (size, size)

    def prepare(self, square: Float32Array, preprocessor: Preprocessor) -> NDArray[Any]:
        """The lung mask of one image; all 0 where the lungs are not found reliably."""
        found = find_lungs(square)
        codes = _NARROW * found.mask + _WIDE * (found.wide | found.mask)
        return (codes * (found.quality >= _LEAST_QUALITY)).astype(np.uint8)

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The batch, unchanged."""
        return batch


def lung_masks(lungs: Bytes) -> Bytes:
    """Masks from rows of `LungExtractor` (n, side, side): 255 in the lungs, 128 near, 0 elsewhere.

    What is near a lung counts half, because the outline leaves out what consolidation hides.
    """
    return np.take(_SHARES_OF_LUNG, lungs & (_NARROW | _WIDE))


@dataclass(frozen=True, slots=True)
class ChangedBackgrounds:
    """A batch of images after background changes.

    Attributes:
        squares: uint8 (n, side, side).
        without_lungs: which (n,) have their lungs hidden.
        own: which (n,) were not changed.
    """

    squares: Bytes
    without_lungs: NDArray[np.bool_]
    own: NDArray[np.bool_]


def change_backgrounds(
    squares: Bytes, lungs: Bytes, config: DistortConfig, generator: np.random.Generator
) -> ChangedBackgrounds:
    """Replace the background of some images and hide the lungs of others.

    Args:
        squares: images (n, side, side), uint8; a single one has only its own background.
        lungs: masks of the same shape, as `LungExtractor` makes them.
        config: the probabilities `surround`, `surround_frame` and `silence`.
        generator: source of all randomness.

    Returns:
        The batch, which of its images have their lungs hidden, and which were not changed.
    """
    drawn = generator.random(len(squares))
    lungs_hidden = drawn < config.silence
    own = np.ones(len(squares), np.bool_)
    donors = np.roll(squares, int(generator.integers(1, max(len(squares), 2))), axis=0)
    out = squares.copy()
    for k in np.flatnonzero(drawn < config.silence + config.surround):
        framed = config.surround_frame > 0 and not lungs_hidden[k]
        if framed and generator.random() < config.surround_frame:
            shown = _centre(lungs[k].shape, generator)
        elif framed and not lungs[k].any():
            continue  # a frame would reveal that no lungs were found, which correlates with disease
        else:
            shown = _outline(lungs[k], generator)
        image = _grey(squares[k])
        hidden = shown if lungs_hidden[k] else ~shown
        if lungs_hidden[k] or generator.random() < 0.5:
            over: Float32Array = np.full_like(image, _fill_value(image[~hidden], generator))
        else:
            over = match_brightness(_grey(donors[k]), image, hidden)
        out[k] = np.rint(255 * (image + _softened(hidden, generator) * (over - image)))
        own[k] = False
    return ChangedBackgrounds(out, lungs_hidden, own)


def _outline(lungs: Bytes, generator: np.random.Generator) -> Mask:
    """The lungs (narrow or wide) or their bounding box; without lungs, all but a frame."""
    wide = (lungs & _WIDE) > 0
    if not wide.any():
        return _centre(lungs.shape, generator)
    choice = generator.integers(4)
    if choice == 0:
        return (lungs & _NARROW) > 0
    return wide if choice < 3 else bounding_box(wide)


def _centre(shape: tuple[int, ...], generator: np.random.Generator) -> Mask:
    """All but a frame of random width."""
    inside = np.zeros(shape, bool)
    edge = max(round(generator.uniform(0.05, _WIDEST_RING) * shape[0]), 1)
    inside[edge:-edge, edge:-edge] = True
    return inside


def _grey(square: Bytes) -> Float32Array:
    return square.astype(np.float32) / np.float32(255)


def _fill_value(left: Float32Array, generator: np.random.Generator) -> float:
    """Black, a random grey, or the mean of the remaining pixels (black if none remain)."""
    choice = generator.integers(3)
    if choice == 0:
        return 0.0
    if choice == 1:
        return float(generator.random())
    return float(left.mean()) if left.size else 0.0


def _softened(mask: Mask, generator: np.random.Generator) -> Float32Array:
    """The mask as float32 in [0, 1], with a hard edge in half of the cases."""
    from scipy.ndimage import gaussian_filter

    hard = mask.astype(np.float32)
    if generator.random() < 0.5:
        return hard
    deviation = generator.uniform(0.5, _SOFTEST)
    soft = gaussian_filter(hard, deviation, mode="nearest")
    return np.asarray(soft, dtype=np.float32)


Crops = NDArray[np.float64]
"""Visible part of each image (n, 4): left, top, right, bottom as shares of the side."""


def draw_crops(lungs: Bytes, chance: float, generator: np.random.Generator) -> Crops:
    """Draw the visible part of each image: all of it, or a crop closer to the lungs.

    Args:
        lungs: masks (n, side, side), as `LungExtractor` makes them.
        chance: probability that an image is cropped; it stays whole if its lungs already fill the
            drawn share.
        generator: source of all randomness.
    """
    crops = np.tile([0.0, 0.0, 1.0, 1.0], (len(lungs), 1))
    for k in np.flatnonzero(generator.random(len(lungs)) < chance):
        for axis in (0, 1):
            crops[k, axis::2] = _crop_axis(lungs[k].any(axis=axis), generator)
    return crops


def _crop_axis(covered: NDArray[np.bool_], generator: np.random.Generator) -> tuple[float, float]:
    """Begin and end of the crop along one axis, shares of the side, from where the lungs lie.

    The position is random; the crop contains the lungs or lies within them, and stays in the image.
    """
    at = np.flatnonzero(covered)
    first, last = (at[0] / covered.size, (at[-1] + 1) / covered.size) if at.size else _USUAL
    length = min((last - first) / generator.uniform(*_FILLED), 1.0)
    nearest, farthest = sorted((last - length, first))
    begin = generator.uniform(max(nearest, 0.0), min(farthest, 1.0 - length))
    return float(begin), float(min(begin + length, 1.0))


def draw_shares(generator: np.random.Generator, count: int, evenness: float) -> NDArray[np.float32]:
    """Share (n,) that each image keeps of itself, 0.5 to 1; the rest comes from its predecessor.

    It is the larger part of a draw from Beta(evenness, evenness): near 0 most images stay unmixed,
    at 1 all shares are equally likely.
    """
    drawn = generator.beta(evenness, evenness, count)
    return np.maximum(drawn, 1.0 - drawn).astype(np.float32)


def mix_images(images: Any, shares: Any) -> Any:
    """Blend images (n, side, side) with their predecessors (the first with the last), in Keras."""
    ops = load_keras().ops
    own = ops.reshape(shares, (-1, 1, 1))
    return own * images + (1.0 - own) * ops.roll(images, 1, axis=0)


def mix_lungs(lungs: Any, shares: Any) -> Any:
    """Lung masks (n, side, side) of the images that `mix_images` makes, in Keras.

    The lungs of the predecessor count where it contributes more than a quarter.
    """
    ops = load_keras().ops
    seen = ops.cast(ops.reshape(shares, (-1, 1, 1)) < _MOSTLY_OWN, "float32")
    return ops.maximum(lungs, seen * ops.roll(lungs, 1, axis=0))


def mix_labels(classes: NDArray[np.float32], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class shares (n, 2) of the images that `mix_images` makes, from `classes` (n, 2).

    Each row of both adds up to 1.
    """
    return shares[:, None] * classes + (1.0 - shares[:, None]) * np.roll(classes, 1, axis=0)
