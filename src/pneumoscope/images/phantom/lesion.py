"""Draw what pneumonia adds to an X-ray: the opacity of a lobe, or lines and nodules in both lungs.

The input is the pose, the air in the lungs, the bronchi and the random stream of one patient's
disease. The output is the additional absorption at each pixel, exactly 0 outside the lungs, and the
mask of its visible part. Exposure, noise and frame do not depend on it.

The module also holds the pose of a child and the drawing of shapes, blurs and clouds: points in
units of half the rib cage become float32 pictures (size, size) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pneumoscope.images.phantom.anatomy import SIDES, Anatomy, Points

Picture = NDArray[np.float32]
Shape = tuple[Points, float]
"""A closed outline and the grey in [0, 1] that fills it."""

_SUPERSAMPLING = 2
_COARSE = 4

_VISIBLE = 0.3


@dataclass(frozen=True, slots=True)
class Pose:
    """The position of a child in front of the detector for one image.

    Attributes:
        size: side of the square image, in pixels.
        scale: pixels per half the rib cage.
        angle: rotation of the child in the image plane, in radians.
        x: column of the centre of the thorax; `y`: its row.
        breath: downward displacement of the diaphragm, in units of half the rib cage.
        turn: displacement of anterior structures to the patient's left, in the same units.
    """

    size: int
    scale: float
    angle: float
    x: float
    y: float
    breath: float
    turn: float

    def place(self, points: Points, depth: float = 0.0) -> Points:
        """Points of the child as (column, row); `depth` from -1 (back) to 1 (front)."""
        moved = points[:, 1] + self.breath * np.clip((points[:, 1] + 0.6) / 1.2, 0, 1)
        across = points[:, 0] + self.turn * depth
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        return np.stack(
            [self.x + cos * across - sin * moved, self.y + sin * across + cos * moved], axis=1
        )

    def place_shapes(self, shapes: list[Shape], depth: float = 0.0) -> list[Shape]:
        """Place many outlines at one depth at once."""
        placed = self.place(np.concatenate([outline for outline, _ in shapes]), depth)
        ends = np.cumsum([len(outline) for outline, _ in shapes]).tolist()
        starts = [0, *ends[:-1]]
        pieces = zip(starts, ends, shapes, strict=True)
        return [(placed[start:end], grey) for start, end, (_, grey) in pieces]

    def coordinates(self) -> tuple[Picture, Picture]:
        """The child's x and y at each pixel, without breath and turn."""
        pixels = np.arange(self.size, dtype=np.float32) + np.float32(0.5)
        column, row = (pixels - self.x)[None, :], (pixels - self.y)[:, None]
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        x, y = column * cos + row * sin, row * cos - column * sin
        return x.astype(np.float32), y.astype(np.float32)

    def cloud(self, rng: np.random.Generator, cell: float) -> Picture:
        """Smooth noise of mean 0 and standard deviation about 1 that moves with the child.

        `cell` is the distance of its knots, in units of half the rib cage.
        """
        count = math.ceil(3.6 / cell)
        knots = rng.standard_normal((count, count), dtype=np.float32)
        cos, sin = (math.cos(self.angle), math.sin(self.angle))
        # If knots lie far apart, a coarse picture, enlarged, is the same and much faster.
        coarse = _COARSE if cell * self.scale > 2.5 * _COARSE else 1
        side = math.ceil(self.size / coarse)
        step = coarse / (self.scale * cell)
        a, b = cos * step, sin * step
        c = count / 2 - (a * self.x + b * self.y) / coarse
        f = count / 2 + (b * self.x - a * self.y) / coarse
        cloud = Image.fromarray(knots).transform(
            (side, side), Image.Transform.AFFINE, (a, b, c, -b, a, f), Image.Resampling.BICUBIC
        )
        if coarse > 1:
            cloud = cloud.resize((self.size, self.size), Image.Resampling.BICUBIC)
        # Interpolation between knots has about 0.7 of their standard deviation.
        return np.asarray(cloud, dtype=np.float32) / np.float32(0.7)


