"""How coloured a picture is, before it is made grey: films are grey, however they are stored.

Comes in: a decoded picture of any Pillow mode, or RGB samples. Goes out: its mean chroma, 0 to 1.
Knows nothing of files or of what is too much.

Chroma is the largest of red, green and blue less the smallest, as a share of the range. It is taken
of a few thousand pixels of large pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 64
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_LAB_RANGE = 128


def colour_of(image: Image.Image) -> float:
    """Mean chroma of a picture; what is transparent counts as black."""
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return 0.0
    small = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    if image.mode == "LAB":  # which Pillow makes no RGB of; a and b are signed
        hues = np.asarray(small)[..., 1:].astype(np.int8).astype(np.float64)
        return float(np.hypot(hues[..., 0], hues[..., 1]).mean()) / _LAB_RANGE
    seen = image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info
    if not seen:
        return mean_chroma(np.asarray(small.convert("RGB")))
    small.info = dict(image.info)
    rgba = np.asarray(small.convert("RGBA")).astype(np.float64)
    return mean_chroma(rgba[..., :3] * rgba[..., 3:] / 255)


def mean_chroma(rgb: NDArray[Any], white: float = 255) -> float:
    """Mean chroma of samples (h, w, 3) from 0 to `white`."""
    step = max(1, min(rgb.shape[:2]) // _SIDE)
    red, green, blue = np.moveaxis(rgb[::step, ::step], 2, 0)
    # Plane against plane: along an axis of three NumPy takes many times as long.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean(dtype=np.float64)) / white
