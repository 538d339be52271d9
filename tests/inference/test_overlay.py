"""Overlays show the map where it belongs, on any shape of film."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.inference.overlay import film_png, fit_map, heatmap_name, overlay_png

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
    assert picture.shape == (1024, 512, 3)
    assert picture[5, 5, 0] > picture[5, 5, 2] + 30
    assert abs(int(picture[-5, -5, 0]) - int(picture[-5, -5, 2])) <= 1
    assert Image.open(io.BytesIO(film_png(grey))).size == (512, 1024)


def test_heatmap_names_differ_and_stay_short() -> None:
    assert heatmap_name("a/x.png") != heatmap_name("b/x.png")
    assert heatmap_name("a/x.png").startswith("x-")
    assert len(heatmap_name("a/" + "x" * 300 + ".png")) < 100
    assert len(heatmap_name("a/" + "𠮷" * 60 + ".png").encode()) < 255
