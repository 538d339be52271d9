"""Walking the containers of image files, to catch what decoders pass over in silence.

Comes in: the bytes of a PNG, JPEG, WebP or TIFF file. Goes out: nothing, a size, an orientation,
or a refusal (cut short, damaged, more than one picture).
Knows nothing of pixels.

What decoding a compressed stream would cost, by what the stream states of itself.

JPEG and JPEG 2000 let a small stream ask for the same pixels again and again. Their libraries do
the work in one call that can't be interrupted, so it is estimated beforehand, wherever the stream
lies: in a file of its own, in a TIFF, in a DICOM object.

TIFF files of deep, signed or float samples to grey, by libtiff.

Pillow takes 32 unsigned bits for signed ones and 8 signed for unsigned, and does not know 16 bits
of big endian with white as zero, floats of 16 and 64 bits, or integers of 64.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import structure
from pneumoscope.images.budget import CountedStream, spend
from pneumoscope.images.grey import Decoded, check_size, mean_chroma, oriented
from pneumoscope.images.samples import deep_grey

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


_MOST_SCANS = 200
"""Of one picture. Progressive JPEGs have about ten."""

_MOST_PACKETS = 1_000_000
"""Tiles times layers times resolutions times components of a JPEG 2000 stream."""

_START_OF_SCAN = b"\xff\xda"
_SIZE, _CODING_STYLE = b"\xff\x51", b"\xff\x52"


def check_scans(content: bytes, source: str, pictures: int = 1) -> None:
    """Refuse a JPEG of so many scans that decoding it would take minutes.

    Args:
        content: the stream, or a file that holds streams.
        source: its name, for the error.
        pictures: streams in it: each has one scan at least.

    Raises:
        ImageRefusedError: `corrupt`.
    """
    # In entropy-coded data FF is always followed by 00, so that FFDA is a scan's start.
    scans = content.count(_START_OF_SCAN)
    if scans > _MOST_SCANS + pictures:
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"the JPEG has {scans} scans; at most {_MOST_SCANS} are read",
        )


def check_packets(stream: bytes, source: str) -> None:
    """Refuse a JPEG 2000 stream of so many packets that decoding it would take minutes.

    The main header's segments are walked: image and tile size (ITU-T T.800, A.5.1), layers and
    decompositions (A.6.1).

    Raises:
        ImageRefusedError: `too_complex`.
    """
    start = stream.find(b"\xff\x4f" + _SIZE)
    if start < 0:
        return
    position, tiles, components, layers, levels = start + 2, 1, 1, 1, 0
    while position + 4 <= len(stream) and stream[position] == 0xFF and stream[position + 1] != 0x90:
        marker = stream[position : position + 2]
        if marker == _SIZE and position + 40 <= len(stream):
            numbers = struct.unpack_from(">8IH", stream, position + 6)
            tiles = _tiles(numbers)
            components = max(numbers[8], 1)
        elif marker == _CODING_STYLE and position + 10 <= len(stream):
            layers = int.from_bytes(stream[position + 6 : position + 8], "big")
            levels = stream[position + 9]
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        if length < 2:
            break
        position += 2 + length
    packets = tiles * components * layers * (levels + 1)
    if packets > _MOST_PACKETS:
        raise ImageRefusedError(
            source,
            Reason.TOO_COMPLEX,
            f"its JPEG 2000 stream has {packets:,} packets; at most {_MOST_PACKETS:,} are read. "
            "Save it anew",
        )


def _tiles(numbers: tuple[int, ...]) -> int:
    width, height, _, _, tile_width, tile_height, left, top = numbers[:8]
    if not tile_width or not tile_height:
        return 1
    across = -(-(width - left) // tile_width)
    down = -(-(height - top) // tile_height)
    return max(across, 1) * max(down, 1)


_WIDTH, _HEIGHT, _ORIENTATION, _SAMPLES, _PLANES = 256, 257, 274, 277, 284
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH = 322, 323, 32997
"""Tags of TIFF 6.0, and libtiff's depth."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_UNSIGNED, _SEPARATE = 1, 2
_PACKED_BITS, _MOST_SAMPLES = 12, 4
_COMPRESSION, _JPEG = 259, (6, 7)
"""Both ways of JPEG in TIFF."""
_SEVERAL = 2
_BIG = (b"+\x00", b"\x00+")
"""Version 43, in either byte order: BigTIFF, whose header has 16 bytes."""