def fill(shapes: Iterable[Shape], size: int, blur: float = 0.0) -> Picture:
    """Fill closed outlines (column, row) with greys in [0, 1], later ones over earlier ones.

    Drawn at twice the size and reduced, so that edges are smooth; `blur` is the standard deviation
    of a further blur, in pixels.
    """
    canvas, pen = _canvas(size)
    for outline, grey in shapes:
        pen.polygon((outline * _SUPERSAMPLING).ravel().tolist(), fill=round(255 * grey))
    return _reduced(canvas, blur)


def strokes(
    starts: Points, ends: Points, widths: Points, greys: Points, size: int, blur: float
) -> Picture:
    """Draw straight strokes from `starts` to `ends` (n, 2), `widths` pixels wide, in `greys`."""
    canvas, pen = _canvas(size)
    lines = (np.concatenate([starts, ends], axis=1) * _SUPERSAMPLING).tolist()
    thick = np.maximum(np.rint(widths * _SUPERSAMPLING), 1).astype(int).tolist()
    fills = np.rint(255 * greys).astype(int).tolist()
    for line, width, grey in zip(lines, thick, fills, strict=True):
        pen.line(line, fill=grey, width=width)
    return _reduced(canvas, blur)


def blurred(picture: Picture, sigma: float) -> Picture:
    """A wide Gaussian blur, computed on a grid four times coarser; `sigma` in pixels."""
    from scipy.ndimage import gaussian_filter

    height, width = picture.shape
    image = Image.fromarray(picture)
    coarse = (math.ceil(width / _COARSE), math.ceil(height / _COARSE))
    small = np.asarray(image.resize(coarse, Image.Resampling.BOX), dtype=np.float32)
    soft = gaussian_filter(small, sigma / _COARSE, mode="nearest")
    large = Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32)


def chord(mask: Picture, sigma: float) -> Picture:
    """The thickness of a rounded body from its outline: 0 at the edge, near 1 well inside.

    A blurred mask is ½ at its edge. Twice the excess over ½ increases like a depth, and the chord
    of a cylinder increases like the square root of the depth.
    """
    depth = np.clip(2 * blurred(mask, sigma) - 1, 0, 1)
    return np.sqrt(depth, dtype=np.float32) * mask


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    side = size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    return canvas, ImageDraw.Draw(canvas)


def _reduced(canvas: Image.Image, blur: float) -> Picture:
    small = canvas.reduce(_SUPERSAMPLING)
    # A box filter of that standard deviation: at one or two pixels it looks like a Gaussian and
    # takes a third of the time. If it is narrower than a pixel, the reduction smooths enough.
    radius = (blur * math.sqrt(12) - 1) / 2
    if radius > 0:
        small = small.filter(ImageFilter.BoxBlur(radius))
    return np.asarray(small, dtype=np.float32) / np.float32(255)


Subtype = Literal["bacteria", "virus", ""]


@dataclass(frozen=True, slots=True)
class Lobe:
    """A lobe in a frontal view: u from mediastinum 0 to flank 1, v from apex 0 to dome 1.

    `centre` is (u, v) of its centre; `v_range` and `u_range` bound it, and one end may be open.
    """

    side: int
    centre: tuple[float, float]
    u_range: tuple[float, float]
    v_range: tuple[float, float]


LOBES = (
    Lobe(SIDES[0], (0.45, 0.30), (-1.0, 2.0), (-1.0, 0.50)),  # right upper, above the fissure
    Lobe(SIDES[0], (0.26, 0.78), (-1.0, 0.70), (0.52, 2.0)),  # right middle, beside the heart
    Lobe(SIDES[0], (0.60, 0.84), (-1.0, 2.0), (0.44, 2.0)),  # right lower
    Lobe(SIDES[1], (0.48, 0.32), (-1.0, 2.0), (-1.0, 0.60)),  # left upper
    Lobe(SIDES[1], (0.48, 0.70), (-1.0, 0.85), (0.48, 2.0)),  # lingula
    Lobe(SIDES[1], (0.68, 0.88), (-1.0, 2.0), (0.50, 2.0)),  # left lower
)


@dataclass(frozen=True, slots=True)
class Lesion:
    """`absorbed`: the added absorption, float32 (h, w); `mask`: its visible part, bool (h, w)."""

    absorbed: Picture
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chest:
    """The chest into which a lesion is drawn.

    `air` is how much less the lungs absorb than soft tissue, 0 outside; `lungs` is the mask that
    contains the lesion; `vessels` and `bronchi` are pictures of lines in [0, 1].
    """

    air: Picture
    lungs: NDArray[np.bool_]
    vessels: Picture
    bronchi: Picture


