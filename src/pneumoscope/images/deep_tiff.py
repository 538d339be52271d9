"""TIFF files of deep, signed or float samples to grey, by libtiff.

Pillow takes 32 unsigned bits for signed ones and 8 signed for unsigned, and does not know 16 bits
of big endian with white as zero, floats of 16 and 64 bits, or integers of 64.
"""

from __future__ import annotations

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import structure
from pneumoscope.images.budget import CountedStream
from pneumoscope.images.colour import mean_chroma
from pneumoscope.images.grey import Decoded, check_size, oriented
from pneumoscope.images.samples import deep_grey
from pneumoscope.images.streams import check_scans

_WIDTH, _HEIGHT, _ORIENTATION, _SAMPLES, _PLANES = 256, 257, 274, 277, 284
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH = 322, 323, 32997
"""Tags of TIFF 6.0, and libtiff's depth."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_UNSIGNED, _SEPARATE = 1, 2
_PACKED_BITS, _MOST_SAMPLES = 12, 4
_COMPRESSION, _JPEG = 259, (6, 7)
"""Both ways of JPEG in TIFF."""


def check_strips(tags: ImageFileDirectory_v2, content: bytes, source: str) -> None:
    """Check that every strip and tile lies inside the file, and what decoding it would cost.

    Raises:
        ImageRefusedError: `truncated`, or `corrupt` for JPEG streams of too many scans.
    """
    if tags.get(_COMPRESSION) in _JPEG:
        strips = (*_numbers(tags, _STRIP_OFFSETS), *_numbers(tags, _TILE_OFFSETS))
        check_scans(content, source, len(strips))
    length = len(content)
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        structure.check_tiff_strips(tags.get(offsets, ()), tags.get(counts, ()), length, source)


def deep_directory(content: bytes) -> ImageFileDirectory_v2 | None:
    """The first directory of a TIFF whose samples Pillow would wrap, saturate or not read."""
    tags = ImageFileDirectory_v2(content[:8])
    if content[2:4] in (b"+\x00", b"\x00+"):  # BigTIFF
        tags = ImageFileDirectory_v2(content[:16])
    stream = CountedStream(content, "TIFF parts")
    stream.seek(tags.next)
    tags.load(stream)
    bits = set(_numbers(tags, _BITS_PER_SAMPLE) or (1,))
    formats = set(_numbers(tags, _SAMPLE_FORMAT) or (_UNSIGNED,))
    odd = max(bits) > 8 or formats != {_UNSIGNED}
    packed = bits == {_PACKED_BITS}  # which Pillow unpacks, and libtiff does not
    plain = tags.get(_PHOTOMETRIC, 0) in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB)
    plain = plain and max(_numbers(tags, _SAMPLES) or (1,)) <= _MOST_SAMPLES
    return tags if odd and plain and not packed else None


def _numbers(tags: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def decode_deep_tiff(
    content: bytes, tags: ImageFileDirectory_v2, source: str, limits: LimitsConfig
) -> Decoded:
    """A TIFF of deep, signed or float samples; complex numbers and the like are refused."""
    from imagecodecs import tiff_decode

    check_size(source, int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0)), limits)
    # libtiff allocates what a tile and a depth are said to be.
    tile = [max(_numbers(tags, tag) or (1,)) for tag in (_TILE_WIDTH, _TILE_HEIGHT, _DEPTH)]
    if tile[0] * tile[1] > limits.max_pixels or tile[2] != 1:
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"its tiles have {tile[0]} × {tile[1]} pixels in {tile[2]} planes; one plane of at "
            f"most {limits.max_pixels:,} pixels is read",
        )
    check_strips(tags, content, source)
    samples = np.asarray(tiff_decode(content, index=0))
    if tags.get(_PLANES, 1) == _SEPARATE and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype.kind not in "iuf" or samples.ndim not in (2, 3):
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"it has samples of type {samples.dtype} in {samples.ndim} dimensions; integers or "
            "floats in 2, or RGB, are wanted",
        )
    bits = samples.dtype.itemsize * 8
    pixels, warnings = deep_grey(samples, source)
    if tags.get(_PHOTOMETRIC, 0) == _MIN_IS_WHITE:
        pixels = np.float32(1) - pixels
    colour = 0.0
    if samples.ndim == 3 and samples.shape[2] >= 3:
        colour = mean_chroma(samples, float(samples.max()) or 1.0)
    pixels = oriented(pixels, int(tags.get(_ORIENTATION, 1)))
    return Decoded(np.ascontiguousarray(pixels), bits, warnings, colour=colour)
