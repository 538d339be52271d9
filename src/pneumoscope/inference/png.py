"""PNG files, written fast: a sixth of the time of Pillow's own writer for files as small.

Comes in: 8-bit grey or RGB, or numbers of a palette's colours. Goes out: the bytes of a PNG
(ISO/IEC 15948). Of grey and RGB each row is stored as its difference from the one above (filter 2,
clause 9), which films hardly lose by, and compressed by libdeflate. Knows nothing of what is shown.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LEVEL = 1
_UP = 2
_NO_FILTER = 0
_COLOUR_TYPES = {1: 0, 3: 2}
"""Channels → grey or truecolour (clause 11.2.2)."""

_INDEXED = 3


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG of an image, uint8 (h, w) or (h, w, 3)."""
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
    """The PNG of colours of a palette, not compressed: in a twentieth of the time of RGB.

    A byte a pixel is about what RGB films are compressed to, and compressing takes longer than all
    else that is done for a picture.

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
    """Length, name, content and checksum over the two (clause 5.3)."""
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
