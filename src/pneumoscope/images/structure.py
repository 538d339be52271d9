"""Check the containers and streams of image files for defects that decoders ignore.

The input is the bytes of a PNG, JPEG, WebP or TIFF file. The functions return nothing, a size or an
orientation, or they refuse the file: cut short, damaged, or more than one image.

`check_scans` and `codestream` estimate the cost of decoding a compressed stream from its header.
A small JPEG or JPEG 2000 stream can request the same pixels again and again, and the libraries do
the work in one call that can't be interrupted. The stream may be a file of its own or part of a
TIFF or a DICOM object.

`decode_deep_tiff` converts TIFF files of deep, signed or float samples to grey with libtiff. Pillow
reads unsigned 32-bit samples as signed and signed 8-bit samples as unsigned. It does not support
big-endian 16-bit samples with white as zero, floats of 16 and 64 bits, or 64-bit integers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import structure
from pneumoscope.images.budget import CountedStream, spend
from pneumoscope.images.grey import Decoded, check_size, deep_grey, mean_chroma, oriented

_PNG_SIGNATURE_BYTES = 8
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ORIENTATION_TAG = 0x0112

_MAX_SCANS = 200
"""Maximum per image. Progressive JPEGs have about ten."""

_MAX_PACKETS = 1_000_000
"""Maximum of a JPEG 2000 stream: tiles × components × layers × precincts of all resolutions."""

_MAX_PARTS = 300_000
"""Maximum of precincts and code-blocks, for each of which the decoder allocates up to 1 KB.

Images of 50 megapixels in code-blocks of 16 × 16 have 270,000; usual are 64 × 64.
"""

_SIZE, _CODING_STYLE, _COMPONENT_STYLE, _PROGRESSION = (
    b"\xff" + bytes([code]) for code in (0x51, 0x52, 0x53, 0x5F)
)
_CODINGS = (_CODING_STYLE, _COMPONENT_STYLE, _PROGRESSION)
_TILE_PART, _START_OF_DATA, _END_OF_STREAM = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_SEGMENTS = frozenset(
    b"\xff" + bytes([code]) for code in bytes.fromhex("50515253555758595c5d5e5f606163647475777890")
)
"""Markers of segments with a length (ITU-T T.800 table A.2, T.801 and T.814), and of tile parts."""

_START_OF_CODESTREAM = b"\xff\x4f" + _SIZE
_SIZE_BYTES, _TILE_PART_BYTES, _PROGRESSION_BYTES = 37, 14, 7
_SHORT_NUMBERS, _MOST_LEVELS = 256, 32
"""Components up to which their number has one byte; decompositions at most."""

_START_OF_SCAN = b"\xff\xda"
_BIG = (b"+\x00", b"\x00+")
"""Version 43, in either byte order: BigTIFF, whose header has 16 bytes."""


def check_png(content: bytes, source: str) -> None:
    """Check the length and checksum of every chunk, and the end chunk (ISO 15948, 5).

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
        ImageRefusedError: `truncated` if the file is shorter than it states; `corrupt`.
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
    raise ImageRefusedError(source, Reason.CORRUPT, "the WebP header is invalid. Fetch it again")


def check_tiff_directory(content: bytes, source: str) -> None:
    """Check that the first TIFF directory lies inside the file and that there is no second one.

    Many writers put the directory last (TIFF 6.0, 2). Further directories form a chain, which is
    not followed. The values that an entry states are counted before they are read.

    Raises:
        ImageRefusedError: `truncated`, `multi_frame` or `too_complex`.
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
    head = f"{order}HH{offset_format[1]}"
    for position in range(end - (count or 0) * entry_bytes, end, entry_bytes):
        tag, _kind, values = struct.unpack_from(head, content, position)
        if tag in _COUNTED_TAGS:
            spend(values, "TIFF strips or tiles")
    if _number(content, offset_format, end):
        raise ImageRefusedError(
            source,
            Reason.MULTI_FRAME,
            "it is a TIFF of several images; one is expected. Save the X-ray separately",
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
    """Reject a file of several images.

    Raises:
        ImageRefusedError: `multi_frame` if `frames` is more than 1.
    """
    if frames > 1:
        raise ImageRefusedError(
            source,
            Reason.MULTI_FRAME,
            f"it is an {kind} of {frames} images; one is expected. Save the X-ray separately",
        )


def exif_orientation(block: bytes) -> int:
    """The orientation (1 to 8) that an EXIF block states (CIPA DC-008, 4.6.5); else 1.

    A damaged block is ignored: EXIF is optional, and the pixels may be intact.
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


def check_scans(content: bytes, source: str, pictures: int = 1) -> None:
    """Reject a JPEG with so many scans that decoding it would take minutes.

    Args:
        content: the stream, or a file that contains streams.
        source: its name, for the error.
        pictures: streams in it; each has at least one scan.

    Raises:
        ImageRefusedError: `corrupt`.
    """
    # In entropy-coded data FF is always followed by 00, so FFDA is the start of a scan.
    scans = content.count(_START_OF_SCAN)
    if scans > _MAX_SCANS + pictures:
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"the JPEG has {scans} scans; at most {_MAX_SCANS} are read",
        )


