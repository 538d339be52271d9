"""Calling decoders that may raise or warn nearly anything, and letting none of it out.

Comes in: a block of code that calls Pillow, pydicom or a codec. Goes out: an `ImageRefusedError`
instead of their exceptions, a list of texts instead of their warnings.
Knows nothing of any file format.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from PIL import Image

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import spending

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
            if not is_decoders(error):
                raise
            raise ImageRefusedError(source, _reason(error), _detail(what, error)) from error


def is_decoders(error: Exception) -> bool:
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
