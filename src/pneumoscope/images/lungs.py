"""Where the lungs are on a frontal film: a simple, classical segmentation, and how sure it is.

Comes in: one decoded grey image, float32 (h, w) in [0, 1], of any size. Goes out: a mask of the
same shape with a quality in [0, 1]. Learns nothing and knows nothing of labels, models or files.
Made for asking what a model looks at, not for measuring lungs.

The steps, on a square of 128 pixels: slow changes of brightness are taken off (a Gaussian's worth
of neighbourhood); what is darker than its surroundings, and lies where lungs can lie (two upright
ellipses beside the midline), is cut by Otsu's threshold (Otsu 1979), once for either side; the
largest piece of each side is opened, closed and filled to its convex hull, so that a rib, a vessel
or an opacity in the middle of a lung does not cut it in two. An opacity at the lung's edge can
still be missed: the lungs' outline is then not free of the illness (see
`evaluation/stress.py`).

A user's lung masks: PNG files that bear the names of the films, in a folder of their own.

Comes in: the folder, and a film's path. Goes out: `LungFields`, or nothing where there is no mask.
Knows nothing of labels or models.

A part of a film painted over, or taken from another film: its ring, its centre, its lungs.

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

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pneumoscope.errors import ImageRefusedError, PneumoscopeError, Reason
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.read import read_image

Mask = NDArray[np.bool_]

_SIDE = 128
_SMOOTH = (4.0, 1.5)
"""Deviations down and across: ribs run across, and between them lung is lung."""

_SLOW = 26.0
_PRIOR_CENTRES = ((0.29, 0.44), (0.71, 0.44))
"""Column and row of the middle of either lung field, shares of the side."""

_PRIOR_RADII = (0.215, 0.36)
_PRIOR_WEIGHT = 0.55
"""How dark a point at the ellipse's edge must be, in deviations of the picture, to be lung."""

_SEED = 0.15
"""Squared radius, in the ellipse's units, of what is taken to be lung on every film."""

_LUNG_AREA = (0.03, 0.06, 0.22, 0.30)
"""Share of the picture that one lung takes: none below the first, likely from second to third."""


@dataclass(frozen=True, slots=True, eq=False)
class LungFields:
    """Lungs on one film.

    Attributes:
        mask: bool (h, w), both lung fields.
        wide: bool (h, w), for taking the lungs away: either field joined with the mirror image of
            the other, so that what an opacity or the heart hides of one is covered too.
        quality: 0 (nothing like two lungs) to 1; below `StressConfig.lung_quality` don't use it.
    """

    mask: Mask
    wide: Mask
    quality: float


def find_lungs(image: FloatArray) -> LungFields:
    """The lung fields of a frontal film.

    Args:
        image: float32 (h, w) in [0, 1], 1 is white.

    Returns:
        A mask of the same shape, empty where nothing was found (quality 0).
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
    """A mask, bool (h, w), stretched to another shape."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR)) >= 128


def _widened(sides: list[Mask]) -> Mask:
    """Each field with the mirror image of the other about the line half-way between them."""
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