@dataclass(frozen=True, slots=True)
class Codestream:
    """A JPEG 2000 code stream whose headers were read to their end.

    Attributes:
        content: the stream without its container: what may be decoded.
        columns: width.
        rows: height.
        components: samples per pixel.
        bits: of the first component.
        signed: whether its values are two's complement.
    """

    content: bytes
    columns: int
    rows: int
    components: int
    bits: int
    signed: bool


def codestream(content: bytes, source: str) -> Codestream | None:
    """The first JPEG 2000 code stream in `content`, `None` if there is none.

    Reads every segment of the main header (ITU-T T.800, A.5 and A.6) and of the headers of tile
    parts, as the decoder does, and counts what decoding would create.

    Raises:
        ImageRefusedError: `too_complex` for too many packets, precincts or code-blocks; `corrupt`
            for a segment that decoders read differently, or for a tile with a coding of its own.
    """
    start = content.find(_START_OF_CODESTREAM)
    if start < 0:
        return None
    stream = content[start:]
    segments, position = _segments(stream, 2, _TILE_PART, source)
    size = [body for marker, body in segments if marker == _SIZE]
    if len(size) != 1 or len(size[0]) < _SIZE_BYTES:
        return None
    numbers = struct.unpack_from(">8IHB", size[0], 2)
    _check_packets(segments, numbers, source)
    while stream[position : position + 2] == _TILE_PART:
        length = int.from_bytes(stream[position + 6 : position + 10], "big") or len(stream)
        inner, _ = _segments(stream, position, _START_OF_DATA, source)
        if length < _TILE_PART_BYTES or any(marker in _CODINGS for marker, _ in inner):
            raise _corrupt(source, "a tile part states a coding or a length of its own")
        position += length
    end = stream[position : position + 2]
    if end != _END_OF_STREAM and end.strip(b"\x00\xff"):  # without padding
        raise _corrupt(source, f"no tile part begins at its byte {position}")
    width, height, left, top = numbers[:4]
    depth = numbers[9]
    return Codestream(
        stream, width - left, height - top, numbers[8], (depth & 0x7F) + 1, bool(depth & 0x80)
    )


def _segments(
    stream: bytes, position: int, last: bytes, source: str
) -> tuple[list[tuple[bytes, bytes]], int]:
    """Markers with their segments' content from `position` to the marker `last`; where that is."""
    found: list[tuple[bytes, bytes]] = []
    while position + 4 <= len(stream) and (marker := stream[position : position + 2]) != last:
        spend(1, "JPEG 2000 segments")
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        # OpenJPEG searches for the next known marker inside an unknown segment.
        if marker not in _SEGMENTS or length < 2:
            raise _corrupt(source, f"no segment begins at its byte {position}")
        found.append((marker, stream[position + 4 : position + 2 + length]))
        position += 2 + length
    return found, position


def _corrupt(source: str, fault: str) -> ImageRefusedError:
    return ImageRefusedError(
        source,
        Reason.CORRUPT,
        f"in its JPEG 2000 stream {fault}; one coding, in the main header, is expected. "
        "Save it again",
    )


