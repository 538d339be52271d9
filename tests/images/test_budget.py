"""Small files that state millions of parts: each is refused before it costs anything."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.source import source_film
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import budget
from pneumoscope.images.dicom.file import transfer_syntax_of
from pneumoscope.images.read import read_bytes
from support.image_files import dicom, film, smooth_grey

GREY = smooth_grey(64, 56).astype(np.uint8)
MANY = 5_000


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that the files are small, and enough for the honest ones."""
    monkeypatch.setattr(budget, "MOST_ITEMS", 1000)


def refused(content: bytes) -> ImageRefusedError:
    with pytest.raises(ImageRefusedError) as caught:
        read_bytes(content, "hostile")
    return caught.value


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


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(progressive(300), id="JPEG, progressive"),
        pytest.param(sequential(300), id="JPEG, sequential"),
        pytest.param(encapsulated(progressive(300), JPEGBaseline8Bit), id="DICOM, progressive"),
        pytest.param(encapsulated(sequential(300), JPEGBaseline8Bit), id="DICOM, sequential"),
    ],
)
def test_scans_are_counted_wherever_the_stream_lies(content: bytes) -> None:
    error = refused(content)
    assert error.reason == Reason.CORRUPT
    assert "scans" in error.detail


def test_scans_are_counted_in_a_tiff_too() -> None:
    """The stream of an honest JPEG in a TIFF is exchanged for one of many scans."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF", compression="jpeg")
    honest = stream.getvalue()
    assert read_bytes(honest, "honest").format == "tiff"
    assert refused(honest + b"\xff\xda" * 500).reason == Reason.CORRUPT


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


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_second_tiff_directory_is_enough(count: int) -> None:
    assert refused(many_directories(count)).reason == Reason.MULTI_FRAME


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


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: png_of_chunks(MANY), "PNG chunks"),
        (lambda: jpeg_of_comments(MANY), "JPEG parts"),
        (lambda: items(MANY, undefined=True, syntax=ExplicitVRLittleEndian), "items"),
        (lambda: items(MANY, undefined=False, syntax=ExplicitVRLittleEndian), "items"),
        (lambda: items(MANY, undefined=False, syntax=ImplicitVRLittleEndian), "items"),
        (lambda: items(MANY, undefined=True, syntax=ExplicitVRBigEndian), "items"),
        (lambda: items(MANY, undefined=True, syntax=DeflatedExplicitVRLittleEndian), "items"),
        (lambda: elements(MANY), "elements"),
        (lambda: fragments(MANY), "fragments"),
        (lambda: meta_elements(MANY), "meta information"),
        (long_value, "(0028,0030)"),
    ],
)
def test_parts_are_counted_in_every_format(make: Callable[[], bytes], what: str) -> None:
    error = refused(make())
    assert error.reason == Reason.TOO_COMPLEX
    assert what in error.detail


def test_the_header_alone_has_the_same_budget() -> None:
    """For a report the file is read again."""
    with pytest.raises(ImageRefusedError) as caught:
        source_film(elements(MANY), "hostile", LimitsConfig())
    assert caught.value.reason == Reason.TOO_COMPLEX


def test_packets_of_jpeg_2000_are_counted() -> None:
    size = b"\xff\x51" + struct.pack(">HH8IH", 41, 0, 56, 64, 0, 0, 1, 1, 0, 0, 1) + b"\x07\1\1"
    style = b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 65535, 0, 5, 4, 4, 0, 1)
    stream = b"\xff\x4f" + size + style + b"\xff\x90" + b"\0" * 20 + b"\xff\xd9"
    error = refused(encapsulated(stream, JPEG2000Lossless))
    assert error.reason == Reason.TOO_COMPLEX
    assert "packets" in error.detail


def test_time_is_counted_and_a_file_after_it_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "PNG")
    monkeypatch.setattr(budget, "MOST_SECONDS", -1.0)
    error = refused(stream.getvalue())
    assert (error.reason, error.reason.status) == (Reason.TOO_COMPLEX, "refused")
    monkeypatch.undo()
    assert read_bytes(stream.getvalue(), "honest").pixels.shape == (64, 56)
