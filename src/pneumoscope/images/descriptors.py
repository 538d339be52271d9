"""What a film looks like at a glance, described without any network.

Comes in: a grey square, float32 (s, s) in [0, 1], as `preprocess` fits it. Goes out: a `Look`, the
same however bright or flat the film is. Knows nothing of what looks usual, of models or of files.

A quarter turn, or black for white, only moves the numbers of a look about, and their signs: so what
a film would look like turned is known without turning it. Gradients are counted as in Dalal and
Triggs 2005 (Histograms of Oriented Gradients, doi:10.1109/CVPR.2005.177), with signed directions
and without their overlapping blocks.
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
_LEAST_DEVIATION = 1e-3
_LEAST_STRENGTH = 1e-9

THUMBNAIL, GRADIENTS, EDGES = "thumbnail", "gradients", "edges"


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A film at a glance.

    Attributes:
        thumbnail: float32 (32, 32), mean 0, deviation 1.
        energy: mean strength of the thumbnail's gradients, float32 (8, 8, 8) ≥ 0: by row and column
            of cells from the top left, and by direction in steps of 45° clockwise, the first one
            growing brighter to the right.
    """

    thumbnail: FloatArray
    energy: FloatArray

    def turned(self, quarters: int, *, inverted: bool = False) -> Look:
        """The look of the film turned anticlockwise by quarters of a circle, then inverted."""
        shift = -_QUARTER * quarters + (_DIRECTIONS // 2 if inverted else 0)
        thumbnail = np.rot90(self.thumbnail, quarters)
        energy = np.roll(np.rot90(self.energy, quarters), shift, axis=2)
        return Look(-thumbnail if inverted else thumbnail, energy)

    def descriptions(self) -> Mapping[str, FloatArray]:
        """The look as vectors by name: shapes, where edges run which way, how strong they are."""
        strength = max(float(self.energy.mean()), _LEAST_STRENGTH)
        edges: FloatArray = np.sqrt(self.energy).ravel()
        return {
            THUMBNAIL: self.thumbnail.ravel(),
            GRADIENTS: (edges / np.sqrt(strength)).astype(np.float32),
            EDGES: edges,
        }


def look_at(square: FloatArray) -> Look:
    """Describe one film, float32 (s, s) in [0, 1]."""
    source = Image.fromarray(np.ascontiguousarray(square, dtype=np.float32))
    fine = np.asarray(source.resize((_FINE, _FINE), Image.Resampling.BILINEAR))
    fine = fine - fine.mean(dtype=np.float64).astype(np.float32)
    fine = fine / np.float32(max(float(fine.std(dtype=np.float64)), _LEAST_DEVIATION))
    step = _FINE // _COARSE
    coarse = fine.reshape(_COARSE, step, _COARSE, step).mean((1, 3))
    return Look(coarse, _energy(fine))


def _energy(image: FloatArray) -> FloatArray:
    """Gradients (n, n) to (8, 8, 8): each shared between the two directions nearest to its own."""
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
