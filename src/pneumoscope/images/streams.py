"""What decoding a compressed stream would cost, by what the stream states of itself.

JPEG and JPEG 2000 let a small stream ask for the same pixels again and again. Their libraries do
the work in one call that can't be interrupted, so it is estimated beforehand, wherever the stream
lies: in a file of its own, in a TIFF, in a DICOM object.
"""

from __future__ import annotations

import struct

from pneumoscope.errors import ImageRefusedError, Reason

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
