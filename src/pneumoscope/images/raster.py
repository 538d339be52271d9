"""One JPEG, PNG, TIFF, BMP or WebP file to grey.

Comes in: the file's bytes and the format that they begin like. Goes out: `Decoded`.
Knows nothing of DICOM, of paths, or of what the picture shows.

Pillow's own classes are called rather than `Image.open`: that is quicker, and its global pixel
limit plays no part; ours is checked as soon as the header is read.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import structure
from pneumoscope.images.budget import CountedStream
from pneumoscope.images.colour import colour_of
from pneumoscope.images.grey import Decoded, FloatArray, check_size, unit_range
from pneumoscope.images.guard import decoding
from pneumoscope.images.sniff import Format
from pneumoscope.images.streams import check_scans

_OPENERS: dict[Format, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "tiff": TiffImageFile,
    "bmp": BmpImageFile,
    "webp": WebPImageFile,
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "RGBA", "PA", "La", "RGBa")

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_MIN_IS_WHITE = 0
_SIGNED = 2


def decode_raster(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> Decoded:
    """Decode one picture to grey.

    8-bit colour is weighed as in ITU-R BT.601, exactly as Pillow's `convert("L")` does; 16-bit
    grey is divided by 65,535; alpha is composited on black; EXIF orientation is applied.

    Raises:
        ImageRefusedError: whatever is wrong with the file; no other exception leaves.
    """
    if kind == "png":
        structure.check_png(content, source)
    elif kind == "tiff":
        structure.check_tiff_directory(content, source)
    elif kind == "webp":
        # Pillow allocates the whole canvas on opening, so the limits come before that.
        check_size(source, *structure.webp_size(content, source), limits)
    with decoding(source, f"the {kind.upper()}"):
        # Pillow's decoder of compressed BMP reads single bytes: of these the time alone counts.
        stream = CountedStream(content, f"{kind.upper()} parts", 0 if kind == "bmp" else 1)
        image = _OPENERS[kind](stream)
        check_size(source, image.width, image.height, limits)
        if kind == "jpeg":
            check_scans(content, source)
        if kind == "webp":
            structure.refuse_frames(source, cast("WebPImageFile", image).n_frames, "animated WebP")
        if isinstance(image, TiffImageFile):
            _check_tiff(image, content, source)
        bits, white_is_zero = _bits(image, content, kind)
        orientation = structure.exif_orientation(image.info.get("exif", b""))
        image.load()
        pixels, warnings = _to_grey(image, bits, source)
        colour = colour_of(image)
    if white_is_zero:
        pixels = np.float32(1) - pixels
    if kind != "tiff":  # Pillow turns TIFF itself
        pixels = oriented(pixels, orientation)
    return Decoded(np.ascontiguousarray(pixels), bits, warnings, colour=colour)


def oriented(pixels: FloatArray, orientation: int) -> FloatArray:
    """Turn and mirror (h, w) pixels as EXIF orientation 1 to 8 asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _check_tiff(image: TiffImageFile, content: bytes, source: str) -> None:
    tags = image.tag_v2
    if "jpeg" in str(image.info.get("compression", "")):
        strips = (*tags.get(_STRIP_OFFSETS, ()), *tags.get(_TILE_OFFSETS, ()))
        check_scans(content, source, len(strips))
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        structure.check_tiff_strips(
            tags.get(offsets, ()), tags.get(counts, ()), len(content), source
        )


def _bits(image: ImageFile.ImageFile, content: bytes, kind: Format) -> tuple[int, bool]:
    """Bits per sample, and whether grey must still be inverted (16-bit and float TIFF)."""
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        deep = image.mode in (*_SIXTEEN_BIT_MODES, "I", "F")
        return bits, deep and tags.get(_PHOTOMETRIC, _MIN_IS_WHITE) == _MIN_IS_WHITE
    if kind == "png":
        return content[24], False  # IHDR's bit depth, ISO 15948, 11.2.2
    return 1 if image.mode == "1" else 8, False


def _to_grey(
    image: ImageFile.ImageFile, bits: int, source: str
) -> tuple[FloatArray, tuple[str, ...]]:
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES:
        return _deep_grey(image, 12 if bits == 12 else 16)
    if mode == "I":
        signed = isinstance(image, TiffImageFile) and image.tag_v2.get(_SAMPLE_FORMAT) == (_SIGNED,)
        return _integer_grey(np.asarray(image), bits, signed)
    if mode == "F":
        return _float_grey(np.asarray(image), source)
    warnings = ("16-bit colour was read with 8 bits per sample",) if bits == 16 else ()
    if mode == "LAB":
        return _lab_grey(image), warnings
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image if mode in ("LA", "RGBA") else image.convert("RGBA")
        alpha = unit_range(np.asarray(rgba.getchannel("A")))
        return unit_range(np.asarray(rgba.convert("L"))) * alpha, warnings
    return unit_range(np.asarray(image if mode == "L" else image.convert("L"))), warnings


def _deep_grey(image: ImageFile.ImageFile, bits: int) -> tuple[FloatArray, tuple[str, ...]]:
    samples = np.asarray(image)
    if samples.dtype.byteorder == ">":
        samples = samples.astype(np.uint16)
    pixels = np.divide(samples, np.float32((1 << bits) - 1), dtype=np.float32)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        pixels[samples == clear] = 0.0
    brightest = int(samples.max())
    if bits == 16 and 0 < brightest < 1 << 12:
        return pixels, (
            f"its brightest value is {brightest} of 65535, so it uses {brightest.bit_length()} of "
            "16 bits and looks dark; scale it to 16 bits if that isn't meant",
        )
    return pixels, ()


def _integer_grey(
    samples: npt.NDArray[np.int32], bits: int, signed: bool
) -> tuple[FloatArray, tuple[str, ...]]:
    if bits <= 16:
        shifted = samples + np.int32(1 << 15) if signed else samples
        return np.divide(shifted, np.float32(65535), dtype=np.float32).clip(0.0, 1.0), ()
    return _stretched(samples.astype(np.float64), f"{bits}-bit integers")


def _float_grey(samples: FloatArray, source: str) -> tuple[FloatArray, tuple[str, ...]]:
    finite = np.isfinite(samples)
    if not finite.all():
        raise ImageRefusedError(
            source,
            Reason.NON_FINITE_PIXELS,
            f"{samples.size - int(finite.sum())} of its {samples.size} pixels are NaN or infinite",
        )
    if samples.min() >= 0.0 and samples.max() <= 1.0:
        return samples.astype(np.float32), ()
    return _stretched(samples.astype(np.float64), "floats outside 0 to 1")


def _stretched(samples: npt.NDArray[np.float64], what: str) -> tuple[FloatArray, tuple[str, ...]]:
    low, high = float(samples.min()), float(samples.max())
    span = high - low or 1.0
    pixels = ((samples - low) / span).astype(np.float32)
    return pixels, (f"its values are {what}, so {low:g} was made black and {high:g} white",)


def _lab_grey(image: ImageFile.ImageFile) -> FloatArray:
    """The grey whose CIE lightness is L*: L* to luminance (CIE 15), then the sRGB curve."""
    lightness = np.arange(256) / 255 * 100
    cube = ((lightness + 16) / 116) ** 3
    luminance = np.where(lightness > 8, cube, lightness / 903.3)
    curve = np.where(
        luminance <= 0.0031308, 12.92 * luminance, 1.055 * luminance ** (1 / 2.4) - 0.055
    )
    table = curve.clip(0.0, 1.0).astype(np.float32)
    return cast("FloatArray", table[np.asarray(image.getchannel("L"))])
