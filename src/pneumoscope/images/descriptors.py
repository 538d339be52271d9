"""Image descriptors for the input check, computed without a network.

They do not depend on the brightness and contrast of the image. A quarter turn or an inversion only
permutes the numbers of the descriptors or changes their signs, so the descriptors of a rotated
image can be computed without rotating it. The gradient histograms follow Dalal and Triggs 2005
(Histograms of Oriented Gradients, doi:10.1109/CVPR.2005.177), with signed directions and no
overlapping blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pneumoscope.images.grey import FloatArray

_FINE = 64
_COARSE = 32
_CELLS = 8
_DIRECTIONS = 8
_QUARTER = _DIRECTIONS // 4
_MIN_DEVIATION = 1e-3
_MIN_STRENGTH = 1e-9

THUMBNAIL, GRADIENTS, EDGES = "thumbnail", "gradients", "edges"


@dataclass(frozen=True, slots=True, eq=False)
class ImageDescriptors:
    """Descriptors of one image for the out-of-distribution check.

    Attributes:
        thumbnail: float32 (32, 32), mean 0, standard deviation 1.
        energy: mean gradient magnitude of the thumbnail, float32 (8, 8, 8) ≥ 0: by row and column
            of cells from the top left, and by direction in steps of 45° clockwise; the first
            direction gets brighter to the right.
    """

    thumbnail: FloatArray
    energy: FloatArray

    def rotated(self, quarters: int, *, inverted: bool = False) -> ImageDescriptors:
        """The descriptors of the image rotated anticlockwise by quarter turns, then inverted."""
        shift = -_QUARTER * quarters + (_DIRECTIONS // 2 if inverted else 0)
        thumbnail = np.rot90(self.thumbnail, quarters)
        energy = np.roll(np.rot90(self.energy, quarters), shift, axis=2)
        return ImageDescriptors(-thumbnail if inverted else thumbnail, energy)

    def vectors(self) -> Mapping[str, FloatArray]:
        """The descriptors of the image rotated anticlockwise by quarter turns, then inverted."""
        strength = max(float(self.energy.mean()), _MIN_STRENGTH)
        edges: FloatArray = np.sqrt(self.energy).ravel()
        return {
            THUMBNAIL: self.thumbnail.ravel(),
            GRADIENTS: (edges / np.sqrt(strength)).astype(np.float32),
            EDGES: edges,
        }


def describe_image(square: FloatArray) -> ImageDescriptors:
    """Compute the descriptors of one image, float32 (s, s) in [0, 1]."""
    source = Image.fromarray(np.ascontiguousarray(square, dtype=np.float32))
    fine = np.asarray(source.resize((_FINE, _FINE), Image.Resampling.BILINEAR))
    fine = fine - fine.mean(dtype=np.float64).astype(np.float32)
    fine = fine / np.float32(max(float(fine.std(dtype=np.float64)), _MIN_DEVIATION))
    step = _FINE // _COARSE
    coarse = fine.reshape(_COARSE, step, _COARSE, step).mean((1, 3))
    return ImageDescriptors(coarse, _energy(fine))


def _energy(image: FloatArray) -> FloatArray:
    """Gradients (n, n) to (8, 8, 8); each is shared between the two nearest directions."""
    down, right = np.gradient(image)
    strength = np.hypot(right, down)
    direction = np.arctan2(down, right) * np.float32(_DIRECTIONS / (2 * np.pi))
    floor = np.floor(direction)
    upper = strength * (direction - floor)
    first = floor.astype(np.intp) % _DIRECTIONS
    cell = _FINE // _CELLS
    rows, columns = np.arange(_FINE)[:, None] // cell, np.arange(_FINE)[None] // cell
    start = (rows * _CELLS + columns) * _DIRECTIONS
    size = _CELLS * _CELLS * _DIRECTIONS
    counted = np.bincount((start + first).ravel(), (strength - upper).ravel(), size)
    following = start + (first + 1) % _DIRECTIONS
    counted += np.bincount(following.ravel(), upper.ravel(), size)
    shape = (_CELLS, _CELLS, _DIRECTIONS)
    return (counted / cell**2).astype(np.float32).reshape(shape)
