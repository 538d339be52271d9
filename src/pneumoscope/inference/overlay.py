"""Heatmaps to look at: a Grad-CAM map laid over the film it was made from.

Comes in: an image, its map, how it was preprocessed. Goes out: PNG bytes. Loads no model.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import PreprocessConfig
from pneumoscope.storage import path_text

_OPACITY = 0.55

_COMPRESSION = 3
"""zlib level: a tenth of the time of the smallest file, and a tenth larger."""

LONGEST_SIDE = 1024
"""Overlays are for looking: larger films are shown at this size, pixels."""

MAP_SIDE = 512
"""Longest side of a map without its film, pixels."""

# Perceptually even ramp, dark violet to yellow, in steps of one sixth; readable in grey too.
_RAMP = np.array(
    [
        (0.05, 0.03, 0.20),
        (0.32, 0.07, 0.43),
        (0.58, 0.15, 0.40),
        (0.82, 0.28, 0.25),
        (0.95, 0.49, 0.10),
        (0.98, 0.74, 0.14),
        (0.99, 0.98, 0.65),
    ],
    np.float32,
)


def fit_map(
    cam: NDArray[np.float32], shape: tuple[int, int], config: PreprocessConfig
) -> NDArray[np.float32]:
    """The map on the image's own pixels: float32 (h, w) in [0, 1], 1 at its peak.

    Undoes the preprocessing's geometry: a padded image's map is cut to the image first.
    An all-zero map (nothing speaks for pneumonia) stays zero.
    """
    from PIL import Image

    height, width = shape
    box = (0.0, 0.0, float(cam.shape[1]), float(cam.shape[0]))
    if config.fit == "pad":
        longest = max(height, width)
        x = (longest - width) / 2 / longest * cam.shape[1]
        y = (longest - height) / 2 / longest * cam.shape[0]
        box = (x, y, cam.shape[1] - x, cam.shape[0] - y)
    peak = float(cam.max())
    scaled = Image.fromarray(np.ascontiguousarray(cam / peak if peak > 0 else cam))
    resized = scaled.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.clip(np.asarray(resized, np.float32), 0.0, 1.0)


def overlay_png(
    pixels: NDArray[np.float32],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = LONGEST_SIDE,
) -> bytes:
    """PNG of the image, float32 (h, w) in [0, 1], under its map: the stronger, the more opaque."""
    small = shrunk(pixels, longest_side)
    heat = fit_map(cam, small.shape, config)
    grey = np.repeat(small[..., None], 3, axis=2)
    opacity = _OPACITY * heat[..., None]
    return _png(grey * (1 - opacity) + _coloured(heat) * opacity)


def film_png(pixels: NDArray[np.float32], longest_side: int = LONGEST_SIDE) -> bytes:
    """PNG of the image alone, at the size of `overlay_png`'s."""
    return _png(shrunk(pixels, longest_side))


def map_png(
    shape: tuple[int, ...],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = MAP_SIDE,
) -> bytes:
    """PNG of the map alone, see-through where it is weak, to be laid over the image.

    Args:
        shape: height and width of the image.
        cam: its map.
        config: how the image was preprocessed.
        longest_side: of the picture; maps are coarse, and whoever shows it scales it.
    """
    from PIL import Image

    height, width = shape
    scale = min(longest_side / max(height, width), 1.0)
    small = (max(round(height * scale), 1), max(round(width * scale), 1))
    levels = np.round(fit_map(cam, small, config) * 255).astype(np.uint8)
    ramp = np.round(_coloured(np.linspace(0, 1, 256, dtype=np.float32)) * 255).astype(np.uint8)
    picture = Image.fromarray(levels).convert("P")
    picture.putpalette(ramp.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=bytes(range(256)), compress_level=_COMPRESSION)
    return stream.getvalue()


def shrunk(pixels: NDArray[np.float32], longest_side: int = LONGEST_SIDE) -> NDArray[np.float32]:
    """The image, float32 (h, w), no larger than overlays are; smaller ones stay as they are."""
    from PIL import Image

    height, width = pixels.shape
    scale = longest_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(small, np.float32), 0.0, 1.0)


def _coloured(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = np.linspace(0.0, 1.0, len(_RAMP))
    channels = [np.interp(heat, steps, _RAMP[:, k]) for k in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _png(values: NDArray[np.float32]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(
        stream, "PNG", compress_level=_COMPRESSION
    )
    return stream.getvalue()


def heatmap_name(path: str) -> str:
    """A file name for the heatmap of `path`: its own name, told apart from others of that name."""
    mark = hashlib.sha256(path_text(path).encode()).hexdigest()[:16]
    # File systems allow 255 bytes, and a character may have four.
    return f"{path_text(Path(path).stem)[:50]}-{mark}.png"