def no_lesion(chest: Chest) -> Lesion:
    """The empty lesion of a healthy child."""
    return Lesion(np.zeros_like(chest.air), np.zeros_like(chest.lungs))


def consolidation(
    rng: np.random.Generator, anatomy: Anatomy, pose: Pose, chest: Chest, strength: float
) -> Lesion:
    """Fluid in the alveoli of a part of one lobe, as in bacterial pneumonia: a soft-edged opacity.

    Air left in the bronchi appears as dark branches (air bronchograms). `strength` multiplies the
    share of the air that is replaced; 1 for the patient's typical image.
    """
    lobe = LOBES[int(rng.integers(len(LOBES)))]
    share = rng.uniform(0.6, 0.95)
    radius = math.exp(rng.uniform(math.log(0.34), math.log(0.75)))
    stretch = math.exp(rng.uniform(-0.3, 0.3))
    softness = rng.uniform(0.15, 0.38)
    u, v = (middle + rng.uniform(-0.13, 0.13) for middle in lobe.centre)
    x, y = pose.coordinates()
    top, width = -0.95, 0.82
    dome = anatomy.domes[0 if lobe.side < 0 else 1]
    across = (lobe.side * x - 0.15) / np.float32(width)
    along = (y - top) / np.float32(dome - top)
    distance = np.hypot(
        (across - u) * (width / (radius * stretch)),
        (along - v) * ((dome - top) * stretch / radius),
    )
    distance += 0.14 * pose.cloud(rng, 0.22)
    gate = _between(across, lobe.u_range, 0.05) * _between(along, lobe.v_range, 0.022)
    weight = _logistic((1 - distance) / np.float32(softness)) * gate
    weight *= lobe.side * x > 0
    filled = weight * (0.9 + 0.1 * np.clip(pose.cloud(rng, 0.09), -2, 2))
    filled *= 1 - rng.uniform(0.1, 0.4) * chest.bronchi
    absorbed = chest.air * np.clip(share * strength * filled, 0, 0.9) * chest.lungs
    return Lesion(absorbed.astype(np.float32), (weight > _VISIBLE) & chest.lungs)


def interstitial(rng: np.random.Generator, pose: Pose, chest: Chest, strength: float) -> Lesion:
    """Swollen walls of alveoli and bronchi, as in viral pneumonia: nets, nodules, cuffs.

    Bilateral, strongest near the hila; `strength` as for `consolidation`.
    """
    share = rng.uniform(0.45, 0.85) * strength
    reach = rng.uniform(0.4, 0.8)
    nets, nodules, cuffs, haze = (2.2 * rng.dirichlet((2.5, 1.5, 2.0, 3.5))).tolist()
    x, y = pose.coordinates()
    to_hilum = np.hypot(np.abs(x) - 0.3, y - 0.05) / np.float32(reach)
    weight = 0.25 + 0.75 * np.exp(-(to_hilum**2))
    weight *= np.clip(0.8 + 0.25 * pose.cloud(rng, 0.3), 0.2, 1.3)
    mesh = rng.uniform(0.036, 0.056)
    net = _net(pose.cloud(rng, mesh)) + _net(pose.cloud(rng, 0.62 * mesh))
    spots = np.clip(pose.cloud(rng, 0.045) - 0.8, 0, 1)
    pattern = nets * 0.5 * net + nodules * 1.2 * spots + cuffs * chest.vessels + haze * 0.6
    absorbed = chest.air * np.clip(share * weight * pattern, 0, 0.9) * chest.lungs
    return Lesion(absorbed.astype(np.float32), (weight > _VISIBLE) & chest.lungs)


def _net(cloud: Picture) -> Picture:
    """Thin, winding, connected lines along the zero crossings of fine noise."""
    result: Picture = np.clip(1 - np.abs(cloud), 0, 1)
    return result


def _logistic(value: Picture) -> Picture:
    result: Picture = np.reciprocal(1 + np.exp(-np.clip(value, -30, 30)))
    return result


def _between(value: Picture, limits: tuple[float, float], softness: float) -> Picture:
    low, high = limits
    return _logistic((value - low) / np.float32(softness)) * _logistic(
        (high - value) / np.float32(softness)
    )
