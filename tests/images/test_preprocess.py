"""Preprocessing: shapes, ranges, exactness of batches, and the settings stored with the model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import UsageError
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN, Preprocessor
from support.image_files import Array


def preprocessor(**settings: Any) -> Preprocessor:
    return Preprocessor(PreprocessConfig(**settings))


def picture(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("shape", [(50, 80), (400, 300), (32, 32), (1000, 33), (1, 5)])
def test_grey_is_a_square_in_range(fit: str, shape: tuple[int, int]) -> None:
    square = preprocessor(size=64, fit=fit).grey(picture(*shape))
    assert square.shape == (64, 64)
    assert square.dtype == np.float32
    assert square.min() >= 0
    assert square.max() <= 1


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_square_of_the_right_size_is_left_as_it_is(fit: str) -> None:
    image = picture(64, 64)
    square = preprocessor(size=64, fit=fit).grey(image)
    np.testing.assert_array_equal(square, image)
    assert not np.shares_memory(square, image)


def test_halving_averages_with_the_triangle_filter() -> None:
    # Antialiased bilinear reduction by 2: weights 1, 3, 3, 1 of 8, inside the picture.
    image = picture(128, 128)
    square = preprocessor(size=64).grey(image)
    weights = np.array([1, 3, 3, 1]) / 8
    patch = image[9:13, 19:23].astype(np.float64)  # centred on output pixel (5, 10)
    assert square[5, 10] == pytest.approx(weights @ patch @ weights, abs=1e-6)


def test_values_between_grey_levels_survive() -> None:
    # An 8-bit path would round to 256 levels.
    assert len(np.unique(preprocessor(size=64).grey(picture(256, 256)))) > 1000


def test_stretch_changes_the_aspect_and_pad_keeps_it() -> None:
    image = np.ones((100, 50), np.float32)
    assert preprocessor(size=64, fit="stretch").grey(image).min() == pytest.approx(1)
    padded = preprocessor(size=64, fit="pad").grey(image)
    np.testing.assert_allclose(padded[:, 16:48], 1, atol=1e-6)
    assert not padded[:, :16].any()
    assert not padded[:, 48:].any()
    upright = preprocessor(size=64, fit="pad").grey(image.T.copy())
    np.testing.assert_array_equal(upright, padded.T)


def test_stretch_is_pillows_resize() -> None:
    image = picture(97, 61)
    expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocessor(size=64).grey(image), expected.clip(0, 1))


def test_imagenet_normalisation() -> None:
    image = picture(64, 64)
    result = preprocessor(size=64).normalise(image)
    assert result.shape == (64, 64, 3)
    assert result.dtype == np.float32
    for channel in range(3):
        expected = (image.astype(np.float64) - IMAGENET_MEAN[channel]) / IMAGENET_DEVIATION[channel]
        np.testing.assert_allclose(result[..., channel], expected, atol=1e-6)


def test_standardisation() -> None:
    result = preprocessor(size=64, normalisation="standardise").normalise(picture(64, 64))
    assert result.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert result.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


def test_standardisation_of_a_flat_image_stays_finite() -> None:
    flat = np.full((64, 64), 0.3, np.float32)
    result = preprocessor(size=64, normalisation="standardise").normalise(flat)
    np.testing.assert_allclose(result, 0, atol=1e-4)


@pytest.mark.parametrize("normalisation", ["imagenet", "standardise"])
@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_a_batch_equals_its_single_images(normalisation: str, lead: tuple[int, ...]) -> None:
    prepare = preprocessor(size=64, normalisation=normalisation)
    batch = np.random.default_rng(1).random((*lead, 64, 64), dtype=np.float32)
    result = prepare.normalise(batch)
    assert result.shape == (*lead, 64, 64, 3)
    for index in np.ndindex(*lead):
        np.testing.assert_array_equal(result[index], prepare.normalise(batch[index]))


@pytest.mark.parametrize("normalisation", ["imagenet", "standardise"])
def test_strided_squares_give_the_same(normalisation: str) -> None:
    prepare = preprocessor(size=64, normalisation=normalisation)
    image = picture(64, 128)[:, ::2]
    np.testing.assert_array_equal(prepare.normalise(image), prepare.normalise(image.copy()))


def test_call_is_grey_then_normalise() -> None:
    prepare = preprocessor(size=64, fit="pad")
    image = picture(90, 70)
    np.testing.assert_array_equal(prepare(image), prepare.normalise(prepare.grey(image)))


def test_dict_reads_back_and_is_json() -> None:
    prepare = preprocessor(size=96, fit="pad", normalisation="standardise")
    document = json.loads(json.dumps(prepare.to_dict()))
    assert Preprocessor.from_dict(document) == prepare


def test_fingerprints_differ_by_setting_and_are_stable() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"size": 225},
        {"fit": "pad"},
        {"normalisation": "standardise"},
    ]
    assert len({preprocessor(**setting).fingerprint() for setting in settings}) == 4
    assert Preprocessor().fingerprint() == preprocessor().fingerprint()
    # Changes only together with a setting or VERSION: feature caches are keyed by it.
    assert Preprocessor().fingerprint() == "937b8f9eb36a2762"


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({"version": 2}, "version 2 is not known"),
        ({"version": 0}, "this release has version 1"),
        ({"size": 0}, "size is 0"),
        ({"fit": "crop"}, "'crop'"),
        ({"normalisation": "none"}, "'none'"),
        ({"sise": 224}, "Did you mean 'size'"),
    ],
)
def test_unknown_settings_are_rejected(document: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        Preprocessor.from_dict(document, "bundle.json")


def test_direct_creation_is_checked_too() -> None:
    with pytest.raises(UsageError, match="'crop'"):
        Preprocessor(PreprocessConfig(fit="crop"))  # type: ignore[arg-type]  # refused: unknown


def test_wrong_shapes_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"\(3, 4, 5\)"):
        preprocessor().grey(np.zeros((3, 4, 5), np.float32))
    with pytest.raises(UsageError, match="squares of"):
        preprocessor().normalise(np.zeros((3, 4), np.float32))
