"""The colour measure, for every format that stores colour."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pneumoscope.images.grey import colour_of, mean_chroma
from pneumoscope.images.read import read_bytes
from support.dicom_images import colour, read
from support.image_files import xray

RED = np.zeros((80, 96, 3), np.uint8)
RED[..., 0] = 255
RED[:40] = 128


def stored(image: Image.Image, kind: str, **how: object) -> float:
    stream = BytesIO()
    image.save(stream, format=kind, **how)
    return read_bytes(stream.getvalue(), "picture").colour


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_half_a_red_image_has_half_the_colour(kind: str) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    assert stored(Image.fromarray(RED), kind, **lossless) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_palettes_and_cmyk_have_the_colour_of_rgb(mode: str) -> None:
    picture = Image.fromarray(RED).convert(mode)
    assert stored(picture, "PNG" if mode == "P" else "TIFF") == pytest.approx(0.5, abs=0.02)


def test_an_xray_stored_as_rgb_is_grey() -> None:
    grey = np.tile(np.arange(96, dtype=np.uint8), (80, 1))
    assert stored(Image.fromarray(np.stack([grey] * 3, axis=-1)), "PNG") == 0.0
    assert stored(Image.fromarray(np.stack([grey] * 3, axis=-1)), "JPEG") < 0.01
    assert stored(Image.fromarray(grey), "PNG") == 0.0
    assert stored(Image.fromarray(grey.astype(np.uint16) * 256), "PNG") == 0.0


def test_transparent_areas_count_as_black() -> None:
    clear = np.dstack([RED, np.zeros(RED.shape[:2], np.uint8)])
    clear[:, :48, 3] = 255
    assert stored(Image.fromarray(clear), "PNG") == pytest.approx(0.25, abs=0.01)


def test_the_colour_of_lab_is_in_a_and_b() -> None:
    lab = np.zeros((40, 40, 3), np.uint8)
    lab[..., 0] = 120
    assert colour_of(Image.fromarray(lab, "LAB")) == 0.0
    lab[..., 1] = 64
    assert colour_of(Image.fromarray(lab, "LAB")) == pytest.approx(0.5)


def test_dicom_in_colour_is_measured_and_grey_is_not() -> None:
    rgb = colour()
    found = read(
        xray(rgb, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0)
    )
    assert found.colour == pytest.approx(mean_chroma(rgb), abs=1e-6)
    assert found.colour > 0.2
    assert read(xray(rgb[..., 0])).colour == 0.0


def test_colour_of_deep_samples_is_relative_to_their_white() -> None:
    samples = np.zeros((10, 10, 3), np.uint16)
    samples[..., 1] = 2048
    assert mean_chroma(samples, 4095) == pytest.approx(0.5, abs=0.001)


def test_a_photograph_has_colour() -> None:
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        assert stored(Image.fromarray(photograph), "JPEG") > 0.1
