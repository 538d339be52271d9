"""From outlines in a child's own coordinates to smooth pictures: pose, shapes, blurs, clouds.

Comes in: points in units of half the rib cage, a `Pose`. Goes out: float32 pictures in [0, 1] of
shape (size, size). Knows nothing of what the shapes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pneumoscope.images.phantom.anatomy import Points

Picture = NDArray[np.float32]
Shape = tuple[Points, float]
"""A closed outline and the grey in [0, 1] that fills it."""

_SUPERSAMPLING = 2
_COARSE = 4


@dataclass(frozen=True, slots=True)
class Pose:
    """How a child lies before the detector on one film.

    Attributes:
        size: side of the square film, pixels.
        scale: pixels for half the rib cage.
        angle: radians that the child is turned in the plane of the film.
        x: column that the middle of the thorax falls on; `y`: row.
        breath: how far the diaphragm moves down, units of half the rib cage.
        turn: how far structures in front move to the patient's left, the same units.
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
        """The same for many outlines at one depth, at once."""
        placed = self.place(np.concatenate([outline for outline, _ in shapes]), depth)
        ends = np.cumsum([len(outline) for outline, _ in shapes]).tolist()
        starts = [0, *ends[:-1]]
        pieces = zip(starts, ends, shapes, strict=True)
        return [(placed[start:end], grey) for start, end, (_, grey) in pieces]

    def coordinates(self) -> tuple[Picture, Picture]:
        """The child's x and y at each pixel, breath and turn left out."""
        pixels = np.arange(self.size, dtype=np.float32) + np.float32(0.5)
        column, row = (pixels - self.x)[None, :], (pixels - self.y)[:, None]
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        x, y = column * cos + row * sin, row * cos - column * sin
        return x.astype(np.float32), y.astype(np.float32)

    def cloud(self, rng: np.random.Generator, cell: float) -> Picture:
        """Smooth noise of mean 0 and deviation about 1 that moves with the child.

        `cell` is the distance of its knots, units of half the rib cage.
        """
        count = math.ceil(3.6 / cell)
        knots = rng.standard_normal((count, count), dtype=np.float32)
        cos, sin = (math.cos(self.angle), math.sin(self.angle))
        # Where knots lie far apart a coarse picture, enlarged, is the same and much quicker.
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
        # Interpolating between knots has about 0.7 of their deviation.
        return np.asarray(cloud, dtype=np.float32) / np.float32(0.7)


def fill(shapes: Iterable[Shape], size: int, blur: float = 0.0) -> Picture:
    """Closed outlines (column, row) filled with greys in [0, 1], later ones over earlier ones.

    Drawn at twice the size and reduced, so edges are smooth; `blur` is the deviation in pixels of
    a further blur.
    """
    canvas, pen = _canvas(size)
    for outline, grey in shapes:
        pen.polygon((outline * _SUPERSAMPLING).ravel().tolist(), fill=round(255 * grey))
    return _reduced(canvas, blur)


def strokes(
    starts: Points, ends: Points, widths: Points, greys: Points, size: int, blur: float
) -> Picture:
    """Straight strokes from `starts` to `ends` (n, 2), `widths` pixels wide, of their `greys`."""
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
    """Thickness of a rounded body from its outline: 0 at the edge, near 1 well inside.

    A blurred mask is ½ at its edge; twice what is above that rises like a depth, and the root of
    a depth is how a cylinder's chord grows.
    """
    depth = np.clip(2 * blurred(mask, sigma) - 1, 0, 1)
    return np.sqrt(depth, dtype=np.float32) * mask


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    side = size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    return canvas, ImageDraw.Draw(canvas)


def _reduced(canvas: Image.Image, blur: float) -> Picture:
    small = canvas.reduce(_SUPERSAMPLING)
    # A box of the wanted deviation: at a pixel or two it looks like a Gaussian, in a third of the
    # time. Where it would be narrower than a pixel the reduction has smoothed enough.
    radius = (blur * math.sqrt(12) - 1) / 2
    if radius > 0:
        small = small.filter(ImageFilter.BoxBlur(radius))
    return np.asarray(small, dtype=np.float32) / np.float32(255)
