"""Overlays show the map in the right place, on images of any shape."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.inference import overlay
from pneumoscope.inference.overlay import (
    encode_indexed_png,
    encode_png,
    fit_map,
    heatmap_name,
    image_png,
    indexed_overlay_png,
    overlay_png,
    shrunk,
    thinned,
)

CORNER = np.zeros((7, 7), np.float32)
CORNER[0, 0] = 3.0


@pytest.mark.parametrize("shape", [(70, 140), (140, 70), (64, 64)])
def test_stretched_maps_cover_the_image(shape: tuple[int, int]) -> None:
    heat = fit_map(CORNER, shape, PreprocessConfig())
    assert heat.shape == shape
    assert heat.max() == pytest.approx(1.0, abs=0.05)
    assert heat[0, 0] > 0.9
    assert heat[-1, -1] == 0.0


def test_padded_maps_lose_their_padding() -> None:
    cam = np.zeros((8, 8), np.float32)
    cam[2:6, 0:4] = 1.0  # in a 2:1 image padded to a square, rows 2 to 5 are the image
    heat = fit_map(cam, (50, 100), PreprocessConfig(fit="pad"))
    assert heat[15:35, :40].min() > 0.9
    assert heat[:, 60:].max() < 0.1


def test_padding_follows_the_proportions_that_preprocessing_got() -> None:
    # Pixels twice as high as wide: 50 stored rows were read as 100, and the image is a square.
    cam = np.random.default_rng(3).random((8, 8)).astype(np.float32)
    config = PreprocessConfig(fit="pad")
    found = fit_map(cam, (50, 100), config, read=(100, 100))
    np.testing.assert_array_equal(found, fit_map(cam, (50, 100), PreprocessConfig()))
    as_stored = fit_map(cam, (50, 100), config)
    np.testing.assert_array_equal(as_stored, fit_map(cam, (50, 100), config, read=(50, 100)))
    assert np.abs(found - as_stored).max() > 0.1


def test_a_map_of_zeros_leaves_the_image_grey() -> None:
    grey = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    png = overlay_png(grey, np.zeros((7, 7), np.float32), PreprocessConfig())
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert (picture[..., 0] == picture[..., 2]).all()
    assert np.abs(picture[..., 0] / 255 - grey).max() < 0.005


def test_colours_mark_the_peak_and_large_images_shrink() -> None:
    grey = np.full((3000, 1500), 0.5, np.float32)
    picture = np.asarray(Image.open(io.BytesIO(overlay_png(grey, CORNER, PreprocessConfig()))))
    assert picture.shape == (600, 300, 3)
    assert picture[5, 5, 0] > picture[5, 5, 2] + 30
    assert abs(int(picture[-5, -5, 0]) - int(picture[-5, -5, 2])) <= 1
    assert Image.open(io.BytesIO(image_png(grey))).size == (300, 600)


def test_an_overlay_is_image_and_colour_by_the_heat() -> None:
    """The same blend, computed for each pixel in floating point."""
    grey = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    cam = np.random.default_rng(1).random((5, 5)).astype(np.float32)
    picture = np.asarray(Image.open(io.BytesIO(overlay_png(grey, cam, PreprocessConfig()))))
    heat = fit_map(cam, grey.shape, PreprocessConfig())
    steps = np.linspace(0, 1, len(overlay._RAMP))
    for channel in range(3):
        opacity = overlay._OPACITY * heat
        colour = np.interp(heat, steps, overlay._RAMP[:, channel])
        wanted = 255 * (grey * (1 - opacity) + colour * opacity)
        np.testing.assert_allclose(picture[..., channel], wanted, atol=1.5)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_map_is_resized_as_pillow_does(fit: Literal["stretch", "pad"]) -> None:
    cam = np.random.default_rng(3).random((7, 7)).astype(np.float32)
    margin = 7 * (1 - 60 / 90) / 2 if fit == "pad" else 0.0
    whole = Image.fromarray(cam / cam.max())
    box = (margin, 0.0, 7 - margin, 7.0)
    wanted = np.asarray(whole.resize((60, 90), Image.Resampling.BICUBIC, box=box)).clip(0, 1)
    found = fit_map(cam, (90, 60), PreprocessConfig(fit=fit))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_256_colours_look_like_all_of_them() -> None:
    """Dithering preserves local means."""
    generator = np.random.default_rng(4)
    coarse = Image.fromarray(generator.random((6, 5)).astype(np.float32))
    grey = np.asarray(coarse.resize((160, 200), Image.Resampling.BICUBIC)).clip(0, 1)
    cam = generator.random((3, 3)).astype(np.float32)
    few, all_of_them = (
        np.asarray(Image.open(io.BytesIO(made(grey, cam, PreprocessConfig()))).convert("RGB"))
        for made in (indexed_overlay_png, overlay_png)
    )
    means = [x.reshape(20, 10, 16, 10, 3).mean((1, 3)) for x in (few, all_of_them)]
    assert np.abs(means[0] - means[1]).max() < 8
    assert Image.open(io.BytesIO(indexed_overlay_png(grey, cam, PreprocessConfig()))).mode == "P"


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((1200, 900), (600, 450)), ((1201, 900), (400, 300)), ((2, 6000), (1, 600)), ((9, 9), (9, 9))],
)
def test_large_images_become_means_of_their_pixels(
    shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(5).random(shape, np.float32)
    small = shrunk(pixels)
    assert small.shape == wanted
    k = shape[1] // wanted[1]
    if shape[0] >= k:
        assert small[-1, 0] == pytest.approx(pixels[: k * wanted[0]][-k:, :k].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((960, 700), (480, 350)), ((1250, 1600), (312, 400)), ((2, 4800), (1, 480)), ((9, 9), (9, 9))],
)
def test_images_in_folders_look_like_the_means_of_their_pixels(
    shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    pixels = (0.5 + 0.25 * np.sin(y / 40) + 0.25 * np.cos(x / 30)).astype(np.float32)
    small = thinned(pixels)
    assert small.shape == wanted
    assert small.min() >= 0
    assert small.max() <= 1
    if min(shape) > 9:
        assert np.abs(small - shrunk(pixels, 480)).max() < 0.005
    if max(shape) == 960:
        np.testing.assert_allclose(small, shrunk(pixels, 480), atol=1e-6)  # k is 2: all are taken


def test_colours_of_a_palette_read_back_as_they_were() -> None:
    generator = np.random.default_rng(6)
    palette = generator.integers(0, 256, (200, 3), dtype=np.uint8)
    indices = generator.integers(0, 200, (300, 301), dtype=np.uint8)
    png = encode_indexed_png(indices, palette)
    Image.open(io.BytesIO(png)).verify()
    read = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    np.testing.assert_array_equal(read, palette[indices])


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 48, 3), (1, 5, 3)])
def test_a_png_reads_back_as_it_was(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    found = Image.open(io.BytesIO(encode_png(image)))
    found.verify()  # checksums
    read = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    np.testing.assert_array_equal(read, image)


def test_heatmap_names_differ_and_stay_short() -> None:
    assert heatmap_name("a/x.png") != heatmap_name("b/x.png")
    assert heatmap_name("a/x.png").startswith("x-")
    assert len(heatmap_name("a/" + "x" * 300 + ".png")) < 100
    assert len(heatmap_name("a/" + "𠮷" * 60 + ".png").encode()) < 255
