"""Overlays show the map where it belongs, on any shape of film."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.inference import overlay
from pneumoscope.inference.overlay import film_png, fit_map, heatmap_name, overlay_png
from pneumoscope.inference.png import encode_png

CORNER = np.zeros((7, 7), np.float32)
CORNER[0, 0] = 3.0


@pytest.mark.parametrize("shape", [(70, 140), (140, 70), (64, 64)])
def test_stretched_maps_cover_the_film(shape: tuple[int, int]) -> None:
    heat = fit_map(CORNER, shape, PreprocessConfig())
    assert heat.shape == shape
    assert heat.max() == pytest.approx(1.0, abs=0.05)
    assert heat[0, 0] > 0.9
    assert heat[-1, -1] == 0.0


def test_padded_maps_lose_their_padding() -> None:
    cam = np.zeros((8, 8), np.float32)
    cam[2:6, 0:4] = 1.0  # in a 2:1 film padded to a square, rows 2 to 5 are the film
    heat = fit_map(cam, (50, 100), PreprocessConfig(fit="pad"))
    assert heat[15:35, :40].min() > 0.9
    assert heat[:, 60:].max() < 0.1


def test_a_map_of_zeros_leaves_the_film_grey() -> None:
    grey = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    png = overlay_png(grey, np.zeros((7, 7), np.float32), PreprocessConfig())
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert (picture[..., 0] == picture[..., 2]).all()
    assert np.abs(picture[..., 0] / 255 - grey).max() < 0.005


def test_colours_mark_the_peak_and_large_films_shrink() -> None:
    grey = np.full((3000, 1500), 0.5, np.float32)
    picture = np.asarray(Image.open(io.BytesIO(overlay_png(grey, CORNER, PreprocessConfig()))))
    assert picture.shape == (512, 256, 3)
    assert picture[5, 5, 0] > picture[5, 5, 2] + 30
    assert abs(int(picture[-5, -5, 0]) - int(picture[-5, -5, 2])) <= 1
    assert Image.open(io.BytesIO(film_png(grey))).size == (256, 512)


def test_an_overlay_is_film_and_colour_by_the_heat() -> None:
    """Worked out for each pixel in floating point, as the table of colours stands for."""
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
