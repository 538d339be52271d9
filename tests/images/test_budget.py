"""Small files that state millions of parts: each is rejected before it costs anything."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom import valuerep
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
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
from pneumoscope.images import budget, structure
from pneumoscope.images.dicom import decode, pixels
from pneumoscope.images.read import read_bytes
from support.hostile_files import (
    GREY,
    coding_style,
    elements,
    encapsulated,
    fragments,
    items,
    jpeg_2000,
    jpeg_behind,
    jpeg_of_comments,
    long_value,
    many_directories,
    meta_elements,
    palette,
    png_of_chunks,
    progressive,
    sequential,
)
from support.image_files import dicom, xray

MANY = 5_000


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low limit, so that the test files are small and normal files still pass."""
    monkeypatch.setattr(budget, "MOST_ITEMS", 1000)


def rejected(content: bytes) -> ImageRefusedError:
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
    error = rejected(content)
    assert error.reason == Reason.CORRUPT
    assert "scans" in error.detail


def test_scans_are_counted_in_a_tiff_too() -> None:
    """Replace the stream of a normal JPEG in a TIFF with one of many scans."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF", compression="jpeg")
    honest = stream.getvalue()
    assert read_bytes(honest, "honest").format == "tiff"
    assert rejected(honest + b"\xff\xda" * 500).reason == Reason.CORRUPT


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_second_tiff_directory_is_rejected(count: int) -> None:
    assert rejected(many_directories(count)).reason == Reason.MULTI_FRAME


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
    error = rejected(make())
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
    error = rejected(encapsulated(stream, JPEG2000Lossless))
    assert error.reason == Reason.TOO_COMPLEX
    assert "packets" in error.detail


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(jpeg_2000(coding_style(1, 1, b"\x11\x11")), "precincts", id="precincts"),
        pytest.param(jpeg_2000(coding_style(5000, 1, b"\x55\x55")), "packets", id="layers"),
        pytest.param(jpeg_2000(coding_style(1, 1, block=0)), "code-blocks", id="code-blocks"),
    ],
)
def test_precincts_and_code_blocks_of_jpeg_2000_are_counted(
    monkeypatch: pytest.MonkeyPatch, content: bytes, word: str
) -> None:
    monkeypatch.setattr(structure, "_MAX_PACKETS", 10_000)
    monkeypatch.setattr(structure, "_MAX_PARTS", 200)
    monkeypatch.setattr(pixels, "get_decoder", None)
    error = rejected(content)
    assert error.reason == Reason.TOO_COMPLEX
    assert word in error.detail


def test_a_stream_with_usual_precincts_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_PARTS", 200)
    error = rejected(jpeg_2000(coding_style(1, 1, b"\x77\x88")))
    assert error.reason == Reason.BLANK


def test_a_tile_part_has_no_coding_of_its_own() -> None:
    hidden = coding_style(65535, 1, b"\x11\x11")
    error = rejected(jpeg_2000(coding_style(1, 1), tile_style=hidden))
    assert (error.reason, "tile part" in error.detail) == (Reason.CORRUPT, True)


def test_the_decoder_gets_the_stream_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stream in a JP2 container, wherever its boxes point to."""
    container = io.BytesIO()
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(container, "JPEG2000")
    seen = []

    class Spy:
        def as_array(self, dataset: Dataset, **options: object) -> object:
            seen.append(get_frame(dataset.PixelData, 0, number_of_frames=1))
            return get_decoder(JPEG2000Lossless).as_array(dataset, **options)

    monkeypatch.setattr(pixels, "get_decoder", lambda _uid: Spy())
    rejected(jpeg_2000(coding_style(1, 1), start=container.getvalue()[:85]))
    assert [stream[:4] for stream in seen] == [b"\xff\x4f\xff\x51"]


