"""A multipart body (RFC 2046, 5.1.1; RFC 7578) to files in memory, never on disk.

The parser of Starlette writes parts above 1 MB to a temporary file, where images of patients do not
belong. File names are text for display and never a path. Boundaries are searched for by the C
library, whatever the parts contain, so that a crafted body can't block the event loop.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header

from pneumoscope.delivery.rest.guard import Problem, RequestError, overloaded
from pneumoscope.errors import Reason
from pneumoscope.storage import path_text

_MOST_HEADER = 8 << 10
_MOST_FIELDS = 64
"""Parts that a form may have beside its files."""

FIELD = "file"
"""The name of the form field that holds a file."""

_LONGEST_NAME = 120
_OVERHEAD = 64 << 10
"""Bytes that a form may have beside its files."""

_UNSHOWABLE = re.compile(r"[^\w .,()+@=#&\[\]-]")
_WAY_OUT = f"Send multipart/form-data with the field {FIELD!r}, as a browser's form does"


class MultipartError(Exception):
    """The body is not a multipart form."""


@dataclass(slots=True)
class Part:
    """One part: field and file name from its header, and the content that was kept."""

    field_name: str = ""
    file_name: str = ""
    content: bytearray = field(default_factory=bytearray)
    size: int = 0


class Multipart:
    """Splits a body into parts.

    Args:
        boundary: from the header Content-Type.
        most_parts: files that the form may have.
        data: called with a part and more of its content, which it must copy.
        end: called with a part that is complete.
    """

    def __init__(
        self,
        boundary: bytes,
        most_parts: int,
        data: Callable[[Part, memoryview], None],
        end: Callable[[Part], None],
    ) -> None:
        self._line = b"\r\n--" + boundary
        self._left_parts = most_parts + _MOST_FIELDS
        self._data, self._end = data, end
        # The first boundary may stand at the very beginning.
        self._buffer = bytearray(b"\r\n")
        self._part = Part()
        self._state = self._before
        self.ended = False

    def feed(self, content: bytes) -> None:
        """Take more of the body.

        Raises:
            MultipartError: it is no form.
        """
        if self.ended:
            return  # what follows the form is nobody's (RFC 2046, 5.1.1)
        self._buffer += content
        while self._state():
            pass

    def _before(self) -> bool:
        """Search for the first boundary; anything before it is ignored."""
        found = self._buffer.find(self._line)
        if found > _MOST_HEADER or (found < 0 and len(self._buffer) > _MOST_HEADER):
            raise MultipartError("it does not begin with its boundary")
        if found < 0:
            return False
        del self._buffer[: found + len(self._line)]
        self._state = self._after_boundary
        return True

    def _after_boundary(self) -> bool:
        """Two hyphens end the form; otherwise a header follows, after blanks."""
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self.ended = True
            self._buffer.clear()
            return False
        end = self._buffer.find(b"\r\n")
        if end < 0 and len(self._buffer) <= _MOST_HEADER:
            return False
        if end < 0 or self._buffer[:end].strip(b" \t"):
            raise MultipartError("after a boundary stands something else")
        del self._buffer[:end]  # the line's end may be the empty line that ends no header
        self._left_parts -= 1
        if self._left_parts < 0:
            raise MultipartError("it has too many parts")
        self._state = self._header
        return True

    def _header(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > _MOST_HEADER or (end < 0 and len(self._buffer) > _MOST_HEADER):
            raise MultipartError("the header of a part is too long")
        if end < 0:
            return False
        self._part = _part(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        self._state = self._content
        return True

    def _content(self) -> bool:
        """Pass on certain content: everything before a boundary or the possible start of one."""
        part = self._part
        found = self._buffer.find(self._line)
        sure = found if found >= 0 else len(self._buffer) - len(self._line) + 1
        if sure > 0:
            with memoryview(self._buffer) as all_of_it, all_of_it[:sure] as certain:
                self._data(part, certain)
            del self._buffer[:sure]
        if found < 0:
            return False
        self._end(part)
        del self._buffer[: len(self._line)]
        self._state = self._after_boundary
        return True


def _part(header: bytes) -> Part:
    """Field and file name from the header of a part; the last of repeated lines counts."""
    part = Part()
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip().decode("latin-1"))
            part.field_name = options.get(b"name", b"").decode("utf-8", "replace")
            part.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
    return part


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request.

    Attributes:
        name: the file name from the client, sanitised, for display only.
        content: its bytes; empty if it was larger than allowed.
        size: number of bytes received, at least.
    """

    name: str
    content: bytes
    size: int

    @property
    def too_large(self) -> bool:
        """Whether its bytes were dropped."""
        return self.size > len(self.content)


