"""Every raster format and mode against values worked out independently of the reader."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.read import read_bytes, read_image
from support.image_files import Array, ByteOrder, encoded, png_chunk, smooth_grey, tiff

GREY = smooth_grey().astype(np.uint8)
DEEP = smooth_grey(top=65535).astype(np.uint16)
HEIGHT, WIDTH = GREY.shape


def colour() -> Array:
    planes = [smooth_grey(seed=seed) for seed in (1, 2, 3)]
    return np.stack([planes[0], 255 - planes[1], planes[2] // 2], axis=-1).astype(np.uint8)


def alpha() -> Array:
    return np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))


def luma(rgb: Array) -> Array:
    # ITU-R BT.601 in the 16-bit fixed point that 8-bit libraries share.
    red, green, blue = (rgb[..., i].astype(np.int64) for i in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def pixels(content: bytes) -> Array:
    result = read_bytes(content, "x").pixels
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.min() >= 0
    assert result.max() <= 1
    return result


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("PNG", {}, "png"),
        ("BMP", {}, "bmp"),
        ("TIFF", {}, "tiff"),
        ("TIFF", {"compression": "tiff_lzw"}, "tiff"),
        ("TIFF", {"compression": "tiff_deflate"}, "tiff"),
        ("TIFF", {"compression": "packbits"}, "tiff"),
        ("WEBP", {"lossless": True}, "webp"),
    ],
)
def test_lossless_grey_is_divided_by_255(kind: str, options: dict[str, Any], name: str) -> None:
    image = read_bytes(encoded(Image.fromarray(GREY), kind, **options), "image")
    np.testing.assert_array_equal(image.pixels, (GREY / 255).astype(np.float32))
    assert (image.format, image.bit_depth, image.source) == (name, 8, "image")
    assert image.dicom is None
    assert image.warnings == ()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_colour_becomes_bt601_luma(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(colour()), kind, **options)
    np.testing.assert_array_equal(pixels(content), (luma(colour()) / 255).astype(np.float32))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_what_pillow_converts(mode: str, progressive: bool) -> None:
    content = encoded(Image.fromarray(colour()).convert(mode), "JPEG", progressive=progressive)
    expected = np.asarray(Image.open(BytesIO(content)).convert("L")) / 255
    np.testing.assert_array_equal(pixels(content), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_black(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    rgba = np.dstack([colour(), alpha()])
    expected = luma(colour()) / 255 * (alpha() / 255)
    content = encoded(Image.fromarray(rgba), kind, **options)
    np.testing.assert_allclose(pixels(content), expected, atol=1e-6)


def test_grey_with_alpha_and_palette_with_alpha() -> None:
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha())])
    expected = GREY / 255 * (alpha() / 255)
    np.testing.assert_allclose(pixels(encoded(grey, "PNG")), expected, atol=1e-6)
    palette = Image.fromarray(GREY // 64, "P")
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10, 250, 250, 250])
    solid = np.array([0, luma(np.array([200, 10, 10])), luma(np.array([10, 200, 10])), 250])
    np.testing.assert_allclose(pixels(encoded(palette, "PNG")), solid[GREY // 64] / 255, atol=1e-6)
    clear = encoded(palette, "PNG", transparency=bytes([255, 0, 255, 128]))
    veiled = solid * np.array([1, 0, 1, 128 / 255]) / 255
    np.testing.assert_allclose(pixels(clear), veiled[GREY // 64], atol=1e-6)


def test_transparent_colour_of_grey_png_is_black() -> None:
    content = encoded(Image.fromarray(GREY), "PNG", transparency=255)
    np.testing.assert_allclose(pixels(content), np.where(GREY == 255, 0, GREY / 255), atol=1e-6)
    deep = encoded(Image.fromarray(DEEP), "PNG", transparency=65535)
    expected = np.where(DEEP == 65535, 0, DEEP / 65535)
    np.testing.assert_allclose(pixels(deep), expected, atol=1e-6)


def test_one_bit() -> None:
    black_and_white = Image.fromarray(GREY > 128)
    for kind in ("PNG", "TIFF", "BMP"):
        image = read_bytes(encoded(black_and_white, kind), "x")
        np.testing.assert_array_equal(image.pixels, (GREY > 128).astype(np.float32))
    assert read_bytes(encoded(black_and_white, "PNG"), "x").bit_depth == 1


def test_one_bit_tiff_with_white_as_zero() -> None:
    content = encoded(Image.fromarray(GREY > 128), "TIFF", compression="group4")
    np.testing.assert_array_equal(pixels(content), (GREY > 128).astype(np.float32))


def test_16_bit_png_is_divided_by_65535_and_not_saturated() -> None:
    image = read_bytes(encoded(Image.fromarray(DEEP), "PNG"), "x")
    np.testing.assert_array_equal(image.pixels, (DEEP / 65535).astype(np.float32))
    assert image.bit_depth == 16
    assert len(np.unique(image.pixels)) > 256


def test_16_bit_colour_png_is_read_in_16_bits() -> None:
    wide = np.repeat(colour(), 2, axis=-1).astype(np.uint8)  # each sample v becomes v × 257
    rows = b"".join(b"\x00" + row.tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)
    image = read_bytes(content, "x")
    np.testing.assert_allclose(image.pixels, colour() @ [0.299, 0.587, 0.114] / 255, atol=1e-5)
    assert image.bit_depth == 16
    assert image.warnings == ()


def test_dark_16_bit_image_gets_a_warning() -> None:
    image = read_bytes(encoded(Image.fromarray((DEEP >> 4).astype(np.uint16)), "PNG"), "x")
    assert "12 of 16 bits" in image.warnings[0]
    np.testing.assert_allclose(image.pixels, (DEEP >> 4) / 4095, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_16_bit_tiff(order: ByteOrder, deflate: bool) -> None:
    content = tiff(DEEP, order=order, deflate=deflate)
    np.testing.assert_array_equal(pixels(content), (DEEP / 65535).astype(np.float32))
    assert read_bytes(content, "x").bit_depth == 16


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("samples", [GREY, DEEP])
def test_tiff_with_white_as_zero_is_inverted(samples: Array, deflate: bool) -> None:
    content = tiff(samples, photometric=0, deflate=deflate)
    expected = 1 - samples / np.iinfo(samples.dtype).max
    np.testing.assert_allclose(pixels(content), expected, atol=1e-6)


def test_signed_16_bit_tiff() -> None:
    samples = (DEEP.astype(np.int64) - 32768).astype(np.int16)
    content = tiff(samples, sample_format=2)
    np.testing.assert_allclose(pixels(content), DEEP / 65535, atol=1e-6)


def test_32_bit_tiff_is_stretched_with_a_warning() -> None:
    image = read_bytes(tiff(DEEP.astype(np.int32) * 1000 - 7, sample_format=2), "x")
    np.testing.assert_allclose(image.pixels, DEEP / 65535, atol=1e-6)
    assert "32-bit" in image.warnings[0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_float_tiff(order: ByteOrder) -> None:
    unit = (DEEP / 65535).astype(np.float32)
    np.testing.assert_array_equal(pixels(tiff(unit, sample_format=3, order=order)), unit)
    inverted = pixels(tiff(unit, sample_format=3, photometric=0, order=order))
    np.testing.assert_allclose(inverted, 1 - unit, atol=1e-6)
    image = read_bytes(tiff(unit * 3000 - 1000, sample_format=3, order=order), "x")
    np.testing.assert_allclose(image.pixels, unit, atol=1e-6)
    assert "-1000" in image.warnings[0]


def test_cmyk_and_ycbcr_tiff() -> None:
    for mode in ("CMYK", "YCbCr"):
        content = encoded(Image.fromarray(colour()).convert(mode), "TIFF")
        expected = np.asarray(Image.open(BytesIO(content)).convert("L")) / 255
        np.testing.assert_allclose(pixels(content), expected, atol=1e-6)
        np.testing.assert_allclose(pixels(content), luma(colour()) / 255, atol=0.02)


def test_lab_tiff_has_the_grey_of_its_lightness() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    neutral = Image.fromarray(np.dstack([GREY] * 3))
    image = ImageCms.profileToProfile(neutral, srgb, lab, outputMode="LAB")
    assert image is not None
    np.testing.assert_allclose(pixels(encoded(image, "TIFF")), GREY / 255, atol=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(GREY), kind, exif=exif, **options)
    turned = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    expected = (np.asarray(turned.convert("L")) / 255).astype(np.float32)
    np.testing.assert_array_equal(pixels(content), expected)
    assert expected.shape == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))


def test_a_png_may_state_its_orientation_behind_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    before = encoded(Image.fromarray(GREY), "PNG", exif=exif)
    start = before.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(before[start : start + 4], "big")
    last = before.index(b"IEND") - 4
    behind = before[:start] + before[end:last] + before[start:end] + before[last:]
    assert behind != before
    np.testing.assert_array_equal(pixels(behind), pixels(before))
    assert pixels(behind).shape == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_uncompressed_and_deflated_tiff(orientation: int) -> None:
    for deflate in (False, True):
        content = tiff(DEEP, orientation=orientation, deflate=deflate)
        expected = DEEP / 65535 if orientation == 1 else np.rot90(DEEP / 65535, -1)
        np.testing.assert_allclose(pixels(content), expected, atol=1e-6)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"MM\x00*\x00\x00\x00\x08\xff\xff",
    ],
)
def test_damaged_exif_is_ignored(block: bytes) -> None:
    plain = encoded(Image.fromarray(GREY), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(plain[:2] + segment + plain[2:]), pixels(plain))


def test_format_is_detected_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    content = encoded(Image.fromarray(GREY), "PNG")
    path.write_bytes(content)
    image = read_image(path)
    assert image.format == "png"
    assert image.source == str(path)
    assert image.sha256 == hashlib.sha256(content).hexdigest()
    assert read_image(str(path)).sha256 == image.sha256


def test_a_link_to_an_image_is_followed(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(GREY), "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "x.png")
    assert read_image(tmp_path / "link").pixels.shape == (HEIGHT, WIDTH)


def test_a_socket_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    os.mknod(path, stat.S_IFSOCK | 0o600)
    with pytest.raises(ImageRefusedError, match="a socket") as rejection:
        read_image(path)
    assert rejection.value.reason is Reason.NOT_A_FILE


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (LimitsConfig(max_pixels=HEIGHT * WIDTH - 1), Reason.TOO_MANY_PIXELS),
        (LimitsConfig(max_side=HEIGHT - 1), Reason.TOO_MANY_PIXELS),
        (LimitsConfig(min_side=WIDTH + 1), Reason.TOO_SMALL),
        (LimitsConfig(max_aspect=1.24), Reason.EXTREME_ASPECT),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_each_limit_holds_for_each_format(kind: str, limits: LimitsConfig, reason: Reason) -> None:
    content = encoded(Image.fromarray(GREY), kind)
    with pytest.raises(ImageRefusedError) as rejection:
        read_bytes(content, "x", limits)
    assert rejection.value.reason is reason


def test_limits_are_inclusive() -> None:
    limits = LimitsConfig(
        max_pixels=HEIGHT * WIDTH, max_side=HEIGHT, min_side=WIDTH, max_aspect=HEIGHT / WIDTH
    )
    read_bytes(encoded(Image.fromarray(GREY), "PNG"), "x", limits)


def test_more_pixels_than_pillow_allows_pass_if_our_limits_do() -> None:
    rows = np.zeros((9500, 9500), dtype=np.uint8)
    rows[0, 0] = 1
    content = encoded(Image.fromarray(rows), "PNG", compress_level=1)
    image = read_bytes(content, "x", LimitsConfig(max_pixels=100_000_000))
    assert image.pixels.shape == (9500, 9500)


def test_threads_share_nothing() -> None:
    # A TIFF with an absurd tag makes Pillow warn; filters must be as before afterwards.
    content = encoded(Image.fromarray(GREY), "PNG")
    expected = pixels(content)
    before = list(warnings.filters)
    show = warnings.showwarning
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(pixels(content), expected)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before
    assert warnings.showwarning is show


def test_mutated_files_never_raise_anything_else() -> None:
    contents = [
        encoded(Image.fromarray(colour()), "JPEG"),
        encoded(Image.fromarray(GREY), "JPEG", progressive=True),
        encoded(Image.fromarray(GREY), "PNG"),
        encoded(Image.fromarray(colour()), "TIFF", compression="tiff_lzw"),
        tiff(DEEP),
        encoded(Image.fromarray(colour()), "BMP"),
        encoded(Image.fromarray(colour()), "WEBP"),
    ]
    rng = np.random.default_rng(0)
    outcomes = set()
    for content in contents:
        for _ in range(40):
            mutated = bytearray(content)
            for position in rng.integers(0, min(len(content), 400), size=4):
                mutated[position] = rng.integers(256)
            try:
                outcomes.add(read_bytes(bytes(mutated), "x").format)
            except ImageRefusedError as rejection:
                outcomes.add(rejection.reason.value)
    assert {"corrupt", "truncated"} <= outcomes


def test_big_tiff() -> None:
    content = encoded(Image.fromarray(DEEP), "TIFF", big_tiff=True)
    assert content[2] == 43
    np.testing.assert_allclose(pixels(content), DEEP / 65535, atol=1e-6)


def test_mutated_tiff_files_never_raise_anything_else() -> None:
    contents = [
        tiff(DEEP.astype(np.uint32) * 9, order=">"),
        tiff(DEEP.astype(np.float32), sample_format=3, deflate=True),
        tiff((DEEP >> 9).astype(np.int8), sample_format=2),
    ]
    rng = np.random.default_rng(0)
    outcomes = set()
    for content in contents:
        for _ in range(60):
            mutated = bytearray(content)
            for position in rng.integers(0, 200, size=3):
                mutated[position] = rng.integers(256)
            try:
                outcomes.add(read_bytes(bytes(mutated), "x").format)
            except ImageRefusedError as rejection:
                outcomes.add(rejection.reason.value)
    assert {"tiff", "corrupt"} <= outcomes
