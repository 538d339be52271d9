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
from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit

from pneumoscope.images.dicom.file import transfer_syntax_of
from support.image_files import dicom, film, smooth_grey

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
    dataset = film(GREY)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom(dataset, syntax)


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
    dataset = film(GREY)
    dataset.VOILUTSequence = Sequence([Dataset() for _ in range(count)])
    dataset["VOILUTSequence"].is_undefined_length = undefined
    return dicom(dataset, syntax)


def elements(count: int) -> bytes:
    """One with so many empty private elements."""
    whole = dicom(film(GREY))
    start = transfer_syntax_of(whole)[1]
    made = b"".join(struct.pack("<HH2sH", 0x0007, 0x1000 + k, b"LO", 0) for k in range(count))
    return whole[:start] + made + whole[start:]


def fragments(count: int) -> bytes:
    dataset = film(GREY)
    dataset.PixelData = encapsulate([sequential(0)]) + b"\xfe\xff\x00\xe0\0\0\0\0" * count
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom(dataset, JPEGBaseline8Bit)


def meta_elements(count: int) -> bytes:
    whole = dicom(film(GREY))
    return whole[:132] + struct.pack("<HH2sH", 2, 0x0100, b"LO", 0) * count + whole[132:]


def long_value() -> bytes:
    dataset = film(GREY)
    whole = dicom(dataset, ImplicitVRLittleEndian)
    spacing = b"1\\" * (3 << 20)
    element = struct.pack("<HHI", 0x0028, 0x0030, len(spacing)) + spacing
    return whole[: whole.rindex(b"\xe0\x7f\x10\x00")] + element + whole[whole.rindex(b"\xe0\x7f") :]
