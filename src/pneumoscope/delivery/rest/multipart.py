"""A multipart body (RFC 2046, 5.1.1; RFC 7578) cut into its parts as it comes in.

Boundaries are searched for by the C library alone, whatever is in the parts, so that the event loop
is never held by a body that is made to be slow to cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header

_MOST_HEADER = 8 << 10
_MOST_FIELDS = 64
"""Parts of a form beside its files."""


class MultipartError(Exception):
    """The body is no multipart form."""


@dataclass(slots=True)
class Part:
    """One part: the field and file name of its header, and what was kept of its content."""

    field_name: str = ""
    file_name: str = ""
    content: bytearray = field(default_factory=bytearray)
    size: int = 0


class Multipart:
    """Cuts a body.

    Args:
        boundary: of the header Content-Type.
        most_parts: files that the form may have.
        data: called with a part and more of its content.
        end: called with a part that is complete.
    """

    def __init__(
        self,
        boundary: bytes,
        most_parts: int,
        data: Callable[[Part, bytes], None],
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
        """Look for the first boundary; what stands before it is nobody's."""
        found = self._buffer.find(self._line)
        if found > _MOST_HEADER or (found < 0 and len(self._buffer) > _MOST_HEADER):
            raise MultipartError("it does not begin with its boundary")
        if found < 0:
            return False
        del self._buffer[: found + len(self._line)]
        self._state = self._after_boundary
        return True

    def _after_boundary(self) -> bool:
        """Two hyphens end the form; else a header follows, after blanks."""
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
        """Hand on what is surely content: all before a boundary, or before where one may begin."""
        part = self._part
        found = self._buffer.find(self._line)
        sure = found if found >= 0 else len(self._buffer) - len(self._line) + 1
        if sure > 0:
            self._data(part, bytes(self._buffer[:sure]))
            del self._buffer[:sure]
        if found < 0:
            return False
        self._end(part)
        del self._buffer[: len(self._line)]
        self._state = self._after_boundary
        return True


def _part(header: bytes) -> Part:
    """What the header of a part says; later lines of the same name count."""
    part = Part()
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip().decode("latin-1"))
            part.field_name = options.get(b"name", b"").decode("utf-8", "replace")
            part.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
    return part