class Memory:
    """Counts the bytes of all bodies in memory, and rejects more than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, count: int, until: ExitStack) -> None:
        """Count `count` more bytes until `until` closes.

        Raises:
            RequestError: there is no room, 503.
        """
        if self.held + count > self._most:
            raise overloaded("the server holds as many bytes of images as it may", 2.0)
        self.held += count
        until.callback(self._give_back, count)

    def _give_back(self, count: int) -> None:
        self.held -= count


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits of one request: files, bytes of each, and bytes of all together."""

    files: int
    file_bytes: int
    body_bytes: int


async def receive_files(
    content_type: str, length: str, body: AsyncIterator[bytes], limits: UploadLimits
) -> list[Upload]:
    """Receive the files of a multipart body.

    Args:
        content_type: of the request, with the boundary.
        length: the header Content-Length, "" if there is none.
        body: the bytes as they arrive.
        limits: a single file larger than they allow is an error; of several, its bytes are dropped.

    Raises:
        RequestError: 400 where the body is no whole form with a file, 413 where it is too large,
            415 where it is something else than a form.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        found = content_type[:80] or "none"
        raise RequestError(
            415, Problem.BAD_REQUEST, f"Content-Type: found {path_text(found)}. {_WAY_OUT}"
        )
    most = min(limits.body_bytes, limits.files * limits.file_bytes) + _OVERHEAD
    if length.isdecimal() and int(length) > most:
        raise _too_large(int(length), limits)
    form = _Form(limits)
    received = 0
    try:
        cutter = Multipart(options[b"boundary"], limits.files, form.data, form.end)
        async for chunk in body:
            received += len(chunk)
            if received > most:
                raise _too_large(received, limits)
            cutter.feed(chunk)
    except MultipartError as error:
        raise _malformed(f"the body is no multipart form ({error})") from error
    if not cutter.ended:
        raise _malformed("the body ends before the form does")
    if not form.uploads:
        raise _malformed(f"the form has no field {FIELD!r}")
    return form.uploads


class _Form:
    """The files among the parts of a form."""

    def __init__(self, limits: UploadLimits) -> None:
        self.uploads: list[Upload] = []
        self._limits = limits

    def data(self, part: Part, content: memoryview) -> None:
        """More of a part."""
        if part.field_name != FIELD:
            return
        part.size += len(content)
        if part.size <= self._limits.file_bytes:
            part.content += content
        elif self._limits.files == 1:
            raise _too_large(part.size, self._limits)
        else:
            part.content.clear()

    def end(self, part: Part) -> None:
        """A part is complete."""
        if part.field_name != FIELD:
            return
        if len(self.uploads) == self._limits.files:
            many = (
                "/v1/predictions/batch takes several" if self._limits.files == 1 else "Send fewer"
            )
            raise _malformed(f"more than {self._limits.files} file(s). {many}", "")
        name = harmless(part.file_name) or "upload"
        self.uploads.append(Upload(name, bytes(part.content), part.size))


def harmless(name: str) -> str:
    """A client's file name as short text: no folders, no control or markup characters."""
    last = re.split(r"[/\\]", name)[-1]
    kept = _UNSHOWABLE.sub("_", path_text(last)).strip(" .")
    return kept[-_LONGEST_NAME:]


def _malformed(what: str, way_out: str = _WAY_OUT) -> RequestError:
    return RequestError(400, Problem.BAD_REQUEST, f"{what}. {way_out}".strip())


def _too_large(found: int, limits: UploadLimits) -> RequestError:
    return RequestError(
        413,
        Reason.FILE_TOO_LARGE,
        f"found at least {found:,} bytes; at most {limits.file_bytes:,} a file and "
        f"{min(limits.body_bytes, limits.files * limits.file_bytes):,} together are taken",
    )
