"""Lung segmentation on a frontal X-ray, lung masks from a user, and masking of image regions.

`find_lungs` is a simple, classical segmentation with a quality in [0, 1]; no part of it is trained.
It serves to check which regions a model uses, not to measure lungs. The steps, on a square of
128 pixels: subtract slow changes of brightness (a wide Gaussian). Threshold, separately for each
side (Otsu 1979), what is darker than its surroundings and lies where lungs can lie (two upright
ellipses beside the midline). Open, close and fill the largest component of each side to its convex
hull, so that a rib, a vessel or an opacity in the middle of a lung does not cut it in two. An
opacity at the edge of a lung can still be missed: the outline of the lungs then depends on the
disease (see `evaluation/stress.py`).

`MaskFolder` reads a user's lung masks: PNG files with the names of the images, in a separate
folder.

The other functions mask a region of an image or replace it with that of another image: the outer
ring, the centre or the lungs. A model that ranks images as well by the ring, or without the lungs,
uses something other than pneumonia. Black does not occur in an X-ray like that, and it may suppress
the output even if the model uses the remaining region. Therefore a region can also be filled with
one grey, the mean of the remaining region, which carries no information about the masked one. No
fill looks like an X-ray, though, and a model can learn to suppress its output for filled images.
Therefore a region can also be swapped with that of another image, after "Noise or Signal: The Role
of Image Backgrounds in Object Recognition", Xiao et al., arXiv:2006.09994.

`match_framing` crops an image so that the lungs fill a given share of it. How closely an X-ray is
collimated differs between hospitals, and within one hospital between healthy children and patients
with pneumonia. A model can then score well by using the framing as a shortcut. In the Kermany
training folder the lungs fill 0.63 of the height of normal images (median) and 0.70 of those with
pneumonia. Matched images carry no such cue: in all of them the bounding box of the lungs fills the
same share of the height and of the width, and is centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pneumoscope.arrays import Float32Array
from pneumoscope.config import FramingConfig, StressConfig
from pneumoscope.errors import DataError, ImageRefusedError, PneumoscopeError, Reason
from pneumoscope.images.read import read_image

Mask = NDArray[np.bool_]

_SIDE = 128
_SMOOTH = (4.0, 1.5)
"""Standard deviations down and across: ribs run across, and lung lies between them."""

_SLOW = 26.0
_PRIOR_CENTRES = ((0.29, 0.44), (0.71, 0.44))
"""Column and row of the centre of each lung field, as shares of the side."""

_PRIOR_RADII = (0.215, 0.36)
_PRIOR_WEIGHT = 0.55
"""Darkness, in standard deviations, that a point at the ellipse's edge needs to count as lung."""

_SEED = 0.15
"""Squared radius, in units of the ellipse, of the area taken as lung on every image."""

_LUNG_AREA = (0.03, 0.06, 0.22, 0.30)
"""Share of the image that one lung takes: none below the first, likely from second to third."""

_WHITE = 0.5
_MIN_DEVIATION = 1 / 255

MATCHED_SHARES = (0.63, 0.71, 0.79)
"""Shares of the side that the stress test matches to: the median height of the lungs in normal
images of the Kermany training folder, that of its official test folder, and a tighter crop."""

USUAL_SHARE = FramingConfig().framing_share
"""The default share of `evaluate --framing matched`."""


@dataclass(frozen=True, slots=True, eq=False)
class LungFields:
    """The lungs on one image.

    Attributes:
        mask: bool (h, w), both lung fields.
        wide: bool (h, w), for removing the lungs: each field joined with the mirror image of the
            other, so that it also covers parts of a lung that an opacity or the heart hides.
        quality: 0 (not like two lungs) to 1; don't use it below `StressConfig.lung_quality`.
    """

    mask: Mask
    wide: Mask
    quality: float


