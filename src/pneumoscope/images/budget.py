"""One budget of items and time for each file, whatever its format and whichever code reads it.

A file states its own counts: directories, chunks, scans, fragments, items of a sequence. A small
file can state millions, and a decoder works through them all. So everything that reads a file does
so inside `spending`, through a `CountedStream`, and what was counted beforehand is given to
`spend`. When the budget is used up, the file is refused with `too_complex`.

The limit on bytes is checked by `read.py`, the limit on pixels by `grey.check_size`. A single call
of a C library can't be interrupted from here: who must not wait for one reads in a process that can
be ended (`inference/processes.py`).

Memory that is freed is kept for the next image or step, instead of going back and forth.

Comes in: how much at most. Goes out: nothing; this process allocates otherwise from then on.
Knows nothing of images.

A film of 2 megapixels is 2 MB of bytes and twice 8 MB of floats, each of which the C library and
Pillow by default give back to the system after use; the system has to clear every page anew for
the next film, which took more than half of all time between file and network input
(`benchmarks/RESULTS.md`). What is kept is what was in use at once, so memory stays flat.

Calling decoders that may raise or warn nearly anything, and letting none of it out.

Comes in: a block of code that calls Pillow, pydicom or a codec. Goes out: an `ImageRefusedError`
instead of their exceptions, a list of texts instead of their warnings.
Knows nothing of any file format.
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


DECODER_ERRORS: tuple[type[Exception], ...] = (
    # Mutated files of every format raised OSError, SyntaxError, ValueError, TypeError,
    # RuntimeError, NotImplementedError and struct.error; the rest are their neighbours.
    # `Exception` itself stays out, so that a refusal of our own passes through.
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


@contextmanager
def decoding(source: str, what: str) -> Iterator[list[str]]:
    """Run a decoder; yields the list to which its warnings are added.

    Args:
        source: the image's name, for the error.
        what: what is being decoded, as in `the JPEG`.

    Raises:
        ImageRefusedError: `truncated`, `unsupported_encoding` or `corrupt`, by what the decoder
            says.
    """
    with spending(source), _COLLECTOR.collect() as messages:
        try:
            yield messages
        except Exception as error:
            if not is_decoder_error(error):
                raise
            raise ImageRefusedError(source, _reason(error), _detail(what, error)) from error


def is_decoder_error(error: Exception) -> bool:
    """Whether an error may be a decoder's word for bad data; pydicom has some of its own."""
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
    # Decoders write several lines, pydicom with a line per plugin; one sentence is wanted here.
    words = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{what} can't be decoded ({words})"


class _WarningCollector:
    """Takes the decoders' warnings per thread.

    `warnings.catch_warnings` swaps filters of the whole process, so that two threads inside it
    restore each other's. Here the first thread in swaps them and the last one out restores
    them. Only filters of the decoders' modules are added; a warning of a thread that does not
    collect goes where it would have gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[int, list[str]] = {}
        self._swapped: warnings.catch_warnings[None] | None = None
        self._show = warnings.showwarning

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        """Collect this thread's warnings of the decoders; may be nested."""
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
"""One for the process, since the filters of `warnings` are the process's."""
