"""Heatmap overlays as PNG files.

`overlay_png`, `indexed_overlay_png`, `image_png` and `map_png` draw a Grad-CAM map over its image,
the image alone, or the map alone.

`encode_png` and `encode_indexed_png` write PNG files (ISO/IEC 15948) in a sixth of the time of
Pillow for small files. Each row of grey or RGB is stored as its difference from the row above
(filter 2, clause 9), which suits X-rays, and is compressed by libdeflate.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import PreprocessConfig
from pneumoscope.storage import path_text

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LEVEL = 1
_UP = 2
_NO_FILTER = 0
_COLOUR_TYPES = {1: 0, 3: 2}
"""Channels → colour type, greyscale or truecolour (clause 11.2.2)."""

_INDEXED = 3

_OPACITY = 0.55
LONGEST_SIDE = 600
"""Longest side of an overlay, pixels; larger images are reduced by an integer factor."""

FOLDER_SIDE = 480
"""The same for overlays written to a folder: an image of 2 megapixels becomes 400 × 312 pixels."""

_HEATS, _MOST_GREYS = 11, 31
"""Of an overlay in a palette: number of heat levels, and of grey levels at the lowest heat. Each
further heat level has two grey levels fewer, 231 colours in all."""

MAP_SIDE = 512
"""Longest side of a map without its image, pixels."""

# Perceptually uniform colours from dark violet to yellow, in steps of one sixth; monotonic in grey.
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


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 (h, w) or (h, w, 3), as PNG."""
    import imagecodecs

    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    kind = _COLOUR_TYPES[rows.shape[1] // width]
    packed = bytes(imagecodecs.deflate_encode(filtered.tobytes(), level=_LEVEL))
    return _file(width, height, kind, (b"IDAT", packed))


def encode_indexed_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Encode a palette image as PNG without compression, in a twentieth of the time of RGB.

    One byte per pixel is about the compressed size of an RGB image, and compression takes longer
    than all other steps of an overlay.

    Args:
        indices: uint8 (h, w), rows of `palette`.
        palette: uint8 (n, 3), RGB, n at most 256.
    """
    height, width = indices.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = _NO_FILTER
    rows[:, 1:] = indices
    packed = zlib.compress(rows.data, 0)
    return _file(width, height, _INDEXED, (b"PLTE", palette.tobytes()), (b"IDAT", packed))


def _file(width: int, height: int, kind: int, *content: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), *content, (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk: length, name, content and checksum of name and content (clause 5.3)."""
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def fit_map(
    cam: NDArray[np.float32],
    shape: tuple[int, int],
    config: PreprocessConfig,
    read: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Resize the map to the image: float32 (h, w) in [0, 1], with a peak of 1.

    It reverses the geometry of preprocessing: the map of a padded image is cropped to the image.
    A map of zeros (nothing indicates pneumonia) stays zero.

    Args:
        cam: Grad-CAM map, float32 (h, w), on the network's grid.
        shape: height and width of the result.
        config: the preprocessing that placed the image in the grid.
        read: height and width of the image as preprocessing got it; `None`: as `shape`. They have
            other proportions than the stored pixels if these are not square.
    """
    height, width = shape
    x = y = 0.0
    if config.fit == "pad":
        sides = read or shape
        longest = max(sides)
        y, x = (
            (longest - side) / 2 / longest * cells
            for side, cells in zip(sides, cam.shape, strict=True)
        )
    peak = float(cam.max())
    scaled = cam / peak if peak > 0 else cam
    # One matrix per axis, because resizing so few cells is mostly overhead. Not by `@`, whose
    # threads would compete with the engine's and took a third of the total time.
    rows = np.einsum("ch,cd->hd", _resize_weights(cam.shape[0], height, y), scaled)
    resized = np.einsum("hd,dw->hw", rows, _resize_weights(cam.shape[1], width, x))
    heat: NDArray[np.float32] = np.clip(resized, 0.0, 1.0, dtype=np.float32)
    return heat


@lru_cache(maxsize=64)
def _resize_weights(cells: int, pixels: int, margin: float) -> NDArray[np.float32]:
    """Bicubic weights (cells, pixels) of each cell in each pixel, without `margin` at both ends."""
    from PIL import Image

    box = (margin, 0.0, cells - margin, float(cells))
    one_each = Image.fromarray(np.eye(cells, dtype=np.float32))
    return np.asarray(one_each.resize((pixels, cells), Image.Resampling.BICUBIC, box=box))


def overlay_png(
    pixels: NDArray[np.float32],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = LONGEST_SIDE,
) -> bytes:
    """`overlay_rgb` as PNG."""
    return encode_png(overlay_rgb(pixels, cam, config, longest_side))


def indexed_overlay_png(
    pixels: NDArray[np.float32],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = FOLDER_SIDE,
) -> bytes:
    """The picture of `overlay_png` in 256 colours, in a fifth of the time.

    Intermediate colours are dithered by interleaved gradient noise (J. Jimenez, "Next generation
    post processing in Call of Duty: Advanced Warfare", SIGGRAPH 2014).
    """
    small = shrunk(pixels, longest_side)
    height, width = small.shape
    noise, other_noise = _noise(longest_side)
    heat = fit_map(cam, small.shape, config)
    heat *= np.float32(_HEATS - 1)
    heat += noise[:height, :width]
    level = heat.astype(np.uint8)
    grey = (_MOST_GREYS - 1 - 2 * level).astype(np.float32)
    grey *= small
    grey += other_noise[:height, :width]
    first = level * (_MOST_GREYS + 1 - level)  # index of the first colour of a heat level
    return encode_indexed_png(first + grey.astype(np.uint8), _palette())


def overlay_rgb(
    pixels: NDArray[np.float32],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = LONGEST_SIDE,
) -> NDArray[np.uint8]:
    """Draw the map over the image, float32 (h, w) in [0, 1]; more heat is more opaque.

    Returns:
        uint8 (h, w, 3), no side longer than `longest_side`.
    """
    small = shrunk(pixels, longest_side)
    heat = _levels(fit_map(cam, small.shape, config)).astype(np.uint16)
    blended: NDArray[np.uint8] = _blended().take(heat * 256 + _levels(small), axis=0)
    return blended


def image_png(pixels: NDArray[np.float32], longest_side: int = LONGEST_SIDE) -> bytes:
    """The image alone as PNG, in the size of `overlay_png`."""
    return encode_png(_levels(shrunk(pixels, longest_side)))


def map_png(
    shape: tuple[int, ...],
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    longest_side: int = MAP_SIDE,
) -> bytes:
    """The map alone as PNG, transparent where it is weak, to be laid over the image.

    Args:
        shape: height and width of the image.
        cam: its map.
        config: how the image was preprocessed.
        longest_side: longest side of the picture; viewers scale it to the image.
    """
    from PIL import Image

    height, width = shape
    scale = min(longest_side / max(height, width), 1.0)
    small = (max(round(height * scale), 1), max(round(width * scale), 1))
    levels = np.round(fit_map(cam, small, config) * 255).astype(np.uint8)
    picture = Image.fromarray(levels).convert("P")
    picture.putpalette(np.round(_colours() * 255).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=bytes(range(256)))
    return stream.getvalue()


def shrunk(pixels: NDArray[np.float32], longest_side: int = LONGEST_SIDE) -> NDArray[np.float32]:
    """Reduce the image, float32 (h, w), to the size of overlays; smaller images stay unchanged.

    Pixels of the result are means of k × k pixels, which takes a third of the time of other sizes.
    """
    k = -(-max(pixels.shape) // longest_side)
    if k == 1:
        return pixels
    if min(pixels.shape) < k:
        return pixels[::k, ::k]
    height, width = (side // k * k for side in pixels.shape)
    rows = np.add.reduce(pixels[:height].reshape(height // k, k, -1), axis=1)
    small: NDArray[np.float32] = rows[:, :width:k].copy()
    for column in range(1, k):
        small += rows[:, column:width:k]
    small *= np.float32(1 / (k * k))
    np.clip(small, 0.0, 1.0, out=small)
    return small


def thinned(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce the image quickly for overlays in folders, float32 (h, w), to `FOLDER_SIDE` or less.

    Each pixel of the result is the mean of four in the middle of k × k pixels; the rows between
    them are not read.
    """
    k = -(-max(pixels.shape) // FOLDER_SIDE)
    if k == 1:
        return pixels
    if min(pixels.shape) < k:
        return pixels[::k, ::k]
    height, width = (side // k for side in pixels.shape)
    one, other = k // 4, k - 1 - k // 4
    rows = pixels[one::k][:height] + pixels[other::k][:height]
    small: NDArray[np.float32] = rows[:, one::k][:, :width] + rows[:, other::k][:, :width]
    small *= np.float32(0.25)
    return small


def _levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Numbers in [0, 1] as 0 to 255."""
    return np.round(values * np.float32(255)).astype(np.uint8)


def _colours() -> NDArray[np.float64]:
    """The colour map in 256 steps, (256, 3) in [0, 1]."""
    heat, steps = np.linspace(0.0, 1.0, 256), np.linspace(0.0, 1.0, len(_RAMP))
    return np.stack([np.interp(heat, steps, _RAMP[:, k]) for k in range(3)], axis=-1)


@cache
def _blended() -> NDArray[np.uint8]:
    """Every grey under every heat, (256 · 256, 3): heat h over grey g is row 256 h + g.

    A look-up takes a quarter of the time of blending each pixel.
    """
    heat, grey = np.linspace(0.0, 1.0, 256)[:, None, None], np.linspace(0.0, 1.0, 256)[:, None]
    opacity = _OPACITY * heat
    blended = grey * (1 - opacity) + _colours()[:, None] * opacity
    return np.round(blended * 255).astype(np.uint8).reshape(-1, 3)


@cache
def _palette() -> NDArray[np.uint8]:
    """231 colours, (231, 3): heat by heat, dark to bright, with fewer greys at higher heat."""
    blended = _blended().reshape(256, 256, 3)
    heats = np.round(np.linspace(0, 255, _HEATS)).astype(int)
    counts = range(_MOST_GREYS, 0, -2)
    return np.concatenate(
        [
            blended[heat, np.round(np.linspace(0, 255, count)).astype(int)]
            for heat, count in zip(heats, counts, strict=False)
        ]
    )


@cache
def _noise(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Interleaved gradient noise, (side, side) in [0, 1), and the same rotated by 180°."""
    y, x = np.mgrid[:side, :side].astype(np.float64)
    noise = np.modf(52.9829189 * np.modf(0.06711056 * x + 0.00583715 * y)[0])[0]
    below: NDArray[np.float32] = np.minimum(noise, 0.999).astype(np.float32)
    return below, np.ascontiguousarray(below[::-1, ::-1])


def heatmap_name(path: str) -> str:
    """File name for the heatmap of `path`: its own name with a hash, unique among equal names."""
    mark = hashlib.sha256(path_text(path).encode()).hexdigest()[:16]
    # File systems allow 255 bytes, and a character may have four.
    return f"{path_text(Path(path).stem)[:50]}-{mark}.png"
