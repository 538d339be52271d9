"""One budget of items and time for each file, whatever its format and whichever code reads it.

A file states its own counts: directories, chunks, scans, fragments, items of a sequence. A small
file can state millions, and a decoder works through them all. So everything that reads a file does
so inside `spending`, through a `CountedStream`, and what was counted beforehand is given to
`spend`. When the budget is used up, the file is refused with `too_complex`.

The limit on bytes is checked by `read.py`, the limit on pixels by `grey.check_size`. A single call
of a C library can't be interrupted from here: who must not wait for one reads in a process that can
be ended (`inference/processes.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from pneumoscope.errors import ImageRefusedError, Reason

MOST_ITEMS = 100_000
"""Parts of one file. An honest image has fewer than ten thousand (rows stored as strips)."""

MOST_SECONDS = 10.0
"""Processor time for one file. 50 megapixels of JPEG 2000, the slowest to decode, take about 5."""

LONGEST_VALUE = 1 << 20
"""Bytes of a DICOM element that is neither pixels nor skipped; look-up tables have 128 KB."""

_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""The tag (FFFE,E000) in both byte orders: one before each sequence item and pixel fragment."""

_CURRENT = threading.local()


@dataclass(slots=True)
class Budget:
    """What is left for one file.

    Attributes:
        source: the file's name, for the error.
        items: parts that may still be read.
        end: processor time of this thread at which reading ends, seconds.
    """

    source: str
    items: int = field(default_factory=lambda: MOST_ITEMS)
    end: float = field(default_factory=lambda: time.thread_time() + MOST_SECONDS)

    def take(self, items: int, what: str) -> None:
        """Use up `items`, and see how late it is.

        Raises:
            ImageRefusedError: `too_complex`: no items or no time are left.
        """
        self.items -= items
        if self.items < 0:
            raise ImageRefusedError(
                self.source,
                Reason.TOO_COMPLEX,
                f"it has more than {MOST_ITEMS:,} {what}; no X-ray needs so many. Save it anew, "
                "as PNG or uncompressed DICOM",
            )
        if time.thread_time() > self.end:
            raise ImageRefusedError(
                self.source,
                Reason.TOO_COMPLEX,
                f"reading it took more than {MOST_SECONDS:g} s of processor time. Save it anew, as "
                "PNG or uncompressed DICOM",
            )


@contextmanager
def spending(source: str) -> Iterator[Budget]:
    """The budget of the file `source`, for this thread; inside another one, the other one."""
    outer: Budget | None = getattr(_CURRENT, "budget", None)
    if outer is not None:
        yield outer
        return
    _CURRENT.budget = budget = Budget(source)
    try:
        yield budget
    finally:
        _CURRENT.budget = None


def spend(items: int, what: str) -> None:
    """Use up some of the present budget; outside of `spending` nothing is counted.

    Raises:
        ImageRefusedError: `too_complex`.
    """
    budget: Budget | None = getattr(_CURRENT, "budget", None)
    if budget is not None:
        budget.take(items, what)


class CountedStream(BytesIO):
    """A file's bytes, of which every read is an item: parsers read each part of a file by itself.

    Args:
        content: the bytes.
        what: the parts, for the error.
        items: what a read counts; 0 counts the time alone, for decoders that read single bytes.
    """

    def __init__(self, content: bytes, what: str, items: int = 1) -> None:
        super().__init__(content)
        self._what, self._items = what, items

    def read(self, size: int | None = -1, /) -> bytes:
        """As `BytesIO.read` does.

        Raises:
            ImageRefusedError: `too_complex`.
        """
        spend(self._items, self._what)
        return super().read(size)


def dicom_stream(data_set: bytes) -> CountedStream:
    """The bytes of a DICOM data set, whose items and fragments are counted before it is parsed.

    Raises:
        ImageRefusedError: `too_complex`.
    """
    # By chance four bytes of pixels are such a tag once in four thousand million.
    spend(sum(data_set.count(tag) for tag in _ITEM_TAGS), "sequence items and pixel fragments")
    return CountedStream(data_set, "DICOM elements")


def check_value_length(tag: int, length: int, source: str) -> None:
    """See that an element that will be interpreted is not so long that this takes minutes.

    Raises:
        ImageRefusedError: `too_complex`.
    """
    if length > LONGEST_VALUE:
        raise ImageRefusedError(
            source,
            Reason.TOO_COMPLEX,
            f"its element ({tag >> 16:04X},{tag & 0xFFFF:04X}) has {length:,} bytes; at most "
            f"{LONGEST_VALUE:,} are read",
        )
