"""Simulate a photograph of an X-ray on a light box or screen, as taken with a telephone.

The input is one decoded grey image, float32 (h, w) in [0, 1], of any size, and a strength. The
output is a new image of the same shape, dtype and range.

Four effects grow in proportion to the strength:
1. The camera is tilted: the corners of the image move, and black appears beside it.
2. The illumination is uneven: brighter on one side, darker in the corners.
3. The light has a colour. Red, green and blue are exposed differently, and the brightest channel
   saturates first; after the conversion to grey the tone curve is bent.
4. The grids of screen and camera interfere: faint stripes (moiré) in two directions.
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
"""Four points, (4, 2): column and row."""

_CORNER_SHIFT = 0.09
"""Largest displacement of a corner, as a share of the side."""

_SLOPE, _VIGNETTE = 0.35, 0.25
_STRIPES = 0.07
_CAST = (0.30, 0.05, -0.30)
"""Relative change in the exposure of red, green and blue by the colour of the light."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Grey from colours, ITU-R BT.601."""


def photograph(image: FloatArray, strength: float, seed: int = 0) -> FloatArray:
    """Return the grey image that a photograph of the X-ray would give.

    The displacement of the corners, the side of the light and the direction of the stripes depend
    on the seed and on the image's content. Their size depends only on `strength`, so that a sweep
    shows one photograph getting worse.

    Args:
        image: float32 (h, w) in [0, 1].
        strength: 0 (no change) to 1.
        seed: determines corners, light and stripes.

    Raises:
        PneumoscopeError: `image` is not a float32 array with two axes.
        UsageError: `strength` is out of range.
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
    """The image with its corners moved inwards by shares of the sides, (4, 2); black outside."""
    height, width = image.shape
    outer = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    inner = outer + signs * inward * (width, height)
    data = _perspective(inner, outer)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR, fillcolor=0
    )
    tilted: FloatArray = np.asarray(turned)
    return tilted


def _perspective(shown: Points, original: Points) -> tuple[float, ...]:
    """The eight coefficients that map the points `shown` (4, 2) to the points `original` (4, 2).

    u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (g x + h y + 1): four pairs of
    points give eight linear equations (Heckbert 1989).
    """
    rows, wanted = [], []
    for (x, y), (u, v) in zip(shown.tolist(), original.tolist(), strict=True):
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
    """Two patterns of stripes with slightly different periods, which interfere like the grids."""
    x, y = _grid(shape)
    pattern = np.zeros(shape, np.float32)
    for phase, (turn, waves) in zip(phases, ((0.0, 19.0), (0.35, 22.0)), strict=True):
        along = math.cos(angle + turn) * x + math.sin(angle + turn) * y
        pattern += np.sin(np.float32(waves * math.pi) * along + np.float32(phase))
    return np.float32(_STRIPES * strength / 2) * pattern
