"""Memory that is freed is kept for the next image or step, instead of going back and forth.

Comes in: how much at most. Goes out: nothing; this process allocates otherwise from then on.
Knows nothing of images.

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

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of <malloc.h>, mallopt(3)."""

_most_kept = 0


def keep_freed_memory(
    largest: int = 32 << 20, kept: int = 256 << 20, *, shared: bool = False
) -> None:
    """Let Pillow and the C library keep what is freed; where that can't be done, nothing is done.

    Args:
        largest: bytes of the largest single block that is kept.
        kept: bytes kept at the end of the heap; less than was asked for before changes nothing.
        shared: all threads have one heap: of many threads each would keep a film's memory of its
            own, and what one has freed no other could use.
    """
    global _most_kept
    if kept <= _most_kept:
        return
    _most_kept = kept
    Image.core.set_blocks_max(_PILLOW_BLOCKS)  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return
    mallopt(_MMAP_THRESHOLD, largest)
    mallopt(_TRIM_THRESHOLD, kept)
    if shared:
        mallopt(_ARENA_MAX, 1)
