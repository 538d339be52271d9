"""A part of a film painted over, or taken from another film: its ring, its centre, its lungs.

Comes in: one decoded grey image, float32 (h, w) in [0, 1], and a width or a mask. Goes out: a new
image of the same shape, type and range. Knows nothing of models, or of where a mask comes from.

A model that ranks as well by the ring, or without the lungs, reads something else than pneumonia.
Black is like nothing in a film, and may silence a model rather than blind it; so each part can be
painted in one grey as well, the mean of what is left, which tells nothing of what is hidden. No
paint is like a film, though, and a model can learn to say nothing of what is painted; so a part
can be another film's too, after "Noise or Signal: The Role of Image Backgrounds in Object
Recognition", Xiao et al., arXiv:2006.09994.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from pneumoscope.errors import PneumoscopeError
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import Mask

Ink = Literal["black", "grey"]
"""What a part is painted over with; grey: the mean of what is left of that film."""

_LEAST_DEVIATION = 1 / 255


def ring_only(image: FloatArray, share: float, ink: Ink = "black") -> FloatArray:
    """The outer ring alone, `share` (0 to 0.5) of each side wide; all within is painted over."""
    return _painted(image, ~_ring(image.shape, share), ink)


def centre_only(image: FloatArray, share: float, ink: Ink = "black") -> FloatArray:
    """All but the outer ring, which is painted over."""
    return _painted(image, _ring(image.shape, share), ink)


def ring_of(image: FloatArray, other: FloatArray, share: float) -> FloatArray:
    """The image with the outer ring of another film, stretched to its shape and made as bright."""
    return _exchanged(image, other, _ring(image.shape, share))


def surroundings_of(image: FloatArray, other: FloatArray, mask: Mask) -> FloatArray:
    """The image within the mask, bool (h, w); all else is another film's, made as bright.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _exchanged(image, other, ~_fitting(image, mask))


def as_bright(other: FloatArray, image: FloatArray, hidden: Mask) -> FloatArray:
    """Another film (h, w) with the mean and deviation of what it hides, so that no step shows."""
    theirs, own = other[hidden], image[hidden]
    if not own.size:
        return other
    scale = float(own.std()) / max(float(theirs.std()), _LEAST_DEVIATION)
    matched = (other - theirs.mean()) * np.float32(scale) + own.mean()
    return np.asarray(matched.clip(0.0, 1.0), np.float32)


def without(image: FloatArray, mask: Mask, ink: Ink = "black") -> FloatArray:
    """The image with the mask, bool (h, w), painted over.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _painted(image, _fitting(image, mask), ink)


def box_around(mask: Mask) -> Mask:
    """The smallest upright rectangle that holds the mask, bool (h, w): an outline of few words."""
    box = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def only(image: FloatArray, mask: Mask, ink: Ink = "black") -> FloatArray:
    """The image within the mask, bool (h, w); all else is painted over.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _painted(image, ~_fitting(image, mask), ink)


def _exchanged(image: FloatArray, other: FloatArray, hidden: Mask) -> FloatArray:
    source = Image.fromarray(np.ascontiguousarray(other, np.float32))
    fitted = np.asarray(source.resize(image.shape[::-1], Image.Resampling.BILINEAR)).clip(0.0, 1.0)
    return np.where(hidden, as_bright(fitted, image, hidden), image)


def _painted(image: FloatArray, hidden: Mask, ink: Ink) -> FloatArray:
    left = image[~hidden]
    grey = left.mean(dtype=np.float64) if ink == "grey" and left.size else 0.0
    return np.where(hidden, np.float32(grey), image)


def _ring(shape: tuple[int, ...], share: float) -> Mask:
    inside = np.zeros(shape, bool)
    top, left = (round(share * side) for side in shape)
    inside[top : shape[0] - top, left : shape[1] - left] = True
    return ~inside


def _fitting(image: FloatArray, mask: Mask) -> Mask:
    if mask.shape != image.shape or mask.dtype != np.bool_:
        raise PneumoscopeError(
            f"mask: found shape {mask.shape} and type {mask.dtype}, wanted bool {image.shape}."
        )
    return mask
