"""Small files that state millions of parts: each is refused before it costs anything."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.source import source_image
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import budget
from pneumoscope.images.read import read_bytes
from support.hostile_files import (
    GREY,
    elements,
    encapsulated,
    fragments,
    items,
    jpeg_of_comments,
    long_value,
    many_directories,
    meta_elements,
    png_of_chunks,
    progressive,
    sequential,
)

MANY = 5_000


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low limit, so that the test files are small and normal files still pass."""
    monkeypatch.setattr(budget, "MOST_ITEMS", 1000)


def refused(content: bytes) -> ImageRefusedError:
    with pytest.raises(ImageRefusedError) as caught:
        read_bytes(content, "hostile")
    return caught.value


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
    """Replace the stream of a normal JPEG in a TIFF with one of many scans."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF", compression="jpeg")
    honest = stream.getvalue()
    assert read_bytes(honest, "honest").format == "tiff"
    assert refused(honest + b"\xff\xda" * 500).reason == Reason.CORRUPT


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_second_tiff_directory_is_refused(count: int) -> None:
    assert refused(many_directories(count)).reason == Reason.MULTI_FRAME


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
    """Reports read the file again."""
    with pytest.raises(ImageRefusedError) as caught:
        source_image(elements(MANY), "hostile", LimitsConfig())
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
