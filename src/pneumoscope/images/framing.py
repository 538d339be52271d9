"""Lung-based cropping to one standard framing.

`match_framing` crops an image so that the lungs fill a given share of it. How closely an X-ray is
collimated differs between hospitals, and within one hospital between healthy children and patients
with pneumonia. A model can then score well by using the framing as a shortcut. In the Kermany
training folder the lungs fill 0.63 of the height of normal images (median) and 0.70 of those with
pneumonia. Matched images carry no such cue: in all of them the bounding box of the lungs fills the
same share of the height and of the width, and is centred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
