"""What is left of a film when a part is painted black: its ring, its centre, its lungs, the rest.

Comes in: one decoded grey image, float32 (h, w) in [0, 1], and a width or a mask. Goes out: a new
image of the same shape, type and range. Knows nothing of models, or of where a mask comes from.

A model that ranks as well by the ring, or without the lungs, reads something else than pneumonia.
"""

from __future__ import annotations

import numpy as np

from pneumoscope.errors import PneumoscopeError
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import Mask


def ring_only(image: FloatArray, share: float) -> FloatArray:
    """The outer ring alone, `share` (0 to 0.5) of each side wide; all within is black."""
    return np.where(_ring(image.shape, share), image, np.float32(0))


def centre_only(image: FloatArray, share: float) -> FloatArray:
    """All but the outer ring, which is black."""
    return np.where(_ring(image.shape, share), np.float32(0), image)


def without(image: FloatArray, mask: Mask) -> FloatArray:
    """The image with the mask, bool (h, w), painted black.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return np.where(_fitting(image, mask), np.float32(0), image)


def box_around(mask: Mask) -> Mask:
    """The smallest upright rectangle that holds the mask, bool (h, w): an outline of few words."""
    box = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def only(image: FloatArray, mask: Mask) -> FloatArray:
    """The image within the mask, bool (h, w); all else is black.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return np.where(_fitting(image, mask), image, np.float32(0))


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
