"""Walking the containers of image files, to catch what decoders pass over in silence.

Comes in: the bytes of a PNG, JPEG, WebP or TIFF file. Goes out: nothing, a size, an orientation,
or a refusal (cut short, damaged, more than one picture).
Knows nothing of pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import spend

_PNG_SIGNATURE_BYTES = 8
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ORIENTATION_TAG = 0x0112


def check_png(content: bytes, source: str) -> None:
    """Check every chunk's length and checksum and that the end chunk is there (ISO 15948, 5).

    Raises:
        ImageRefusedError: `truncated`, `corrupt`, or `multi_frame` for an animated PNG.
    """
    position = _PNG_SIGNATURE_BYTES
    while position + 12 <= len(content):
        spend(1, "PNG chunks")
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            break
        data = memoryview(content)[position + 4 : end - 4]
        (stated,) = struct.unpack_from(">I", content, end - 4)
        if kind in _PNG_CRITICAL and zlib.crc32(data) != stated:
            raise ImageRefusedError(
                source,
                Reason.CORRUPT,
                f"the checksum of PNG chunk {kind.decode()} at byte {position} is wrong, so the "
                "file was damaged. Fetch it again",
            )
        if kind == b"acTL" and length >= 4:
            refuse_frames(source, int.from_bytes(data[4:8], "big"), "animated PNG")
        if kind == b"IEND":
            return
        position = end
    raise ImageRefusedError(
        source,
        Reason.TRUNCATED,
        f"the PNG ends at byte {len(content)} without its end chunk, so the file was cut short. "
        "Fetch it again",
    )


def webp_size(content: bytes, source: str) -> tuple[int, int]:
    """Width and height of a WebP file's canvas, from its header (RFC 9649, 2.5 to 2.7).

    Raises:
        ImageRefusedError: `truncated` if the file is shorter than it says; `corrupt`.
    """
    stated = int.from_bytes(content[4:8], "little") + 8
    if len(content) < min(stated, 30) or len(content) < stated:
        raise ImageRefusedError(
            source,
            Reason.TRUNCATED,
            f"the WebP states {stated} bytes and has {len(content)}. Fetch it again",
        )
    kind = content[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(content[24:27], "little") + 1
        height = int.from_bytes(content[27:30], "little") + 1
        return width, height
    if kind == b"VP8L" and content[20:21] == b"\x2f":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageRefusedError(source, Reason.CORRUPT, "the WebP header can't be understood")


def check_tiff_directory(content: bytes, source: str) -> None:
    """Check that the first directory lies inside the file: many writers put it last (TIFF 6.0, 2).

    And that there is no second one. How many more is not asked: that is a chain to be followed.

    Raises:
        ImageRefusedError: `truncated` or `multi_frame`.
    """
    order = "<" if content[:2] == b"II" else ">"
    if 43 in content[2:4]:  # BigTIFF: 64-bit offset, count and entries of 20 bytes
        offset_format, count_format, offset_at, entry_bytes = f"{order}Q", f"{order}Q", 8, 20
    else:
        offset_format, count_format, offset_at, entry_bytes = f"{order}I", f"{order}H", 4, 12
    offset = _number(content, offset_format, offset_at)
    count = None if offset is None else _number(content, count_format, offset)
    end = 0
    if offset is not None and count is not None:
        end = offset + struct.calcsize(count_format) + count * entry_bytes
    if not 0 < end <= len(content):
        raise ImageRefusedError(
            source,
            Reason.TRUNCATED,
            f"the TIFF ends at byte {len(content)}, before its directory does. Fetch it again",
        )
    if _number(content, offset_format, end):
        raise ImageRefusedError(
            source,
            Reason.MULTI_FRAME,
            "it is a TIFF of several pictures; one is wanted. Save the X-ray by itself",
        )


def _number(content: bytes, number_format: str, position: int) -> int | None:
    if position + struct.calcsize(number_format) > len(content):
        return None
    (number,) = struct.unpack_from(number_format, content, position)
    return int(number)


def check_tiff_strips(
    offsets: Sequence[int], counts: Sequence[int], length: int, source: str
) -> None:
    """Check that every strip or tile of a TIFF lies inside the file (TIFF 6.0, section 8).

    Raises:
        ImageRefusedError: `truncated`.
    """
    end = max((start + size for start, size in zip(offsets, counts, strict=False)), default=0)
    if end > length:
        raise ImageRefusedError(
            source,
            Reason.TRUNCATED,
            f"the TIFF's pixels reach to byte {end} and the file has {length}. Fetch it again",
        )


def refuse_frames(source: str, frames: int, kind: str) -> None:
    """Refuse a file of several pictures.

    Raises:
        ImageRefusedError: `multi_frame` if `frames` is more than 1.
    """
    if frames > 1:
        raise ImageRefusedError(
            source,
            Reason.MULTI_FRAME,
            f"it is an {kind} of {frames} pictures; one is wanted. Save the film by itself",
        )


def exif_orientation(block: bytes) -> int:
    """The orientation (1 to 8) that an EXIF block states (CIPA DC-008, 4.6.5); else 1.

    A damaged block counts as silent: EXIF is an extra, and the pixels may be whole.
    """
    tiff = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    for position in range(start + 2, start + 2 + 12 * entries, 12):
        if position + 12 > len(tiff):
            return 1
        tag, kind, _count, value = struct.unpack_from(f"{order}HHIH", tiff, position)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1
