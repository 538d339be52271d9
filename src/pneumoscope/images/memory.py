"""Memory that decoding frees is kept for the next image, instead of going back and forth.

Comes in, goes out: nothing; it changes how this process allocates. Knows nothing of images.

A film of 2 megapixels is 2 MB of bytes and twice 8 MB of floats, each of which the C library and
Pillow by default give back to the system after use; the system has to clear every page anew for
the next film, which took more than half of all time between file and network input
(`benchmarks/RESULTS.md`). What is kept is what was in use at once, so memory stays flat.
"""

from __future__ import annotations

import ctypes
import sys

from PIL import Image

_PILLOW_BLOCKS = 8
"""Blocks of up to 16 MB that Pillow keeps (its documentation, Block Allocator)."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>, mallopt(3)."""

_KEPT_BYTES = 256 << 20
_LARGEST_KEPT = 32 << 20
"""The largest threshold that glibc takes on 64 bits."""


def keep_freed_memory() -> None:
    """Let this process keep what decoders free. Done once; where it can't be done, nothing is."""
    Image.core.set_blocks_max(_PILLOW_BLOCKS)  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
