"""Lung-based cropping to one standard framing, and image descriptors for the input check.

`match_framing` crops an image so that the lungs fill a given share of it. How closely an X-ray is
collimated differs between hospitals, and within one hospital between healthy children and patients
with pneumonia. A model can then score well by using the framing as a shortcut. In the Kermany
training folder the lungs fill 0.63 of the height of normal images (median) and 0.70 of those with
pneumonia. Matched images carry no such cue: in all of them the bounding box of the lungs fills the
same share of the height and of the width, and is centred.

`describe_image` computes descriptors for the out-of-distribution check without a network. They do
not depend on the brightness and contrast of the image. A quarter turn or an inversion only permutes
the numbers of the descriptors or changes their signs, so the descriptors of a rotated image can be
computed without rotating it. The gradient histograms follow Dalal and Triggs 2005 (Histograms of
Oriented Gradients, doi:10.1109/CVPR.2005.177), with signed directions and no overlapping blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pneumoscope.config import FramingConfig, StressConfig
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import LungFields, find_lungs

MATCHED_SHARES = (0.63, 0.71, 0.79)
"""Shares of the side that the stress test matches to: the median height of the lungs in normal
images of the Kermany training folder, that of its official test folder, and a tighter crop."""

USUAL_SHARE = FramingConfig().framing_share
"""The default share of `evaluate --framing matched`."""


@dataclass(frozen=True, slots=True)
class LungBox:
    """The upright box around both lungs, in shares of the image's width and height (0 to 1)."""

    left: float
    top: float
    right: float
    bottom: float

    def values(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return (self.left, self.top, self.right, self.bottom)


MEDIAN_BOX = LungBox(0.156, 0.156, 0.848, 0.830)
"""The median of 4,145 images of the Kermany training folder in which lungs were detected; used for
images in which none are detected."""


def lung_box(lungs: LungFields | None) -> LungBox | None:
    """The box around detected lungs; `None` where there are none."""
    if lungs is None or not lungs.mask.any():
        return None
    height, width = lungs.mask.shape
    rows = np.flatnonzero(lungs.mask.any(axis=1))
    columns = np.flatnonzero(lungs.mask.any(axis=0))
    return LungBox(
        float(columns[0]) / width,
        float(rows[0]) / height,
        float(columns[-1] + 1) / width,
        float(rows[-1] + 1) / height,
    )


def reliable_box(image: FloatArray) -> LungBox | None:
    """The box around the lungs of an image, float32 (h, w) in [0, 1].

    `None` if no lungs are detected, or if their quality is below `StressConfig.lung_quality`.
    """
    lungs = find_lungs(image)
    return lung_box(lungs) if lungs.quality >= StressConfig().lung_quality else None


def match_framing(image: FloatArray, box: LungBox | None, share: float) -> FloatArray:
    """Crop the image so that `box` fills `share` of its width and height, centred.

    Width and height are stretched independently, like the network's square input. Where the new
    frame reaches beyond the image, the edge pixels are repeated.

    Args:
        image: float32 (h, w) in [0, 1].
        box: the lungs; `None` stands for `MEDIAN_BOX`.
        share: the share of each side that the box fills, above 0; above 1 the crop cuts into the
            lungs.

    Returns:
        float32 (h, w) in [0, 1], by bilinear interpolation.
    """
    from scipy.ndimage import map_coordinates

    left, top, right, bottom = (box or MEDIAN_BOX).values()
    height, width = image.shape
    rows = _positions(top, bottom, share, height)
    columns = _positions(left, right, share, width)
    at = np.meshgrid(rows, columns, indexing="ij")
    return np.asarray(map_coordinates(image, at, order=1, mode="nearest"), np.float32)


def _positions(first: float, last: float, share: float, pixels: int) -> np.ndarray:
    """Positions of the new pixel centres along one axis, in pixels of the image."""
    length = (last - first) / share
    begin = (first + last - length) / 2
    centres = (np.arange(pixels) + 0.5) / pixels
    return np.asarray((begin + length * centres) * pixels - 0.5)


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
