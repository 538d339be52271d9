"""Limits on the work per file, conversion of decoder errors, and reuse of freed memory.

A file states its own counts: directories, chunks, scans, fragments, items of a sequence. A small
file can state millions, and a decoder works through them all. Therefore all code that reads a file
runs inside `spending` and reads through a `CountedStream`; counts that are known beforehand go to
`spend`. When the budget is used up, the file is refused with `too_complex`. `read.py` checks the
limit on bytes, `grey.check_size` the limit on pixels. A single call of a C library can't be
interrupted from here; `inference/processes.py` reads in a process that can be ended.

`decoding` runs Pillow, pydicom or a codec. These may raise or warn nearly anything; `decoding`
turns their exceptions into `ImageRefusedError` and their warnings into a list of texts.

`keep_freed_memory` makes this process keep freed memory for the next image or step. An image of
2 megapixels takes 2 MB of bytes and twice 8 MB of floats, which the C library and Pillow by default
return to the system after use. The system then clears every page again for the next image, which
took more than half of all time between file and network input (`benchmarks/RESULTS.md`). The memory
kept is what was in use at once, so memory use stays flat.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TextIO

from PIL import Image

from pneumoscope.errors import ImageRefusedError, Reason

MOST_ITEMS = 100_000
"""Parts of one file. A normal image has fewer than ten thousand (rows stored as strips)."""

MOST_SECONDS = 10.0
"""Processor time for one file. 50 megapixels of JPEG 2000, the slowest to decode, take about 5."""

LONGEST_VALUE = 1 << 20
"""Bytes of a DICOM element that is neither pixels nor skipped; look-up tables have 128 KB."""

HEADER_BYTES = 1 << 20
"""Bytes at the beginning of a DICOM file in which patient, study, series and view stand."""

_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""The tag (FFFE,E000) in both byte orders: one before each sequence item and pixel fragment."""

_CURRENT = threading.local()

_PILLOW_BLOCKS = 8
"""Blocks of up to 16 MB that Pillow keeps (its documentation, Block Allocator)."""

