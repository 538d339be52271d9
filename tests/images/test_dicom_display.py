"""Modality LUT, window, polarity and padding against values worked out by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.dicom.grey import Window
from pneumoscope.images.read import read_bytes
from support.dicom_images import (
    GREY8,
    GREY12,
    NATIVE,
    SIGNED,
    WHOLE,
    linear,
    read,
    same,
    stretched,
    twelve,
)
from support.image_files import dicom, xray


def lut_item(values: list[int], first: int, bits: int, words: bool = False) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(values), first, bits])
    if words:
        item.add_new(0x00283006, "OW", np.array(values, "<u2").tobytes())
    else:
        item.add_new(0x00283006, "US", values)
    return item


@pytest.mark.parametrize("function", ["", "LINEAR"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (2000, 3000), (1900.5, 2801)])
def test_linear_window(centre: float, width: float, function: str) -> None:
    dataset = twelve(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    same(read(dataset), linear(GREY12, centre, width))


@pytest.mark.parametrize(("centre", "width"), [(1000, 500), (700.5, 1), (300, 2)])
def test_narrow_linear_window(centre: float, width: float) -> None:
    shown = Window(centre, width).grey(GREY12.astype(float))
    np.testing.assert_allclose(shown, linear(GREY12, centre, width), atol=1e-12)


def test_linear_window_by_hand() -> None:
    # The standard's own example: c=2048, w=4096 maps 0 to the lowest and 4095 to the highest.
    samples = np.full((40, 40), 0, np.uint16)
    samples[0, :4] = (1, 2047, 2048, 4095)
    grey = read(twelve(samples, **WHOLE)).pixels
    np.testing.assert_allclose(grey[0, :5], [1 / 4095, 2047 / 4095, 2048 / 4095, 1, 0], rtol=1e-6)


def test_linear_exact_window() -> None:
    dataset = twelve(WindowCenter=2000, WindowWidth=3000, VOILUTFunction="LINEAR_EXACT")
    expected = ((GREY12.astype(float) - 2000) / 3000 + 0.5).clip(0, 1)
    same(read(dataset), expected)


def test_sigmoid_window() -> None:
    dataset = twelve(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    same(read(dataset), 1 / (1 + np.exp(-4 * (GREY12.astype(float) - 2000) / 1000)))


def test_the_first_of_several_windows_is_used() -> None:
    dataset = twelve(WindowCenter=[2000, 2500], WindowWidth=[3000, 4000])
    same(read(dataset), linear(GREY12, 2000, 3000))


@pytest.mark.parametrize("width", [0, -5])
def test_impossible_window_is_not_used(width: float) -> None:
    image = read(twelve(WindowCenter=1000, WindowWidth=width))
    same(image, stretched(GREY12))
    assert f"window width is {width}" in image.warnings[0]


def test_narrow_window_becomes_linear_exact() -> None:
    dataset = twelve(WindowCenter=0.45, WindowWidth=0.9, RescaleSlope=1 / 4095, RescaleIntercept=0)
    image = read(dataset)
    np.testing.assert_allclose(image.pixels, (GREY12 / 4095 / 0.9).clip(0, 1), atol=1e-5)
    assert "too narrow" in image.warnings[0]


def test_a_window_outside_all_values_is_not_used() -> None:
    image = read(twelve(WindowCenter=60000, WindowWidth=10))
    same(image, stretched(GREY12))
    assert "one grey only" in image.warnings[0]


@pytest.mark.parametrize("text", ["abc", "nan", "1e999"])
def test_an_invalid_window_is_not_used(text: str) -> None:
    dataset = twelve(WindowCenter=100, WindowWidth=100)
    content = dicom(dataset)
    bad = text.encode().ljust(8)
    start = content.index(struct.pack("<HH2s", 0x28, 0x1050, b"DS"))
    length = struct.unpack_from("<H", content, start + 6)[0]
    head = content[: start + 6] + struct.pack("<H", len(bad)) + bad
    image = read_bytes(head + content[start + 8 + length :], "x")
    same(image, stretched(GREY12))
    assert "WindowCenter" in image.warnings[0]


def test_rescale_comes_before_the_window() -> None:
    dataset = twelve(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=6500)
    same(read(dataset), linear(GREY12.astype(float) * 2 - 1000, 3000, 6500))


def test_a_negative_slope_swaps_black_and_white() -> None:
    same(read(twelve(RescaleSlope=-1, RescaleIntercept=4095)), 1 - stretched(GREY12))


@pytest.mark.parametrize("syntax", NATIVE[:2])
@pytest.mark.parametrize("words", [False, True])
def test_modality_lut(words: bool, syntax: str) -> None:
    squares = [v * v // 256 for v in range(256)]
    dataset = xray(GREY8, ModalityLUTSequence=[lut_item(squares, 0, 8, words)])
    same(read(dataset, syntax), stretched(np.array(squares)[GREY8]))


@pytest.mark.parametrize("syntax", NATIVE[:2])
@pytest.mark.parametrize("words", [False, True])
def test_voi_lut_clamps_at_both_ends(words: bool, syntax: str) -> None:
    values = [v * v // 40 for v in range(200)]  # up to 990
    dataset = xray(GREY8, VOILUTSequence=[lut_item(values, 25, 10, words)], **WHOLE)
    expected = np.array(values)[(GREY8.astype(int) - 25).clip(0, 199)] / 1023
    same(read(dataset, syntax), expected)


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_voi_lut_of_signed_values(syntax: str) -> None:
    values = list(range(4096))
    dataset = xray(SIGNED, VOILUTSequence=[lut_item(values, -900, 12)])
    expected = np.array(values)[(SIGNED.astype(int) + 900).clip(0, 4095)] / 4095
    same(read(dataset, syntax), expected)


def test_first_input_written_unsigned_for_signed_values() -> None:
    values = list(range(0, 4096, 2))
    signed = read(xray(SIGNED, VOILUTSequence=[lut_item(values, -1024, 12)]))
    unsigned = read(xray(SIGNED, VOILUTSequence=[lut_item(values, 65536 - 1024, 12)]))
    np.testing.assert_array_equal(unsigned.pixels, signed.pixels)


def test_voi_lut_of_8_bit_entries_packed_in_words() -> None:
    item = lut_item(list(range(255, -1, -1)), 0, 8)
    item.add_new(0x00283006, "OW", bytes(range(255, -1, -1)))
    same(read(xray(GREY8, VOILUTSequence=[item])), 1 - GREY8 / 255)


def test_too_short_lut_is_corrupt() -> None:
    item = lut_item([1, 2, 3], 0, 8)
    item.add_new(0x00283002, "US", [200, 0, 8])
    with pytest.raises(ImageRefusedError, match="3 of 200 entries") as rejection:
        read(xray(GREY8, VOILUTSequence=[item]))
    assert rejection.value.reason is Reason.CORRUPT


def test_a_window_or_table_that_clips_is_noted() -> None:
    steep = np.minimum(np.arange(256) * 3 // 2, 255).tolist()
    table = xray(GREY8, VOILUTSequence=[lut_item(steep, 0, 8)])
    window = twelve(WindowCenter=2000, WindowWidth=2800)
    for image, name in ((read(table), "VOI LUT"), (read(window), "window")):
        (words,) = image.warnings
        assert name in words
        assert "of the pixels black or white" in words


def test_monochrome1_is_inverted_after_the_window() -> None:
    dataset = twelve(PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=3600)
    image = read(dataset)
    same(image, 1 - linear(GREY12, 2000, 3600))
    assert image.warnings == ()


def test_monochrome1_is_inverted_against_a_wrong_presentation_shape() -> None:
    wrong: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1",
        "PresentationLUTShape": "IDENTITY",
    }
    image = read(twelve(**wrong))
    same(image, 1 - stretched(GREY12))
    assert "IDENTITY" in image.warnings[0]
    right = read(twelve(**{**wrong, "PresentationLUTShape": "INVERSE"}))
    same(right, 1 - stretched(GREY12))
    assert right.warnings == ()


def test_monochrome2_with_inverse_shape_is_not_inverted() -> None:
    image = read(twelve(PresentationLUTShape="INVERSE"))
    same(image, stretched(GREY12))
    assert "INVERSE" in image.warnings[0]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_padding_is_black_and_does_not_stretch(syntax: str, photometric: str) -> None:
    samples = (GREY12 // 2 + 1000).astype(np.uint16)
    samples[:, :9] = 4000
    dataset = twelve(samples, PixelPaddingValue=4000, PhotometricInterpretation=photometric)
    image_only = stretched(samples[:, 9:])
    if photometric == "MONOCHROME1":
        image_only = 1 - image_only
    grey = read(dataset, syntax).pixels
    np.testing.assert_allclose(grey[:, 9:], image_only, atol=2e-7)
    assert not grey[:, :9].any()


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_signed_padding_range(syntax: str) -> None:
    samples = SIGNED.copy()
    samples[:5], samples[5:9] = -2000, -1990
    dataset = xray(samples, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980)
    grey = read(dataset, syntax).pixels
    np.testing.assert_allclose(grey[9:], stretched(samples[9:]), atol=2e-7)
    assert not grey[:9].any()


def test_an_image_of_padding_is_blank() -> None:
    with pytest.raises(ImageRefusedError) as rejection:
        read(xray(np.full((40, 40), 5, np.uint16), PixelPaddingValue=5))
    assert rejection.value.reason is Reason.BLANK
