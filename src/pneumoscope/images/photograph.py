"""A film on a light box or a screen, photographed: what reaches a model by telephone.

Comes in: one decoded grey image, float32 (h, w) in [0, 1], of any size, and a strength. Goes out: a
new image of the same shape, type and range. Knows nothing of files, labels or models.

Four things happen on the way, each in proportion to the strength:
1. The camera is held crooked: the film's corners move, black shows beside it.
2. The light is uneven: brighter on one side, dimmer in the corners.
3. The lamp has a colour. Red, green and blue are exposed by different amounts, the brightest
   saturates first, and when the picture becomes grey again the curve has bent.
4. The grids of screen and camera beat: faint stripes (moiré) in two directions.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.images.augment import random_stream
from pneumoscope.images.grey import FloatArray

Points = NDArray[np.float64]
"""Four of them, (4, 2): column and row."""

_CORNER_SHIFT = 0.09
"""Largest move of a corner, shares of the side."""

_SLOPE, _VIGNETTE = 0.35, 0.25
_STRIPES = 0.07
_CAST = (0.30, 0.05, -0.30)
"""What the lamp adds to the exposure of red, green, blue."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Grey from colours, ITU-R BT.601."""


def photograph(image: FloatArray, strength: float, seed: int = 0) -> FloatArray:
    """The film as a photograph shows it, turned grey again.

    Where the corners go, the side of the light and the stripes' direction depend on the seed and on
    the image's content; how far all goes on `strength` alone, so that a sweep shows one photograph
    getting worse.

    Args:
        image: float32 (h, w) in [0, 1].
        strength: 0 (nothing) to 1.
        seed: of the corners, the light and the stripes.

    Raises:
        PneumoscopeError: `image` is no float32 image with two axes.
        UsageError: `strength` is impossible.
    """
    if image.ndim != 2 or image.dtype != np.float32 or not image.size:
        raise PneumoscopeError(
            f"photograph: found an array of shape {image.shape} and type {image.dtype}, wanted "
            "float32 of shape (height, width). Give the pixels of `read_image`."
        )
    if not 0.0 <= strength <= 1.0:
        raise UsageError(
            f"photograph: strength is {strength}, wanted 0 to 1. Give another strength."
        )
    content = hashlib.sha256(image.tobytes()).hexdigest()
    stream = random_stream("photograph", seed, *image.shape, content)
    corners = stream.uniform(0.3, 1.0, (4, 2))
    angle, turn = stream.uniform(0, 2 * math.pi, 2)
    phases = stream.uniform(0, 2 * math.pi, 2)
    seen = _tilted(image, _CORNER_SHIFT * strength * corners)
    seen = seen * _light(image.shape, strength, float(angle))
    seen = _cast(seen, strength) + _stripes(image.shape, strength, float(turn), phases.tolist())
    taken: FloatArray = np.clip(seen, 0, 1, dtype=np.float32)
    return taken


def _tilted(image: FloatArray, inward: Points) -> FloatArray:
    """The film with its corners moved inwards by shares of the sides, (4, 2); black beside it."""
    height, width = image.shape
    outer = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    inner = outer + signs * inward * (width, height)
    data = _perspective(inner, outer)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR, fillcolor=0
    )
    film: FloatArray = np.asarray(turned)
    return film


def _perspective(
    shown: Points,
    film: Points,
) -> tuple[float, ...]:
    """The eight numbers that take points `shown` (4, 2) to points of the `film` (4, 2).

    u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (g x + h y + 1): four pairs of
    points give eight linear equations (Heckbert 1989).
    """
    rows, wanted = [], []
    for (x, y), (u, v) in zip(shown.tolist(), film.tolist(), strict=True):
        rows.append((x, y, 1, 0, 0, 0, -u * x, -u * y))
        rows.append((0, 0, 0, x, y, 1, -v * x, -v * y))
        wanted += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(wanted)).tolist())


def _grid(shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Column (1, w) and row (h, 1) of every pixel, from -1 to 1."""
    height, width = shape
    x = 2 * (np.arange(width) + 0.5) / width - 1
    y = 2 * (np.arange(height) + 0.5) / height - 1
    return x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]


def _light(shape: tuple[int, ...], strength: float, angle: float) -> FloatArray:
    x, y = _grid(shape)
    slope = np.float32(_SLOPE * strength) * (math.cos(angle) * x + math.sin(angle) * y)
    lit: FloatArray = (1 + slope) * (1 - np.float32(_VIGNETTE * strength) * (x * x + y * y))
    return lit.astype(np.float32)


def _cast(image: FloatArray, strength: float) -> FloatArray:
    grey = np.zeros_like(image)
    for share, extra in zip(_LUMINANCE, _CAST, strict=True):
        grey += np.float32(share) * np.minimum(image * np.float32(1 + extra * strength), 1)
    return grey


def _stripes(
    shape: tuple[int, ...], strength: float, angle: float, phases: list[float]
) -> FloatArray:
    """Two sets of stripes whose distances differ a little: they beat, as the grids do."""
    x, y = _grid(shape)
    pattern = np.zeros(shape, np.float32)
    for phase, (turn, waves) in zip(phases, ((0.0, 19.0), (0.35, 22.0)), strict=True):
        along = math.cos(angle + turn) * x + math.sin(angle + turn) * y
        pattern += np.sin(np.float32(waves * math.pi) * along + np.float32(phase))
    return np.float32(_STRIPES * strength / 2) * pattern