DECODER_ERRORS: tuple[type[Exception], ...] = (
    # Mutated files of every format raised OSError, SyntaxError, ValueError, TypeError,
    # RuntimeError, NotImplementedError and struct.error; the others are related to these.
    # `Exception` itself is not listed, so that our own ImageRefusedError passes through.
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_DECODER_MODULES = r"(PIL|pydicom|pneumoscope\.images|imagecodecs|openjpeg|jpeg_ls|rle)\b"
_TRUNCATED_WORDS = ("truncated", "end of file", "unexpected end", "not enough image data")
_UNSUPPORTED_WORDS = ("unsupported", "not supported", "cannot handle", "unknown", "not implemented")


@dataclass(slots=True)
class Budget:
    """The remaining budget of one file.

    Attributes:
        source: the file's name, for the error.
        items: parts that may still be read.
        end: processor time of this thread at which reading stops, in seconds.
    """

    source: str
    items: int = field(default_factory=lambda: MOST_ITEMS)
    end: float = field(default_factory=lambda: time.thread_time() + MOST_SECONDS)

    def take(self, items: int, what: str) -> None:
        """Subtract `items` from the budget and check the time.

        Raises:
            ImageRefusedError: `too_complex`: no items or no time are left.
        """
        self.items -= items
        if self.items < 0:
            raise ImageRefusedError(
                self.source,
                Reason.TOO_COMPLEX,
                f"it has more than {MOST_ITEMS:,} {what}; no X-ray needs so many. Save it again, "
                "as PNG or uncompressed DICOM",
            )
        if time.thread_time() > self.end:
            raise ImageRefusedError(
                self.source,
                Reason.TOO_COMPLEX,
                f"reading it took more than {MOST_SECONDS:g} s of processor time. Save it again, "
                "as PNG or uncompressed DICOM",
            )


@contextmanager
def spending(source: str) -> Iterator[Budget]:
    """Open the budget of the file `source` for this thread; nested calls share the outer budget."""
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
    """Subtract items from the current budget; does nothing outside of `spending`.

    Raises:
        ImageRefusedError: `too_complex`.
    """
    budget: Budget | None = getattr(_CURRENT, "budget", None)
    if budget is not None:
        budget.take(items, what)


class CountedStream(BytesIO):
    """A file's bytes, where every read counts as an item: parsers read each part separately.

    Args:
        content: the bytes.
        what: name of the parts, for the error.
        items: how much one read counts; 0 checks only the time, for decoders that read single
            bytes.
    """

    def __init__(self, content: bytes, what: str, items: int = 1) -> None:
        super().__init__(content)
        self._what, self._items = what, items

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like `BytesIO.read`.

        Raises:
            ImageRefusedError: `too_complex`.
        """
        spend(self._items, self._what)
        return super().read(size)


def dicom_stream(data_set: bytes) -> CountedStream:
    """The bytes of a DICOM data set; counts items and fragments before the data set is parsed.

    Raises:
        ImageRefusedError: `too_complex`.
    """
    # Four random bytes of pixel data equal such a tag once in four thousand million times.
    spend(sum(data_set.count(tag) for tag in _ITEM_TAGS), "sequence items and pixel fragments")
    return CountedStream(data_set, "DICOM elements")


def check_value_length(tag: int, length: int, source: str) -> None:
    """Check that an element is short enough to be interpreted quickly.

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


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of <malloc.h>, mallopt(3)."""

_most_kept = 0


def keep_freed_memory(
    largest: int = 32 << 20, kept: int = 256 << 20, *, shared: bool = False
) -> None:
    """Let Pillow and the C library keep freed memory; does nothing where that is not possible.

    Args:
        largest: bytes of the largest single block that is kept.
        kept: bytes kept at the end of the heap; a smaller value than before changes nothing.
        shared: use one heap for all threads. Otherwise each thread keeps the memory of an image of
            its own, and no thread can use what another has freed.
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


@contextmanager
def decoding(source: str, what: str) -> Iterator[list[str]]:
    """Run a decoder; yields the list to which its warnings are added.

    Args:
        source: the image's name, for the error.
        what: what is being decoded, such as `the JPEG`.

    Raises:
        ImageRefusedError: `truncated`, `unsupported_encoding` or `corrupt`, depending on the
            decoder's message.
    """
    with spending(source), _COLLECTOR.collect() as messages:
        try:
            yield messages
        except Exception as error:
            if not is_decoder_error(error):
                raise
            raise ImageRefusedError(source, _reason(error), _detail(what, error)) from error


def is_decoder_error(error: Exception) -> bool:
    """Whether a decoder may raise this error for bad data; pydicom has error types of its own."""
    own = type(error).__module__.partition(".")[0] == "pydicom"
    return own or isinstance(error, DECODER_ERRORS)


def _reason(error: Exception) -> Reason:
    words = str(error).lower()
    if isinstance(error, EOFError) or any(word in words for word in _TRUNCATED_WORDS):
        return Reason.TRUNCATED
    if isinstance(error, NotImplementedError) or any(word in words for word in _UNSUPPORTED_WORDS):
        return Reason.UNSUPPORTED_ENCODING
    return Reason.CORRUPT


def _detail(what: str, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"{what} asks for more memory than there is"
    # Decoders write several lines, pydicom one line per plugin; the message is one sentence.
    words = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{what} can't be decoded ({words})"


class _WarningCollector:
    """Collects the decoders' warnings separately for each thread.

    `warnings.catch_warnings` swaps the filters of the whole process, so two threads inside it
    restore each other's filters. Here the first thread to enter swaps them and the last one to
    leave restores them. Only filters for the decoders' modules are added; a warning in a thread
    that does not collect is handled as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[int, list[str]] = {}
        self._swapped: warnings.catch_warnings[None] | None = None
        self._show = warnings.showwarning

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        """Collect this thread's decoder warnings; may be nested."""
        thread = threading.get_ident()
        with self._lock:
            outer = self._messages.get(thread)
            if not self._messages:
                self._swap()
            messages: list[str] = []
            self._messages[thread] = messages
        try:
            yield messages
        finally:
            with self._lock:
                if outer is None:
                    del self._messages[thread]
                else:
                    self._messages[thread] = outer
                if not self._messages and self._swapped is not None:
                    self._swapped.__exit__(None, None, None)
                    self._swapped = None

    def _swap(self) -> None:
        self._swapped = warnings.catch_warnings()
        self._swapped.__enter__()
        self._show = warnings.showwarning
        warnings.filterwarnings("always", module=_DECODER_MODULES)
        warnings.showwarning = self._take

    def _take(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        messages = self._messages.get(threading.get_ident())
        if messages is None:
            self._show(message, category, filename, lineno, file, line)
        else:
            messages.append(str(message))


_COLLECTOR = _WarningCollector()
"""One per process, since the filters of `warnings` belong to the process."""
