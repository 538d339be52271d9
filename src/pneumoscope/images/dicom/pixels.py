"""Decode the pixel data of one DICOM data set to cells or colours.

Compressed streams are inspected first, since most codecs fill missing data with grey and allocate
whatever size the stream's header states.

The module also adds codecs to pydicom as a plugin, where pydicom lacks them or its own are unsafe:
libjpeg-turbo for every JPEG process and a PackBits decoder for RLE, both from imagecodecs. The
other JPEG plugins of pydicom stop at 8 bits or are under the GPL; its fast RLE plugin panics on
damaged data with a `BaseException` that cannot be caught by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders import (
    JPEGBaseline8BitDecoder,
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
    RLELosslessDecoder,
)
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
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
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.dicom.cells import Field
from pneumoscope.images.structure import Codestream, check_scans, codestream, refuse_frames

PLUGIN = "imagecodecs"
JPEG = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
DECODER_DEPENDENCIES = {uid: ("numpy", "imagecodecs>=2024.12") for uid in {*JPEG, RLELossless}}
"""pydicom reads this when a plugin is added."""

_RLE_HEADER_BYTES = 64
_RLE_MOST_SEGMENTS = 15
_RLE_SLACK_BYTES = 4096
"""Bytes that a segment may decode to beyond its pixels: some writers pad them."""

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
_NO_SOF = (0xC4, 0xC8, 0xCC)
_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDB)})
"""Markers without a length, and the start of a scan: none of them may stand before the SOF."""

_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_SIGNS = {True: "signed", False: "unsigned"}
_MAX_BITS = 16
_SAMPLED_ROWS = 256
_SMOOTHER = 0.25
"""Rows and columns count as exchanged if that reduces the steps to less than this share."""

_SLACK_BYTES = 1024
"""Bytes after the pixels that are tolerated: writers pad to whole blocks."""


def is_available(uid: str) -> bool:
    """Whether the plugin decodes `uid`; called by pydicom."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one JPEG frame of 8 to 16 bits; colour becomes RGB."""
    from imagecodecs import jpeg8_decode

    space, wanted = None, None
    if runner.samples_per_pixel == 3:
        is_rgb = runner.photometric_interpretation == PhotometricInterpretation.RGB
        space, wanted = "RGB" if is_rgb else "YCBCR", "RGB"
        runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
        runner.set_option("planar_configuration", 0)
    samples = jpeg8_decode(stream, colorspace=space, outcolorspace=wanted)
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    return bytes(samples.tobytes())