def find_lungs(image: Float32Array) -> LungFields:
    """Segment the lung fields of a frontal X-ray.

    Args:
        image: float32 (h, w) in [0, 1], 1 is white.

    Returns:
        Masks of the same shape; empty with quality 0 where no lungs were detected.
    """
    height, width = image.shape
    small = Image.fromarray(np.ascontiguousarray(image, np.float32))
    square = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    darkness = _darkness(square)
    inside = _inside(square)
    sides = [_lung(darkness, inside, centre) for centre in _PRIOR_CENTRES]
    mask, wide = sides[0] | sides[1], _widened(sides)
    return LungFields(
        resized_mask(mask, (height, width)),
        resized_mask(wide, (height, width)),
        _quality(sides, darkness),
    )


def resized_mask(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask, bool (h, w), resized to another shape."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR)) >= 128


def _widened(sides: list[Mask]) -> Mask:
    """Each field joined with the mirror image of the other about the line half-way between them."""
    from scipy.ndimage import binary_dilation

    columns = np.arange(_SIDE)
    middles = [float(side.sum(axis=0) @ columns / max(side.sum(), 1)) for side in sides]
    mirrored = np.round(sum(middles) - columns).astype(int)
    there = (mirrored >= 0) & (mirrored < _SIDE)
    joined = []
    for own, other in (sides, sides[::-1]):
        reflection = other[:, mirrored.clip(0, _SIDE - 1)] & there
        joined.append(_hull(own | reflection))
    return np.asarray(binary_dilation(joined[0] | joined[1], iterations=4))


def _darkness(square: Float32Array) -> NDArray[np.float64]:
    """How much darker each point is than its wide surroundings, in standard deviations."""
    from scipy.ndimage import gaussian_filter

    fine = gaussian_filter(square.astype(np.float64), _SMOOTH, mode="nearest")
    slow = gaussian_filter(square.astype(np.float64), _SLOW, mode="nearest")
    dark = slow - fine
    inner = dark[_SIDE // 8 : -_SIDE // 8, _SIDE // 8 : -_SIDE // 8]
    return np.asarray(dark / max(float(inner.std()), 1e-6))


def _prior(centre: tuple[float, float]) -> NDArray[np.float64]:
    """Squared distance from a lung's centre in units of the ellipse: 1 at its edge."""
    at = (np.arange(_SIDE) + 0.5) / _SIDE
    x = (at - centre[0])[None, :] / _PRIOR_RADII[0]
    y = (at - centre[1])[:, None] / _PRIOR_RADII[1]
    return np.asarray(x * x + y * y)


def _inside(square: Float32Array) -> Mask:
    """The area on the lungs' side of the chest wall.

    Two floods rise, one from the upper and lateral edges of the image and one from the centres of
    both lungs. Each point belongs to the flood that reaches it over the lower ridge (watershed by
    image foresting, Falcão, Stolfi & Lotufo 2004), and the chest wall is a ridge.
    """
    from scipy.ndimage import gaussian_filter, watershed_ift

    relief = gaussian_filter(square.astype(np.float64), _SMOOTH, mode="nearest")
    seeds = np.zeros((_SIDE, _SIDE), np.int16)
    seeds[: -_SIDE // 8, [0, -1]] = 1
    seeds[0] = 1
    for centre in _PRIOR_CENTRES:
        seeds[_prior(centre) < _SEED] = 2
    flooded = watershed_ift(np.round(relief * 255).astype(np.uint8), seeds)
    return np.asarray(flooded == 2)


def _lung(darkness: NDArray[np.float64], inside: Mask, centre: tuple[float, float]) -> Mask:
    from scipy.ndimage import (
        binary_closing,
        binary_dilation,
        binary_fill_holes,
        binary_opening,
    )

    distance = _prior(centre)
    score = darkness - _PRIOR_WEIGHT * distance
    near = inside & (distance < 1.6)
    score = np.where(near, score, -np.inf)
    cut = otsu(score[near & (distance < 1.2)])
    found = near & (score > min(cut, 0.25))
    found = binary_opening(found, iterations=2)
    found = _largest(found)
    found = binary_fill_holes(binary_closing(found, iterations=3))
    return np.asarray(binary_dilation(_hull(found)))  # the smoothing has moved the edge inwards


def otsu(values: NDArray[np.float64], bins: int = 64) -> float:
    """The threshold that minimises the variance within both classes (Otsu 1979).

    Args:
        values: (n,), n ≥ 1, finite.
        bins: number of histogram bins.
    """
    counts, edges = np.histogram(values, bins=bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        between = below * above * gap * gap
    return float(edges[1:-1][int(np.nanargmax(between))]) if bins > 1 else float(edges[0])


def _largest(found: Mask) -> Mask:
    from scipy.ndimage import label

    pieces, count = label(found)
    if not count:
        return found
    sizes = np.bincount(pieces.ravel())[1:]
    return np.asarray(pieces == int(sizes.argmax()) + 1)


def _hull(found: Mask) -> Mask:
    """The convex hull of a component, filled."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.argwhere(found)[:, ::-1]
    try:
        hull = ConvexHull(points) if len(points) > 2 else None
    except QhullError:  # all points on one line
        hull = None
    if hull is None:
        return np.zeros_like(found)
    canvas = Image.new("1", (_SIDE, _SIDE))
    corners = [(float(x), float(y)) for x, y in points[hull.vertices]]
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    return np.asarray(canvas) | found


def _quality(sides: list[Mask], darkness: NDArray[np.float64]) -> float:
    """The lowest of: plausible sizes, similar sizes, dark interior, no overlap of both fields."""
    from scipy.ndimage import binary_dilation

    areas = [float(side.mean()) for side in sides]
    if min(areas) == 0:
        return 0.0
    sizes = min(float(np.interp(area, _LUNG_AREA, (0, 1, 1, 0))) for area in areas)
    alike = float(np.interp(min(areas) / max(areas), (0.25, 0.55), (0, 1)))
    both = sides[0] | sides[1]
    around = binary_dilation(both, iterations=_SIDE // 16) & ~both
    dark = float(np.interp(darkness[both].mean() - darkness[around].mean(), (0.3, 0.9), (0, 1)))
    apart = 1.0 - float(np.mean(sides[0] & sides[1])) / min(areas)
    return min(sizes, alike, dark, apart)


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """A user's lung masks, found by the names of the images.

    Attributes:
        folder: contains `NAME.png` at the image's path relative to `root`, or directly inside.
        root: the folder of the images.
    """

    folder: Path
    root: Path

    def path_of(self, image: Path) -> Path | None:
        """The mask file of an image; `None` if there is none."""
        names = [Path(image.name).with_suffix(".png")]
        if image.is_relative_to(self.root):
            names.insert(0, image.relative_to(self.root).with_suffix(".png"))
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def lungs(self, image: Path, shape: tuple[int, int]) -> LungFields | None:
        """The mask of an image, resized to its shape; mask pixels brighter than half are lung.

        Returns:
            `None` if there is no mask file or the mask is empty.

        Raises:
            DataError: the mask has no white, only darker pixels, such as 1 for lung.
            ImageRefusedError: the mask file is not a readable image.
        """
        path = self.path_of(image)
        if path is None:
            return None
        try:
            pixels = read_image(path).pixels
        except ImageRefusedError as error:
            if error.reason is Reason.BLANK:
                return None
            raise
        if pixels.max() <= _WHITE:
            raise DataError(
                f"{path}: its brightest pixel is {round(255 * float(pixels.max()))} of 255, wanted "
                "white (255) for lung and black for the rest. Multiply masks of 0 and 1 by 255, or "
                "delete this file to leave its image without lungs."
            )
        mask = resized_mask(pixels > _WHITE, shape)
        return LungFields(mask, mask, 1.0) if mask.any() else None


Ink = Literal["black", "grey"]
"""The fill of a masked region; grey is the mean of the remaining pixels of the image."""


def ring_only(image: Float32Array, share: float, ink: Ink = "black") -> Float32Array:
    """Keep the outer ring, `share` (0 to 0.5) of each side wide; fill the rest."""
    return _painted(image, ~_ring(image.shape, share), ink)


def centre_only(image: Float32Array, share: float, ink: Ink = "black") -> Float32Array:
    """Fill the outer ring, `share` (0 to 0.5) of each side wide; keep the rest."""
    return _painted(image, _ring(image.shape, share), ink)


def swap_ring(image: Float32Array, other: Float32Array, share: float) -> Float32Array:
    """Replace the outer ring with that of another image, resized and matched in brightness."""
    return _exchanged(image, other, _ring(image.shape, share))


def swap_background(image: Float32Array, other: Float32Array, mask: Mask) -> Float32Array:
    """Keep the image inside the mask, bool (h, w); replace the rest with another image's.

    The other image is resized and matched in brightness and contrast.

    Raises:
        PneumoscopeError: the mask has another shape than the image.
    """
    return _exchanged(image, other, ~_fitting(image, mask))


def match_brightness(other: Float32Array, image: Float32Array, hidden: Mask) -> Float32Array:
    """Another image (h, w) with the mean and deviation of the hidden region, to avoid a step."""
    theirs, own = other[hidden], image[hidden]
    if not own.size:
        return other
    scale = float(own.std()) / max(float(theirs.std()), _MIN_DEVIATION)
    matched = (other - theirs.mean()) * np.float32(scale) + own.mean()
    return np.asarray(matched.clip(0.0, 1.0), np.float32)


def mask_out(image: Float32Array, mask: Mask, ink: Ink = "black") -> Float32Array:
    """Fill the region of the mask, bool (h, w).

    Raises:
        PneumoscopeError: the mask has another shape than the image.
    """
    return _painted(image, _fitting(image, mask), ink)


def bounding_box(mask: Mask) -> Mask:
    """The smallest upright rectangle around the mask, bool (h, w): it hides the exact outline."""
    box = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def keep_inside(image: Float32Array, mask: Mask, ink: Ink = "black") -> Float32Array:
    """Keep the image inside the mask, bool (h, w); fill the rest.

    Raises:
        PneumoscopeError: the mask has another shape than the image.
    """
    return _painted(image, ~_fitting(image, mask), ink)


def _exchanged(image: Float32Array, other: Float32Array, hidden: Mask) -> Float32Array:
    source = Image.fromarray(np.ascontiguousarray(other, np.float32))
    fitted = np.asarray(source.resize(image.shape[::-1], Image.Resampling.BILINEAR)).clip(0.0, 1.0)
    return np.where(hidden, match_brightness(fitted, image, hidden), image)


def _painted(image: Float32Array, hidden: Mask, ink: Ink) -> Float32Array:
    left = image[~hidden]
    grey = left.mean(dtype=np.float64) if ink == "grey" and left.size else 0.0
    return np.where(hidden, np.float32(grey), image)


def _ring(shape: tuple[int, ...], share: float) -> Mask:
    inside = np.zeros(shape, bool)
    top, left = (round(share * side) for side in shape)
    inside[top : shape[0] - top, left : shape[1] - left] = True
    return ~inside


def _fitting(image: Float32Array, mask: Mask) -> Mask:
    if mask.shape != image.shape or mask.dtype != np.bool_:
        raise PneumoscopeError(
            f"mask: found shape {mask.shape} and type {mask.dtype}; expected bool {image.shape}. "
            "Give a mask of the image's shape."
        )
    return mask


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


def reliable_box(image: Float32Array) -> LungBox | None:
    """The box around the lungs of an image, float32 (h, w) in [0, 1].

    `None` if no lungs are detected, or if their quality is below `StressConfig.lung_quality`.
    """
    lungs = find_lungs(image)
    return lung_box(lungs) if lungs.quality >= StressConfig().lung_quality else None


def match_framing(image: Float32Array, box: LungBox | None, share: float) -> Float32Array:
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