def _check_packets(
    segments: list[tuple[bytes, bytes]], numbers: tuple[int, ...], source: str
) -> None:
    """Reject a stream with so many packets that decoding it would take minutes or gigabytes."""
    columns, rows, left, top, tile_columns, tile_rows = numbers[:6]
    width, height = max(columns - left, 1), max(rows - top, 1)
    tile_width, tile_height = min(tile_columns or width, width), min(tile_rows or height, height)
    pieces = -(-width // tile_width) * -(-height // tile_height) * max(numbers[8], 1)
    layers, orders, precincts, blocks = 1, 1, 1, 1
    for marker, body in segments:
        if marker == _PROGRESSION:  # each change of the order goes through all packets again
            orders += len(body) // _PROGRESSION_BYTES
        if marker not in (_CODING_STYLE, _COMPONENT_STYLE):
            continue
        # The style of one component has its number before, and no order, layers and transform.
        at = 0 if marker == _CODING_STYLE else 1 if numbers[8] <= _SHORT_NUMBERS else 2
        style = body[at + (5 if marker == _CODING_STYLE else 1) :]
        exponents = style[5:] if body[at : at + 1] and body[at] & 1 else b"\xff" * 33
        if len(style) < 5 or style[0] > _MOST_LEVELS or len(exponents) <= style[0]:
            raise _corrupt(source, "a coding style is cut short")
        if marker == _CODING_STYLE:
            layers = max(layers, int.from_bytes(body[2:4], "big"))
        one = _parts(style, exponents, tile_width, tile_height)
        precincts, blocks = max(precincts, one[0]), max(blocks, one[1])
    packets, parts = pieces * layers * orders * precincts, pieces * (precincts + blocks)
    if packets > _MAX_PACKETS or parts > _MAX_PARTS:
        raise ImageRefusedError(
            source,
            Reason.TOO_COMPLEX,
            f"its JPEG 2000 stream has {packets:,} packets and {parts:,} precincts and "
            f"code-blocks; at most {_MAX_PACKETS:,} and {_MAX_PARTS:,} are read. Save it again",
        )


def _parts(style: bytes, exponents: bytes, width: int, height: int) -> tuple[int, int]:
    """Precincts and code-blocks of one component of a tile (ITU-T T.800, B.6 and B.7)."""
    precincts = blocks = 0
    for level in range(style[0] + 1):
        halvings = style[0] - level
        parts = bands = 1
        for side, log, block in (
            (width, exponents[level] & 15, (style[1] & 15) + 2),
            (height, exponents[level] >> 4, (style[2] & 15) + 2),
        ):
            across = -(-side >> halvings)
            parts *= -(-across >> log)
            if level:  # three bands of half the size
                across, log = -(-across >> 1), max(log - 1, 0)
            bands *= -(-across >> min(log, block))
        precincts += parts
        blocks += bands * 3 if level else bands
    return precincts, blocks


_WIDTH, _HEIGHT, _ORIENTATION, _SAMPLES, _PLANES = 256, 257, 274, 277, 284
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT, _DEPTH = 322, 323, 32997
"""Tags of TIFF 6.0, and libtiff's depth tag."""
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_UNSIGNED, _SEPARATE = 1, 2
_PACKED_BITS, _MAX_SAMPLES = 12, 4
_COLOUR_MAP, _EXTRA_SAMPLES = 320, 338
_COMPRESSION, _JPEG = 259, (6, 7)
"""Both JPEG compressions of TIFF."""


_COUNTED_TAGS = frozenset(
    {*(_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS)}
    | {*(_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SAMPLES, _COLOUR_MAP, _EXTRA_SAMPLES)}
)
"""Tags of which every value is read."""


def check_strips(tags: ImageFileDirectory_v2, content: bytes, source: str) -> None:
    """Check that every strip and tile lies inside the file, and what decoding it would cost.

    Raises:
        ImageRefusedError: `truncated`, or `corrupt` for JPEG streams with too many scans.
    """
    if tags.get(_COMPRESSION) in _JPEG:
        strips = (*_numbers(tags, _STRIP_OFFSETS), *_numbers(tags, _TILE_OFFSETS))
        check_scans(content, source, len(strips))
    length = len(content)
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        structure.check_tiff_strips(tags.get(offsets, ()), tags.get(counts, ()), length, source)


def deep_directory(content: bytes) -> ImageFileDirectory_v2 | None:
    """The first directory of a TIFF with samples that Pillow would wrap, saturate or not read."""
    big = content[2:4] in _BIG
    tags = ImageFileDirectory_v2(content[:16] if big else content[:8])
    stream = CountedStream(content, "TIFF parts")
    stream.seek(tags.next)
    tags.load(stream)
    bits = set(_numbers(tags, _BITS_PER_SAMPLE) or (1,))
    formats = set(_numbers(tags, _SAMPLE_FORMAT) or (_UNSIGNED,))
    odd = max(bits) > 8 or formats != {_UNSIGNED}
    packed = bits == {_PACKED_BITS}  # Pillow unpacks these, libtiff does not
    plain = tags.get(_PHOTOMETRIC, 0) in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB)
    plain = plain and max(_numbers(tags, _SAMPLES) or (1,)) <= _MAX_SAMPLES
    return tags if odd and plain and not packed else None


def _numbers(tags: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def decode_deep_tiff(
    content: bytes, tags: ImageFileDirectory_v2, source: str, limits: LimitsConfig
) -> Decoded:
    """Decode a TIFF of deep, signed or float samples; complex numbers and others are refused."""
    from imagecodecs import tiff_decode

    check_size(source, int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0)), limits)
    # libtiff allocates the stated tile size and depth.
    tile = [max(_numbers(tags, tag) or (1,)) for tag in (_TILE_WIDTH, _TILE_HEIGHT, _DEPTH)]
    if tile[0] * tile[1] > limits.max_pixels or tile[2] != 1:
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"its tiles have {tile[0]} × {tile[1]} pixels in {tile[2]} planes; expected one plane "
            f"of at most {limits.max_pixels:,} pixels",
        )
    check_strips(tags, content, source)
    samples = np.asarray(tiff_decode(content, index=0))
    if tags.get(_PLANES, 1) == _SEPARATE and samples.ndim == 3:
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype.kind not in "iuf" or samples.ndim not in (2, 3):
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"it has samples of type {samples.dtype} in {samples.ndim} dimensions; expected "
            "integers or floats in 2 dimensions, or RGB",
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