def decode_rle(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one RLE frame (PS3.5 annex G): one segment per byte of each sample, highest first."""
    from imagecodecs import packbits_decode

    header = np.frombuffer(stream[:_RLE_HEADER_BYTES], dtype="<u4").tolist()
    width = runner.bits_allocated // 8
    count = runner.samples_per_pixel * width
    if len(header) <= _RLE_MOST_SEGMENTS or header[0] != count:
        raise ValueError(f"the RLE header states {header[:1]} segments; expected {count}")
    pixels = runner.rows * runner.columns
    ends = [*header[2 : count + 1], len(stream)]
    # Planes of little-endian samples: (sample, pixel, byte).
    planes = np.empty((runner.samples_per_pixel, pixels, width), dtype=np.uint8)
    for index, (start, end) in enumerate(zip(header[1 : count + 1], ends, strict=True)):
        room = bytearray(pixels + _RLE_SLACK_BYTES)
        segment = packbits_decode(stream[start:end], out=room)
        if len(segment) < pixels:
            raise ValueError(f"RLE segment {index} is truncated: {len(segment)} of {pixels} bytes")
        sample, byte = divmod(index, width)
        planes[sample, :, width - 1 - byte] = np.frombuffer(segment, np.uint8, pixels)
    runner.set_option("planar_configuration", 1)
    return planes.tobytes()


def _add_plugin() -> None:
    # pydicom keeps one table of decoders per process, and adding to it is not thread-safe. An
    # import is, so the plugin is added on import.
    for decoder, function in (
        (JPEGBaseline8BitDecoder, decode_jpeg),
        (JPEGExtended12BitDecoder, decode_jpeg),
        (JPEGLosslessDecoder, decode_jpeg),
        (JPEGLosslessSV1Decoder, decode_jpeg),
        (RLELosslessDecoder, decode_rle),
    ):
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, function.__name__))


_add_plugin()

Samples = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class PixelHeader:
    """The image pixel description, checked (PS3.3 C.7.6.3).

    Attributes:
        rows: height.
        columns: width.
        samples: values per pixel, 1 or 3.
        allocated: bits of one value in the file.
        stored: bits of it that are used.
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


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The only frame, uncompressed.

    Attributes:
        samples: cells, unsigned (rows, columns), or RGB (rows, columns, 3).
        width: bits of a cell: allocated, or those of the compressed stream.
        field: the bits of a cell that hold the value, as header or stream states.
        swappable: the cells are stored uncompressed in 16 bits, so bytes may be swapped.
    """

    samples: Samples
    width: int
    field: Field
    swappable: bool = False


@dataclass(frozen=True, slots=True)
class _Stream:
    """A compressed stream and the facts that it states.

    `signed` is `None` if the format has no sign; `content` is what was checked.
    """

    content: bytes
    columns: int
    rows: int
    samples: int
    bits: int
    signed: bool | None = None


def decode_frame(
    dataset: Dataset, syntax: str, header: PixelHeader, source: str, warnings: list[str]
) -> Frame:
    """Decode the only frame.

    A compressed stream states its own bits and sign. If the header contradicts them, the stream
    takes precedence, and a warning names both.

    Args:
        dataset: with pixel data; its pixel description is set to what is decoded.
        syntax: the transfer syntax.
        header: its pixel description, checked.
        source: the file's name, for errors.
        warnings: anomalies are appended.

    Raises:
        ImageRefusedError: `truncated` or `corrupt` pixel data; `multi_frame` if its table of
            offsets (PS3.5 A.4) lists more than one frame, whatever the header states.
        Exception: any exception of pydicom and the codecs; call this inside `budget.decoding`.
    """
    uid = UID(syntax)
    shift = header.high_bit + 1 - header.stored
    field, width = Field(shift, header.stored, header.signed), header.allocated
    stream = None
    if uid not in _NATIVE:
        refuse_frames(source, _listed_frames(dataset), "DICOM object")
    if uid in _NATIVE:
        _check_native_length(dataset, header, source, warnings)
    elif uid != RLELossless:  # its decoder checks the length of every segment
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        stream = _checked_stream(frame, uid, header, source)
        field, width = _stream_field(stream, header, warnings), stream.bits
        # Decode what was checked: no container and no second table of offsets reaches the decoder.
        dataset.PixelData = encapsulate([stream.content])
        for keyword in _OFFSETS:
            dataset.pop(keyword, None)
        dataset.BitsAllocated = 8 if width <= 8 else 16
        dataset.BitsStored, dataset.HighBit = width, width - 1
    # Signs are handled in `cells`: request the cells unchanged.
    dataset.PixelRepresentation = int(stream is not None and bool(stream.signed))
    array: Samples
    array, _properties = get_decoder(uid).as_array(
        dataset,
        index=0,
        allow_excess_frames=False,
        correct_unused_bits=False,
        decoding_plugin=_plugin(uid),
    )
    if header.samples == 3:
        return Frame(array, width, replace(field, signed=False))
    cells = array.astype(f"u{array.dtype.itemsize}", copy=False)
    if uid in _NATIVE:
        _check_shape(cells, source)
    if stream is not None:
        cells = cells & ((1 << width) - 1)
    return Frame(cells, width, field, swappable=uid in _NATIVE and header.allocated == 16)


def _listed_frames(dataset: Dataset) -> int:
    """The number of frames in the offset tables (PS3.5 A.4, PS3.3 C.7.6.3.1.8); 0: no table."""
    basic = int.from_bytes(dataset.PixelData[4:8], "little") // 4
    return max(basic, len(dataset.get("ExtendedOffsetTable") or b"") // 8)


def _check_shape(cells: Samples, source: str) -> None:
    """Reject pixels that form an image only with rows and columns exchanged."""
    rows, columns = cells.shape
    if rows == columns:
        return
    stated, exchanged = _steps_down(cells), _steps_down(cells.reshape(columns, rows))
    if exchanged < _SMOOTHER * stated:
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"its header states {rows} rows and {columns} columns, but its pixels form an image "
            f"of {columns} rows and {rows} columns. Ask the producer of the file to correct it",
        )


def _steps_down(cells: Samples) -> float:
    """Mean step from a pixel to the one below it, over a sample of rows."""
    step = max(1, cells.shape[0] // _SAMPLED_ROWS)
    below, above = cells[1::step].astype(np.int32), cells[:-1:step].astype(np.int32)
    count = min(len(below), len(above))
    return float(np.abs(below[:count] - above[:count]).mean(dtype=np.float64))


def _plugin(uid: UID) -> str:
    if uid in JPEG or uid == RLELossless:
        return PLUGIN
    return "pylibjpeg" if uid in _JPEG_2000 else ""


def _stream_field(stream: _Stream, header: PixelHeader, warnings: list[str]) -> Field:
    """The field of a compressed stream's cells that holds the values."""
    signed = header.signed
    if stream.bits < header.stored:
        warnings.append(
            f"its compressed stream has {stream.bits} bits per sample, its header states "
            f"{header.stored}; the stream was used"
        )
    if stream.signed is not None and stream.signed != header.signed:
        warnings.append(
            f"its compressed stream is {_SIGNS[stream.signed]}, its header states "
            f"{_SIGNS[header.signed]}"
        )
        # Encoders write signed samples as unsigned ones of the same bits, never the reverse.
        signed = True
    return Field(0, min(stream.bits, header.stored), signed)


def _check_native_length(
    dataset: Dataset, header: PixelHeader, source: str, warnings: list[str]
) -> None:
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
    excess = found - wanted
    whole = excess > 0 and found % wanted == 0
    if whole or excess > max(wanted // header.rows, _SLACK_BYTES):
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"its pixel data have {found:,} bytes; {header.columns} × {header.rows} pixels of "
            f"{header.samples} × {header.allocated} bits have {wanted:,}, so its header "
            "contradicts its pixels. Fetch it again, or correct the header",
        )
    if excess > 1:  # one byte pads to an even length
        warnings.append(f"its pixel data have {excess:,} bytes more than its header states")


def _checked_stream(content: bytes, uid: UID, header: PixelHeader, source: str) -> _Stream:
    """Check that a compressed frame is complete and has the size that the data set states."""
    if uid in _JPEG_2000:
        found = codestream(content, source)
        stream = _j2k_stream(found) if found is not None else None
    else:
        check_scans(content, source)
        stream = _jpeg_stream(content)
    if stream is None:
        raise ImageRefusedError(
            source, Reason.CORRUPT, f"its pixel data are not the {uid.name} stream that it states"
        )
    if (stream.columns, stream.rows, stream.samples) != (
        header.columns,
        header.rows,
        header.samples,
    ):
        raise ImageRefusedError(
            source,
            Reason.CORRUPT,
            f"its compressed stream has {stream.columns} × {stream.rows} pixels of "
            f"{stream.samples} samples, its header {header.columns} × {header.rows} of "
            f"{header.samples}",
        )
    if not 1 <= stream.bits <= _MAX_BITS:
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"its compressed stream has {stream.bits} bits per sample; expected at most "
            f"{_MAX_BITS}",
        )
    # Fragments have an even length (PS3.5 A.4); writers pad with 00, some with FF.
    if not content.rstrip(b"\x00\xff").endswith(_END_OF_IMAGE):
        raise ImageRefusedError(
            source, Reason.TRUNCATED, "its compressed stream has no end marker. Fetch it again"
        )
    return stream


def _jpeg_stream(stream: bytes) -> _Stream | None:
    """The facts in the frame header of a JPEG or JPEG-LS stream (ITU-T T.81, B.2.2)."""
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _NO_SOF) or marker == 0xF7:
            bits, height, width, components = struct.unpack_from(">BHHB", stream, position + 4)
            return _Stream(stream, width, height, components, bits)
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        # Decoders skip such a marker, or search behind it: they would find another frame header.
        if marker in _NO_LENGTH or length < 2:
            return None
        position += 2 + length
    return None


def _j2k_stream(found: Codestream) -> _Stream:
    return _Stream(
        found.content, found.columns, found.rows, found.components, found.bits, found.signed
    )