@pytest.mark.parametrize("marker", [0x00, 0x01, 0xD0, 0xD8])
def test_no_marker_without_a_length_hides_the_frame_header(
    monkeypatch: pytest.MonkeyPatch, marker: int
) -> None:
    monkeypatch.setattr(pixels, "get_decoder", None)
    error = rejected(jpeg_behind(marker, 60_000))
    assert (error.reason, "stream that it states" in error.detail) == (Reason.CORRUPT, True)


def many_windows(count: int) -> bytes:
    dataset = xray(GREY)
    dataset.WindowCenter = ["3"] * count
    dataset.WindowWidth = ["1"] * count
    return dicom(dataset, ImplicitVRLittleEndian)


def test_few_windows_of_many_are_applied() -> None:
    warnings = read_bytes(many_windows(100), "odd").warnings
    assert len(warnings) <= 10
    assert any("states 100 windows" in each for each in warnings)


def test_values_of_an_element_are_counted_before_they_are_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = many_windows(1001)
    monkeypatch.setattr(valuerep, "DSfloat", None)
    error = rejected(content)
    assert error.reason == Reason.TOO_COMPLEX
    assert "values of one element" in error.detail


@pytest.mark.parametrize("tag", [273, 279])
def test_strips_of_a_tiff_are_counted_before_they_are_listed(
    monkeypatch: pytest.MonkeyPatch, tag: int
) -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF")
    content = bytearray(stream.getvalue())
    (start,) = struct.unpack_from("<I", content, 4)
    entry = content.index(struct.pack("<H", tag), start)
    struct.pack_into("<HII", content, entry + 2, 1, MANY, len(content))
    monkeypatch.setattr(structure, "ImageFileDirectory_v2", None)
    error = rejected(bytes(content) + b"\x08" * MANY)
    assert error.reason == Reason.TOO_COMPLEX
    assert "strips" in error.detail


_RAMP = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)
"""One entry, and 255 on the way to white."""


def test_segmented_palettes_are_read() -> None:
    assert read_bytes(palette(_RAMP), "honest").pixels.max() > 0.5
    again = struct.pack("<9H", 0, 1, 0, 1, 127, 65535, 2, 2, 0) + b"\0\0"
    assert read_bytes(palette(again), "honest").pixels.max() > 0.5
    short = bytes([0, 1, 0, 1, 127, 255, 2, 2, 0, 0, 0, 0])
    assert read_bytes(palette(short, bits=8), "honest").pixels.max() > 0.5


@pytest.mark.parametrize(
    ("segments", "reason", "word"),
    [
        (_RAMP + struct.pack("<3H", 1, 65535, 7) * 2, Reason.CORRUPT, "palette"),
        (_RAMP + struct.pack("<4H", 2, 2, 0, 0) * 400, Reason.CORRUPT, "palette"),
        (struct.pack("<3H", 0, 1, 0) + struct.pack("<4H", 2, 1, 0, 0) * 1001, "too_complex", "pal"),
    ],
)
def test_segmented_palettes_are_counted_before_they_are_expanded(
    monkeypatch: pytest.MonkeyPatch, segments: bytes, reason: str, word: str
) -> None:
    monkeypatch.setattr(decode, "apply_color_lut", None)
    error = rejected(palette(segments))
    assert (error.reason, word in error.detail) == (reason, True)


def test_a_palette_that_repeats_itself_is_rejected() -> None:
    error = rejected(palette(struct.pack("<7H", 0, 1, 0, 2, 2, 0, 0)))
    assert error.reason in (Reason.CORRUPT, Reason.TOO_COMPLEX)


def test_time_is_counted_and_a_file_after_it_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "PNG")
    monkeypatch.setattr(budget, "MOST_SECONDS", -1.0)
    error = rejected(stream.getvalue())
    assert (error.reason, error.reason.status) == (Reason.TOO_COMPLEX, "refused")
    monkeypatch.undo()
    assert read_bytes(stream.getvalue(), "honest").pixels.shape == (64, 56)