def _darkness(square: FloatArray) -> NDArray[np.float64]:
    """How much darker than its wide surroundings each point is, in deviations."""
    from scipy.ndimage import gaussian_filter

    fine = gaussian_filter(square.astype(np.float64), _SMOOTH, mode="nearest")
    slow = gaussian_filter(square.astype(np.float64), _SLOW, mode="nearest")
    dark = slow - fine
    inner = dark[_SIDE // 8 : -_SIDE // 8, _SIDE // 8 : -_SIDE // 8]
    return np.asarray(dark / max(float(inner.std()), 1e-6))


def _prior(centre: tuple[float, float]) -> NDArray[np.float64]:
    """Squared distance from a lung's middle in units of the ellipse: 1 at its edge."""
    at = (np.arange(_SIDE) + 0.5) / _SIDE
    x = (at - centre[0])[None, :] / _PRIOR_RADII[0]
    y = (at - centre[1])[:, None] / _PRIOR_RADII[1]
    return np.asarray(x * x + y * y)


def _inside(square: FloatArray) -> Mask:
    """What lies on the lungs' side of the chest wall, not on the film edge's.

    Two floods rise from the picture's upper and lateral edges and from the middles of both lungs; a
    point is of the one that reaches it over the lower ridge (watershed by image foresting, Falcão,
    Stolfi & Lotufo 2004), and the chest wall is a ridge.
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
    return np.asarray(binary_dilation(_hull(found)))  # the smoothing has drawn the edge in


def otsu(values: NDArray[np.float64], bins: int = 64) -> float:
    """The cut that leaves the least variance on both sides of it (Otsu 1979).

    Args:
        values: (n,), n ≥ 1, finite.
        bins: of the histogram that is cut.
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
    """The convex hull of a piece, filled."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.argwhere(found)[:, ::-1]
    try:
        hull = ConvexHull(points) if len(points) > 2 else None
    except QhullError:  # all on one line
        hull = None
    if hull is None:
        return np.zeros_like(found)
    canvas = Image.new("1", (_SIDE, _SIDE))
    corners = [(float(x), float(y)) for x, y in points[hull.vertices]]
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    return np.asarray(canvas) | found


def _quality(sides: list[Mask], darkness: NDArray[np.float64]) -> float:
    """The worst of: likely sizes, alike sizes, dark inside, apart from the picture's edge."""
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


_WHITE = 0.5


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """Masks by the names of films.

    Attributes:
        folder: holds `NAME.png` at the film's place relative to `root`, or right inside.
        root: the folder of the films.
    """

    folder: Path
    root: Path

    def path_of(self, film: Path) -> Path | None:
        """The mask's file; `None` if there is none."""
        names = [Path(film.name).with_suffix(".png")]
        if film.is_relative_to(self.root):
            names.insert(0, film.relative_to(self.root).with_suffix(".png"))
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def lungs(self, film: Path, shape: tuple[int, int]) -> LungFields | None:
        """The mask of a film, stretched to its shape: lung is what is brighter than half.

        Raises:
            ImageRefusedError: the file is there and is no image; an empty mask is none.
        """
        path = self.path_of(film)
        if path is None:
            return None
        try:
            pixels = read_image(path).pixels
        except ImageRefusedError as error:
            if error.reason is Reason.BLANK:
                return None
            raise
        mask = resized_mask(pixels > _WHITE, shape)
        return LungFields(mask, mask, 1.0)


Ink = Literal["black", "grey"]
"""What a part is painted over with; grey: the mean of what is left of that film."""

_LEAST_DEVIATION = 1 / 255


def ring_only(image: FloatArray, share: float, ink: Ink = "black") -> FloatArray:
    """The outer ring alone, `share` (0 to 0.5) of each side wide; all within is painted over."""
    return _painted(image, ~_ring(image.shape, share), ink)


def centre_only(image: FloatArray, share: float, ink: Ink = "black") -> FloatArray:
    """All but the outer ring, which is painted over."""
    return _painted(image, _ring(image.shape, share), ink)


def swap_ring(image: FloatArray, other: FloatArray, share: float) -> FloatArray:
    """The image with the outer ring of another film, stretched to its shape and made as bright."""
    return _exchanged(image, other, _ring(image.shape, share))


def swap_background(image: FloatArray, other: FloatArray, mask: Mask) -> FloatArray:
    """The image within the mask, bool (h, w); all else is another film's, made as bright.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _exchanged(image, other, ~_fitting(image, mask))


def match_brightness(other: FloatArray, image: FloatArray, hidden: Mask) -> FloatArray:
    """Another film (h, w) with the mean and deviation of what it hides, so that no step shows."""
    theirs, own = other[hidden], image[hidden]
    if not own.size:
        return other
    scale = float(own.std()) / max(float(theirs.std()), _LEAST_DEVIATION)
    matched = (other - theirs.mean()) * np.float32(scale) + own.mean()
    return np.asarray(matched.clip(0.0, 1.0), np.float32)


def mask_out(image: FloatArray, mask: Mask, ink: Ink = "black") -> FloatArray:
    """The image with the mask, bool (h, w), painted over.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _painted(image, _fitting(image, mask), ink)


def bounding_box(mask: Mask) -> Mask:
    """The smallest upright rectangle that holds the mask, bool (h, w): an outline of few words."""
    box = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def keep_inside(image: FloatArray, mask: Mask, ink: Ink = "black") -> FloatArray:
    """The image within the mask, bool (h, w); all else is painted over.

    Raises:
        PneumoscopeError: the mask is of another shape.
    """
    return _painted(image, ~_fitting(image, mask), ink)


def _exchanged(image: FloatArray, other: FloatArray, hidden: Mask) -> FloatArray:
    source = Image.fromarray(np.ascontiguousarray(other, np.float32))
    fitted = np.asarray(source.resize(image.shape[::-1], Image.Resampling.BILINEAR)).clip(0.0, 1.0)
    return np.where(hidden, match_brightness(fitted, image, hidden), image)


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
