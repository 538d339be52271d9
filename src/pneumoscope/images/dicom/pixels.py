"""The pixel data of one DICOM data set to stored values, uncompressed.

Comes in: a data set, its transfer syntax and its checked header. Goes out: an integer array.
Knows nothing of windows, of patients, or of what a value means.

Streams are looked into first, since most codecs fill up what is missing with
grey and allocate what a stream's header asks for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.dicom.codecs import JPEG, PLUGIN
from pneumoscope.images.streams import check_packets, check_scans

Samples = npt.NDArray[np.integer[Any]]

_NATIVE = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    }
)
_JPEG_LS = frozenset({JPEGLSLossless, JPEGLSNearLossless})
_JPEG_2000 = frozenset({JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K})
SUPPORTED_SYNTAXES = _NATIVE | JPEG | _JPEG_LS | _JPEG_2000 | {RLELossless}

_END_OF_IMAGE = b"\xff\xd9"
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
_NO_SOF = (0xC4, 0xC8, 0xCC)


@dataclass(frozen=True, slots=True)
class PixelHeader:
    """The image pixel description, checked (PS3.3 C.7.6.3).

    Attributes:
        rows: height.
        columns: width.
        samples: values per pixel, 1 or 3.
        allocated: bits that one value takes in the file.
        stored: bits of it that count.
        high_bit: the highest of these.
        signed: whether values are two's complement.
        photometric: the photometric interpretation.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str


def stored_values(dataset: Dataset, syntax: str, header: PixelHeader, source: str) -> Samples:
    """Decode the only frame.

    Returns:
        Stored values: (rows, columns), or (rows, columns, 3) of RGB where `header.samples` is 3.

    Raises:
        ImageRefusedError: `truncated` or `corrupt` pixel data.
        Exception: whatever pydicom and the codecs raise; to be called inside `guard.decoding`.
    """
    uid = UID(syntax)
    if uid in _NATIVE:
        _check_native_length(dataset, header, source)
    else:
        _check_stream(get_frame(dataset.PixelData, 0, number_of_frames=1), uid, header, source)
    if uid in JPEG or uid == RLELossless:
        plugin = PLUGIN
    elif uid in _JPEG_2000:
        plugin = "pylibjpeg"
    else:
        plugin = ""
    array: Samples
    array, _properties = get_decoder(uid).as_array(
        dataset,
        index=0,
        allow_excess_frames=False,
        correct_unused_bits=False,
        decoding_plugin=plugin,
    )
    if header.samples == 3 or uid in _JPEG_LS | _JPEG_2000:
        return array
    if uid in JPEG and not header.signed:
        return array
    return _used_bits(array, header, 0 if uid in JPEG else header.high_bit + 1 - header.stored)


def _used_bits(array: Samples, header: PixelHeader, shift: int) -> Samples:
    """Cut out the bits that are stored, and extend the sign (PS3.5, 8.1.1).

    The other bits may hold overlays. pydicom takes the stored bits to be the lowest, which in old
    files they are not.
    """
    values = (array.astype(np.int32) >> shift) & ((1 << header.stored) - 1)
    if header.signed:
        sign = 1 << (header.stored - 1)
        values = (values ^ sign) - sign
    return values


def _check_native_length(dataset: Dataset, header: PixelHeader, source: str) -> None:
    count = header.rows * header.columns * header.samples
    if header.photometric == "YBR_FULL_422":
        count = count // 3 * 2
    wanted = -(-count * header.allocated // 8)
    found = len(dataset.PixelData)
    if found < wanted:
        raise ImageRefusedError(
            source,
            Reason.TRUNCATED,
            f"its pixel data have {found:,} bytes; {header.columns} × {header.rows} pixels need "
            f"{wanted:,}. Fetch it again",
        )


def _check_stream(stream: bytes, uid: UID, header: PixelHeader, source: str) -> None:
    """Check that a compressed frame is whole and of the size that the data set states."""
    if uid == RLELossless:
        return  # its decoder checks the length of every segment
    size = _j2k_size(stream) if uid in _JPEG_2000 else _jpeg_size(stream)
    if uid in _JPEG_2000:
        check_packets(stream, source)
    else:
        check_scans(stream, source)
    if size is None:
        raise ImageRefusedError(
            source, Reason.CORRUPT, f"its pixel data are no {uid.name} stream, as it states"
        )
    if size != (header.columns, header.rows, header.samples):
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"its compressed stream has {size[0]} × {size[1]} pixels of {size[2]} samples, its "
            f"header {header.columns} × {header.rows} of {header.samples}",
        )
    # Fragments are of even length (PS3.5 A.4); writers fill up with 00, some with FF.
    if not stream.rstrip(b"\x00\xff").endswith(_END_OF_IMAGE):
        raise ImageRefusedError(
            source, Reason.TRUNCATED, "its compressed stream has no end marker. Fetch it again"
        )


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    """Width, height and components of a JPEG or JPEG-LS stream (ITU-T T.81, B.2.2)."""
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _NO_SOF) or marker == 0xF7:
            height, width, components = struct.unpack_from(">HHB", stream, position + 5)
            return width, height, components
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return None


def _j2k_size(stream: bytes) -> tuple[int, int, int] | None:
    """Width, height and components of a JPEG 2000 code stream (ITU-T T.800, A.5.1)."""
    start = stream.find(_START_OF_CODESTREAM)
    if start < 0 or start + 42 > len(stream):
        return None
    x_end, y_end, x_start, y_start = struct.unpack_from(">IIII", stream, start + 8)
    (components,) = struct.unpack_from(">H", stream, start + 40)
    return x_end - x_start, y_end - y_start, components