def check_strips(tags: ImageFileDirectory_v2, content: bytes, source: str) -> None:
    """Check that every strip and tile lies inside the file, and what decoding it would cost.

    Raises:
        ImageRefusedError: `truncated`, or `corrupt` for JPEG streams of too many scans.
    """
    if tags.get(_COMPRESSION) in _JPEG:
        strips = (*_numbers(tags, _STRIP_OFFSETS), *_numbers(tags, _TILE_OFFSETS))
        check_scans(content, source, len(strips))
    length = len(content)
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        structure.check_tiff_strips(tags.get(offsets, ()), tags.get(counts, ()), length, source)


def deep_directory(content: bytes) -> ImageFileDirectory_v2 | None:
    """The first directory of a TIFF whose samples Pillow would wrap, saturate or not read."""
    big = content[2:4] in _BIG
    tags = ImageFileDirectory_v2(content[:16] if big else content[:8])
    stream = CountedStream(content, "TIFF parts")
    stream.seek(tags.next)
    tags.load(stream)
    bits = set(_numbers(tags, _BITS_PER_SAMPLE) or (1,))
    formats = set(_numbers(tags, _SAMPLE_FORMAT) or (_UNSIGNED,))
    odd = max(bits) > 8 or formats != {_UNSIGNED}
    packed = bits == {_PACKED_BITS}  # which Pillow unpacks, and libtiff does not
    plain = tags.get(_PHOTOMETRIC, 0) in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB)
    plain = plain and max(_numbers(tags, _SAMPLES) or (1,)) <= _MOST_SAMPLES
    return tags if odd and plain and not packed else None


def _numbers(tags: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def decode_deep_tiff(
    content: bytes, tags: ImageFileDirectory_v2, source: str, limits: LimitsConfig
) -> Decoded:
    """A TIFF of deep, signed or float samples; complex numbers and the like are refused."""
    from imagecodecs import tiff_decode

    check_size(source, int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0)), limits)
    # libtiff allocates what a tile and a depth are said to be.
    tile = [max(_numbers(tags, tag) or (1,)) for tag in (_TILE_WIDTH, _TILE_HEIGHT, _DEPTH)]
    if tile[0] * tile[1] > limits.max_pixels or tile[2] != 1:
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"its tiles have {tile[0]} × {tile[1]} pixels in {tile[2]} planes; one plane of at "
            f"most {limits.max_pixels:,} pixels is read",
        )
    check_strips(tags, content, source)
    samples = np.asarray(tiff_decode(content, index=0))
    if tags.get(_PLANES, 1) == _SEPARATE and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype.kind not in "iuf" or samples.ndim not in (2, 3):
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"it has samples of type {samples.dtype} in {samples.ndim} dimensions; integers or "
            "floats in 2, or RGB, are wanted",
        )
    bits = samples.dtype.itemsize * 8
    pixels, warnings = deep_grey(samples, source)
    if tags.get(_PHOTOMETRIC, 0) == _MIN_IS_WHITE:
        pixels = np.float32(1) - pixels
    colour = 0.0
    if samples.ndim == 3 and samples.shape[2] >= 3:
        colour = mean_chroma(samples, float(samples.max()) or 1.0)
    pixels = oriented(pixels, int(tags.get(_ORIENTATION, 1)))
    return Decoded(np.ascontiguousarray(pixels), bits, warnings, colour=colour)
