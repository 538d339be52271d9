"""One JPEG, PNG, TIFF, BMP or WebP file to grey.

Samples of more than 8 bits, signed ones and floats are decoded by libtiff and libpng and scaled by
`samples`; Pillow wraps or saturates some of them and knows others not at all. For the rest Pillow's
own classes are called rather than `Image.open`: that is quicker, and its global pixel
limit plays no part; ours is checked as soon as the header is read.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import cast

import numpy as np
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pneumoscope.config import LimitsConfig
from pneumoscope.images import structure
from pneumoscope.images.budget import CountedStream
from pneumoscope.images.colour import colour_of
from pneumoscope.images.deep_tiff import check_strips, decode_deep_tiff, deep_directory
from pneumoscope.images.grey import Decoded, FloatArray, check_size, oriented, unit_range
from pneumoscope.images.guard import decoding
from pneumoscope.images.samples import Graded, composited, deep_grey
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

_BITS_PER_SAMPLE = 258
_DEEP_PNG = 16


def decode_raster(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> Decoded:
    """Decode one picture to grey.

    8-bit colour is weighed as in ITU-R BT.601, exactly as Pillow's `convert("L")` does; deeper
    samples are scaled by `samples.graded`; alpha is composited on black; EXIF orientation is
    applied.

    Raises:
        ImageRefusedError: whatever is wrong with the file; no other exception leaves.
    """
    _check_container(content, kind, source, limits)
    with decoding(source, f"the {kind.upper()}"):
        directory = deep_directory(content) if kind == "tiff" else None
        if directory is not None:
            return decode_deep_tiff(content, directory, source, limits)
        # Pillow's decoder of compressed BMP reads single bytes: of these the time alone counts.
        stream = CountedStream(content, f"{kind.upper()} parts", 0 if kind == "bmp" else 1)
        image = _OPENERS[kind](stream)
        check_size(source, image.width, image.height, limits)
        if kind == "jpeg":
            check_scans(content, source)
        if kind == "webp":
            structure.refuse_frames(source, cast("WebPImageFile", image).n_frames, "animated WebP")
        if isinstance(image, TiffImageFile):
            check_strips(image.tag_v2, content, source)
        bits = _bits(image, content, kind)
        orientation = structure.exif_orientation(image.info.get("exif", b""))
        image.load()
        if kind == "png" and bits == _DEEP_PNG:
            pixels, warnings = _deep_png(content, image.info.get("transparency"), source)
        else:
            pixels, warnings = _to_grey(image, bits)
        colour = colour_of(image)
    if kind != "tiff":  # Pillow turns TIFF itself
        pixels = oriented(pixels, orientation)
    return Decoded(np.ascontiguousarray(pixels), bits, warnings, colour=colour)


def _check_container(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> None:
    if kind == "png":
        structure.check_png(content, source)
    elif kind == "tiff":
        structure.check_tiff_directory(content, source)
    elif kind == "webp":
        # Pillow allocates the whole canvas on opening, so the limits come before that.
        check_size(source, *structure.webp_size(content, source), limits)


def _deep_png(content: bytes, clear: object, source: str) -> Graded:
    """A PNG of 16 bits a sample: grey or colour, with alpha or without."""
    from imagecodecs import png_decode

    samples = np.asarray(png_decode(content))
    pixels, warnings = deep_grey(samples, source)
    if isinstance(clear, int) and samples.ndim == 2:
        pixels[samples == clear] = 0.0
    return pixels, warnings


def _bits(image: ImageFile.ImageFile, content: bytes, kind: Format) -> int:
    """Bits per sample."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if kind == "png":
        return content[24]  # IHDR's bit depth, ISO 15948, 11.2.2
    return 1 if image.mode == "1" else 8


def _to_grey(image: ImageFile.ImageFile, bits: int) -> Graded:
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES:  # 12 bits, packed
        return np.divide(np.asarray(image), np.float32((1 << bits) - 1), dtype=np.float32), ()
    if mode == "LAB":
        return _lab_grey(image), ()
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image if mode in ("LA", "RGBA") else image.convert("RGBA")
        grey = unit_range(np.asarray(rgba.convert("L")))
        return composited(grey, unit_range(np.asarray(rgba.getchannel("A"))))
    return unit_range(np.asarray(image if mode == "L" else image.convert("L"))), ()


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
