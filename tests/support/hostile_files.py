"""Small files that ask for far more work than they are large, made of honest ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from pneumoscope.images.dicom.file import transfer_syntax_of
from support.image_files import dicom, smooth_grey, xray

GREY = smooth_grey(64, 56).astype(np.uint8)


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many times more."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * scans + b"\xff\xd9"


def sequential(scans: int) -> bytes:
    """One that is not progressive, with a scan for each component, the last so many times more."""
    stream = io.BytesIO()
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(stream, "JPEG")
    content = stream.getvalue()
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * scans + b"\xff\xd9"


def encapsulated(stream: bytes, syntax: str) -> bytes:
    dataset = xray(GREY)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom(dataset, syntax)


def palette(segments: bytes, *, bits: int = 16) -> bytes:
    """A DICOM file with a segmented palette, the same for each colour."""
    dataset = xray(GREY)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", segments)
    return dicom(dataset, ExplicitVRLittleEndian)


def jpeg_2000(style: bytes, *, tile_style: bytes = b"", start: bytes = b"") -> bytes:
    """A DICOM file with a stream of no data that has the coding styles `style` and `tile_style`.

    Args:
        style: what follows the length of a COD segment, in the main header.
        tile_style: the same in the header of the only tile part; empty for none.
        start: what stands before the stream.
    """

    def coding(body: bytes) -> bytes:
        return b"\xff\x52" + struct.pack(">H", 2 + len(body)) + body if body else b""

    rows, columns = GREY.shape
    sides = (columns, rows, 0, 0, columns, rows, 0, 0, 1)
    size = b"\xff\x51" + struct.pack(">HH8IH", 41, 0, *sides) + b"\x07\1\1"
    steps = b"\xff\x5c" + struct.pack(">HB", 7, 0x40) + b"\x40\x48\x48\x50"
    inner = coding(tile_style) + b"\xff\x93" + b"\0" * 20
    part = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 12 + len(inner), 0, 1) + inner
    stream = start + b"\xff\x4f" + size + coding(style) + steps + part + b"\xff\xd9"
    return encapsulated(stream + b"\0" * (len(stream) % 2), JPEG2000Lossless)


def coding_style(layers: int, levels: int, precincts: bytes = b"", block: int = 4) -> bytes:
    """What follows the length of a COD segment (ITU-T T.800, A.6.1)."""
    start = struct.pack(">BBHB", bool(precincts), 0, layers, 0)
    return start + bytes([levels, block, block, 0, 1]) + precincts


def jpeg_behind(marker: int, side: int) -> bytes:
    """A JPEG of `side` squared, whose marker without a length hides another frame header."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "JPEG")
    raw = stream.getvalue()
    start = raw.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", raw, start + 2)
    decoy = raw[start : start + 2 + length]
    real = decoy[:5] + struct.pack(">HH", side, side) + decoy[9:]
    # Read as a length, the marker of the real frame header leads to the other one.
    body = raw[:2] + bytes([0xFF, marker]) + real
    target = 2 + 2 + 0xFFC0
    body += b"\xff\xfe" + struct.pack(">H", target + len(decoy) - len(body) - 2)
    body += b"\0" * (target - len(body)) + decoy + raw[2:start] + raw[start + 2 + length :]
    return encapsulated(body + b"\0" * (len(body) % 2), JPEGBaseline8Bit)


def many_directories(count: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF")
    content = bytearray(stream.getvalue())
    (start,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, start)
    following = start + 2 + 12 * entries
    directory = bytes(content[start:following])
    first = len(content) + len(content) % 2
    struct.pack_into("<I", content, following, first)
    content += b"\0" * (len(content) % 2)
    step = len(directory) + 4
    for k in range(count):
        content += directory + struct.pack("<I", first + (k + 1) * step if k + 1 < count else 0)
    return bytes(content)


def png_of_chunks(count: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "PNG")
    content = stream.getvalue()
    chunk = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return content[:-12] + chunk * count + content[-12:]


def jpeg_of_comments(count: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "JPEG")
    content = stream.getvalue()
    return content[:2] + b"\xff\xfe\x00\x02" * count + content[2:]


def items(count: int, *, undefined: bool, syntax: str) -> bytes:
    """A DICOM file with a sequence of so many empty items before its pixels."""
    dataset = xray(GREY)
    dataset.VOILUTSequence = Sequence([Dataset() for _ in range(count)])
    dataset["VOILUTSequence"].is_undefined_length = undefined
    return dicom(dataset, syntax)


def items_before(keyword: str, count: int) -> bytes:
    """A DICOM file with so many empty items before one element, and that of a woman."""
    dataset = xray(GREY)
    dataset.ReferencedImageSequence = Sequence([Dataset() for _ in range(count)])
    dataset.PatientSex = "F"
    setattr(dataset, keyword, "p1")
    return dicom(dataset, ExplicitVRLittleEndian)


def elements(count: int) -> bytes:
    """One with so many empty private elements."""
    whole = dicom(xray(GREY))
    start = transfer_syntax_of(whole)[1]
    made = b"".join(struct.pack("<HH2sH", 0x0007, 0x1000 + k, b"LO", 0) for k in range(count))
    return whole[:start] + made + whole[start:]


def fragments(count: int) -> bytes:
    dataset = xray(GREY)
    dataset.PixelData = encapsulate([sequential(0)]) + b"\xfe\xff\x00\xe0\0\0\0\0" * count
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom(dataset, JPEGBaseline8Bit)


def meta_elements(count: int) -> bytes:
    whole = dicom(xray(GREY))
    return whole[:132] + struct.pack("<HH2sH", 2, 0x0100, b"LO", 0) * count + whole[132:]


def long_value() -> bytes:
    dataset = xray(GREY)
    whole = dicom(dataset, ImplicitVRLittleEndian)
    spacing = b"1\\" * (3 << 20)
    element = struct.pack("<HHI", 0x0028, 0x0030, len(spacing)) + spacing
    return whole[: whole.rindex(b"\xe0\x7f\x10\x00")] + element + whole[whole.rindex(b"\xe0\x7f") :]
