"""Perturbations: each does what its name says, on any size, the same every time."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.images import perturbation_sweeps
from pneumoscope.images.perturbation_sweeps import (
    PERTURBATIONS,
    Perturbation,
    blur,
    border,
    brightness,
    contrast,
    crop,
    gamma,
    jpeg,
    noise,
    rotation,
)
from pneumoscope.images.phantom import draw

NAMES = (
    *("contrast_half", "contrast_double", "gamma_06", "gamma_16", "brighter_40", "darker_40"),
    *("crop_10", "border_10", "rotation_10", "blur_1", "noise_5", "jpeg_30"),
)
SHAPES = ((1, 1), (1, 9), (2, 2), (7, 3), (33, 64), (120, 81))


def xray(height: int = 96, width: int = 96) -> np.ndarray:
    grey = Image.fromarray(draw(1, "p", 1, 1, size=96).pixels)
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def ramp(height: int, width: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """A ramp along the rows, for which the effect of geometry can be computed by hand."""
    centres = (np.arange(width) + 0.5) / width
    return np.tile(low + (high - low) * centres, (height, 1)).astype(np.float32)


def named(name: str) -> Perturbation:
    return next(p for p in PERTURBATIONS if p.name == name)


def test_the_table_of_perturbations_is_fixed() -> None:
    assert tuple(p.name for p in PERTURBATIONS) == NAMES
    assert len({p.title for p in PERTURBATIONS}) == len(NAMES)
    assert all(name.isidentifier() for name in NAMES)
    assert [(p.change, p.strength) for p in PERTURBATIONS] == [
        (contrast, 0.5),
        (contrast, 2.0),
        (gamma, 0.6),
        (gamma, 1.6),
        (brightness, 40 / 255),
        (brightness, -40 / 255),
        (crop, 0.10),
        (border, 0.10),
        (rotation, 10.0),
        (blur, 0.01),
        (noise, 0.05),
        (jpeg, 30.0),
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_same_shape_type_and_range_whatever_the_size(
    perturbation: Perturbation, shape: tuple[int, int]
) -> None:
    for image in (xray(*shape), np.zeros(shape, np.float32), np.ones(shape, np.float32)):
        before = image.copy()
        changed = perturbation.apply(image, seed=3)
        assert changed.shape == shape
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not np.shares_memory(changed, image)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_each_changes_an_image_reproducibly(perturbation: Perturbation) -> None:
    image = xray()
    changed = perturbation.apply(image, seed=3)
    assert np.abs(changed - image).mean() > 1e-3
    np.testing.assert_array_equal(changed, perturbation.apply(image.copy(order="F"), seed=3))


def test_each_survives_pickling() -> None:  # a sweep may go to other processes
    assert pickle.loads(pickle.dumps(PERTURBATIONS)) == PERTURBATIONS  # noqa: S301


def test_replace_gives_another_strength() -> None:
    image = xray()
    stronger = replace(named("rotation_10"), strength=20.0)
    np.testing.assert_array_equal(stronger.apply(image), rotation(image, 20.0))


def test_contrast_scales_about_the_mean_and_clips() -> None:
    image = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(contrast(image, 0.5), [[0.35, 0.45], [0.55, 0.65]], atol=1e-6)
    np.testing.assert_allclose(contrast(image, 2.0), [[0.0, 0.3], [0.7, 1.0]], atol=1e-6)
    np.testing.assert_allclose(contrast(image, 0.0), np.full((2, 2), 0.5), atol=1e-6)


def test_gamma_is_the_exponent_so_below_one_brightens() -> None:
    image = np.array([[0.0, 0.25, 1.0]], np.float32)
    np.testing.assert_allclose(gamma(image, 0.6), [[0.0, 0.25**0.6, 1.0]], atol=1e-6)
    assert gamma(image, 0.6)[0, 1] > 0.25 > gamma(image, 1.6)[0, 1]


def test_brightness_adds_and_clips() -> None:
    image = np.array([[0.0, 100 / 255, 1.0]], np.float32)
    wanted = np.array([[40, 140, 255]]) / 255
    np.testing.assert_allclose(named("brighter_40").apply(image), wanted, atol=1e-6)
    wanted = np.array([[0, 60, 215]]) / 255
    np.testing.assert_allclose(named("darker_40").apply(image), wanted, atol=1e-6)


def test_crop_shows_the_middle_at_full_size() -> None:
    cropped = crop(ramp(50, 200), 0.10)
    # Linear, so bilinear interpolation is exact except beside the edges.
    np.testing.assert_allclose(cropped[:, 2:-2], ramp(50, 200, 0.1, 0.9)[:, 2:-2], atol=1e-5)
    downwards = crop(np.ascontiguousarray(ramp(200, 200).T), 0.10)
    np.testing.assert_allclose(downwards[2:-2], ramp(200, 200, 0.1, 0.9).T[2:-2], atol=1e-5)


def test_crop_cuts_all_four_sides() -> None:
    image = np.ones((100, 60), np.float32)
    image[10:90, 6:54] = 0.0
    np.testing.assert_array_equal(crop(image, 0.10), np.zeros((100, 60)))
    assert crop(image, 0.08).max() == 1.0  # not a pixel more


def test_border_is_black_on_all_four_sides_and_the_image_is_complete_inside() -> None:
    framed = border(np.ones((120, 240), np.float32), 0.10)
    wanted = np.zeros((120, 240))
    wanted[10:110, 20:220] = 1.0  # 12 and 24 added to each side, all shrunk by 1.2
    np.testing.assert_allclose(framed, wanted, atol=1e-6)
    inside = border(ramp(120, 240), 0.10)[10:110, 20:220]
    np.testing.assert_allclose(inside, ramp(100, 200), atol=1e-3)


def test_rotation_turns_anticlockwise_and_leaves_black_corners() -> None:
    image = np.full((101, 101), 0.5, np.float32)
    image[50, 90] = 1.0
    turned = rotation(image, 10.0)
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    angle = np.deg2rad(10)
    assert abs(row - (50 - 40 * np.sin(angle))) <= 1
    assert abs(column - (50 + 40 * np.cos(angle))) <= 1
    assert [turned[k, m] for k in (0, -1) for m in (0, -1)] == [0.0] * 4
    assert turned[50, 50] == pytest.approx(0.5)
    np.testing.assert_array_equal(rotation(image, 0.0), image)


@pytest.mark.parametrize("shape", [(40, 70), (5, 200), (130, 1)], ids=str)
def test_blur_is_scipys_gaussian(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    for share in (0.01, 0.05, 0.25):
        deviation = share * (shape[0] + shape[1]) / 2
        # Both cut the kernel at 4 deviations, rounded up here and to the nearest there.
        reference = gaussian_filter(
            image.astype(np.float64), deviation, mode="nearest", radius=int(np.ceil(4 * deviation))
        )
        np.testing.assert_allclose(blur(image, share), reference, atol=1e-5)
    np.testing.assert_array_equal(blur(image, 0.0), image)


def test_noise_has_its_deviation_and_a_pattern_per_image_and_seed() -> None:
    image = np.full((200, 200), 0.5, np.float32)
    added = noise(image, 0.05, seed=1) - image
    assert added.std() == pytest.approx(0.05, rel=0.02)
    assert abs(added.mean()) < 0.002
    other = image.copy()
    other[0, 0] = 0.4
    others = (noise(image, 0.05, seed=2) - image, noise(other, 0.05, seed=1) - other)
    for pattern in others:
        assert abs(np.corrcoef(added.ravel(), pattern.ravel())[0, 1]) < 0.05
    twice = noise(image, 0.10, seed=1) - image
    np.testing.assert_allclose(twice, 2 * added, atol=1e-6)


def test_noise_of_the_table_follows_the_seed_that_is_passed() -> None:
    image = xray()
    perturbation = named("noise_5")
    np.testing.assert_array_equal(perturbation.apply(image, 5), noise(image, 0.05, 5))
    assert not np.array_equal(perturbation.apply(image, 5), perturbation.apply(image, 6))


def test_noise_is_the_same_in_another_process() -> None:
    code = (
        "import numpy as np, hashlib\n"
        "from pneumoscope.images.perturbation_sweeps import noise\n"
        "image = np.full((8, 8), 0.5, np.float32)\n"
        "print(hashlib.sha256(noise(image, 0.05, 7)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = noise(np.full((8, 8), 0.5, np.float32), 0.05, 7)
    assert done.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_jpeg_equals_a_file_of_that_quality() -> None:
    image = xray(61, 83)
    stream = io.BytesIO()
    eight_bits = np.rint(image * 255).astype(np.uint8)
    Image.fromarray(eight_bits).save(stream, "JPEG", quality=30)
    with Image.open(stream) as stored:
        wanted = np.asarray(stored) / 255
    np.testing.assert_allclose(jpeg(image, 30), wanted, atol=1e-6)
    losses = [np.abs(jpeg(image, quality) - image).mean() for quality in (90, 30, 5)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize(
    ("change", "strength"),
    [
        (contrast, -0.1),
        (contrast, float("inf")),
        (gamma, 0.0),
        (brightness, 40.0),
        (crop, 0.5),
        (border, -0.1),
        (rotation, 181.0),
        (blur, -1.0),
        (noise, float("nan")),
        (jpeg, 0),
        (jpeg, 101),
    ],
)
def test_impossible_strengths_are_rejected_with_the_way_out(
    change: Callable[..., np.ndarray], strength: float
) -> None:
    with pytest.raises(UsageError, match=rf"{change.__name__}: \w+ is .*; expected .*Give another"):
        change(xray(), strength)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4), np.float32),
    ],
    ids=["uint8", "rgb", "empty"],
)
@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda p: p.name)
def test_arrays_other_than_a_grey_image_are_rejected(
    perturbation: Perturbation, image: np.ndarray
) -> None:
    with pytest.raises(PneumoscopeError, match=perturbation.change.__name__ + ": found an array"):
        perturbation.apply(image)


def test_importing_it_loads_no_network() -> None:
    code = (
        f"import sys, {perturbation_sweeps.__name__}\n"
        "print(sorted({'keras', 'tensorflow', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
