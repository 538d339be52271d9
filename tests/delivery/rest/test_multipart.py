"""A form cut into parts, however its bytes come in, and forms that are made to be slow to cut."""

from __future__ import annotations

import pytest

from pneumoscope.delivery.rest.upload import Multipart, MultipartError, Part

Found = list[tuple[str, str, bytes]]
NAMED = b'Content-Disposition: form-data; name="file"; filename="%s"\r\n'
FORM = (
    b"preamble\r\n--b\r\n"
    + (NAMED % b"a.png")
    + b"Content-Type: image/png\r\n\r\n"
    + b"\r\n--\r\n--x\r\r\n\n--b"  # much like a boundary, and none
    + b"\r\n--b  \r\n"
    + (NAMED % b"empty")
    + b"\r\n\r\n--b\r\n\r\nno header\r\n--b--\r\nepilogue --b\r\n"
)
WANTED: Found = [
    ("file", "a.png", b"\r\n--\r\n--x\r\r\n\n--b"),
    ("file", "empty", b""),
    ("", "", b"no header"),
]


def cut(pieces: list[bytes], boundary: bytes = b"b", most: int = 9) -> tuple[Found, bool]:
    found: Found = []

    def data(part: Part, content: memoryview) -> None:
        part.content += content

    def end(part: Part) -> None:
        found.append((part.field_name, part.file_name, bytes(part.content)))

    cutter = Multipart(boundary, most, data, end)
    for piece in pieces:
        cutter.feed(piece)
    return found, cutter.ended


def test_parts_are_the_same_wherever_the_bytes_are_cut() -> None:
    assert cut([FORM]) == (WANTED, True)
    assert cut([FORM[k : k + 1] for k in range(len(FORM))]) == (WANTED, True)
    for place in range(len(FORM)):
        assert cut([FORM[:place], FORM[place:]]) == (WANTED, True)


def test_a_form_that_is_cut_short_has_not_ended() -> None:
    for length in range(FORM.index(b"--b--") + 4):
        assert not cut([FORM[:length]])[1]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"x" * 100_000, id="no boundary"),
        pytest.param(b"--bx\r\n\r\n", id="no line after the boundary"),
        pytest.param(b"--b\r\n" + b"A: b\r\n" * 10_000, id="an endless header"),
        pytest.param(b"--b\r\n\r\n\r\n" * 1000, id="a thousand parts"),
    ],
)
def test_what_is_no_form_is_rejected(body: bytes) -> None:
    with pytest.raises(MultipartError):
        cut([body])


@pytest.mark.parametrize("filling", [b"\r", b"\n", b"\r\n", b"\r\n-", b"\r\n--", b"\0"])
def test_content_like_boundaries_is_content(filling: bytes) -> None:
    content = filling * 100_000
    form = b"--bound\r\n" + (NAMED % b"a") + b"\r\n" + content + b"\r\n--bound--\r\n"
    pieces = [form[k : k + 65536] for k in range(0, len(form), 65536)]
    assert cut(pieces, b"bound") == ([("file", "a", content)], True)
