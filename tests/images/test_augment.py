"""Each change does what its name says; views are fixed by seed, content and index alone."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.config import AugmentConfig
from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.images.augment import ERASED_AREA, augment, view, view_fingerprint

OFF = AugmentConfig(
    rotation=0, shift=0, zoom=0, crop=0, flip=0, brightness=0, contrast=0, gamma=0, erasing=0
)
SHA = "ab" * 32


def only(**switch: float) -> AugmentConfig:
    return dataclasses.replace(OFF, **switch)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def texture(height: int = 96, width: int = 96) -> np.ndarray:
    noise = rng(7).random((height, width), dtype=np.float32)
    return (0.25 + 0.5 * noise).astype(np.float32)


def blob(size: int = 101, sigma: float = 8.0) -> np.ndarray:
    """A bright spot in the centre on black, so that filled edges do not change its moments."""
    x = np.arange(size, dtype=np.float32) - (size - 1) / 2
    row = np.exp(-((x / sigma) ** 2) / 2)
    return np.outer(row, row).astype(np.float32)


def centroid(image: np.ndarray) -> tuple[float, float]:
    rows, columns = np.indices(image.shape)
    total = image.sum(dtype=np.float64)
    return float((columns * image).sum() / total), float((rows * image).sum() / total)


def bar(size: int = 129) -> np.ndarray:
    offset = np.arange(size, dtype=np.float32) - (size - 1) / 2
    return np.outer(np.exp(-((offset / 3) ** 2)), np.exp(-((offset / 25) ** 4))).astype(np.float32)


def angle_of(image: np.ndarray) -> float:
    """Degrees of the long axis by second moments, positive anticlockwise as seen."""
    rows, columns = np.indices(image.shape)
    x, y = columns - centroid(image)[0], rows - centroid(image)[1]
    xx, yy, xy = ((image * product).sum() for product in (x * x, y * y, x * y))
    return -math.degrees(0.5 * math.atan2(2 * xy, xx - yy))


def test_all_off_gives_an_equal_copy() -> None:
    image = texture()
    result = augment(image, OFF, rng())
    assert np.array_equal(result, image)
    assert result is not image


def test_same_generator_state_same_pixels() -> None:
    image = texture()
    assert np.array_equal(
        augment(image, AugmentConfig(), rng(3)), augment(image, AugmentConfig(), rng(3))
    )
    assert not np.array_equal(
        augment(image, AugmentConfig(), rng(3)), augment(image, AugmentConfig(), rng(4))
    )


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    seed=st.integers(0, 2**32),
    strength=st.floats(0, 1),
)
def test_shape_type_and_range_hold(height: int, width: int, seed: int, strength: float) -> None:
    config = AugmentConfig(
        rotation=180 * strength,
        shift=strength,
        zoom=strength,
        crop=0.9 * strength,
        flip=strength,
        brightness=strength,
        contrast=3 * strength,
        gamma=3 * strength,
        erasing=strength,
    )
    image = rng(seed).random((height, width), dtype=np.float32)
    before = image.copy()
    result = augment(image, config, rng(seed))
    assert result.shape == (height, width)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.isfinite(result).all()
    assert np.array_equal(image, before)


def test_rotation_turns_a_bar_within_its_range_both_ways() -> None:
    assert abs(angle_of(bar())) < 1e-6
    angles = [angle_of(augment(bar(), only(rotation=10), rng(seed))) for seed in range(40)]
    assert max(map(abs, angles)) < 10.1
    assert min(angles) < -5
    assert max(angles) > 5


def test_shift_moves_the_centroid_and_nothing_else() -> None:
    image = blob()
    moves = []
    for seed in range(40):
        result = augment(image, only(shift=0.1), rng(seed))
        x, y = centroid(result)
        moves.append((x - 50, y - 50))
        assert result.sum() == pytest.approx(image.sum(), rel=1e-3)
    for axis in (0, 1):
        along = [move[axis] for move in moves]
        assert max(map(abs, along)) <= 10.11
        assert min(along) < -5
        assert max(along) > 5
    assert abs(np.corrcoef(np.array(moves).T)[0, 1]) < 0.5


def test_zoom_scales_about_the_centre() -> None:
    image = blob()
    factors = []
    for seed in range(40):
        result = augment(image, only(zoom=0.3), rng(seed))
        assert centroid(result) == pytest.approx((50, 50), abs=1e-3)
        factors.append(math.sqrt(float(result.sum() / image.sum())))
    assert math.exp(-0.3) - 0.01 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= math.exp(0.3) + 0.01


def test_crop_shows_a_part_enlarged() -> None:
    """On a ramp the values shown are the columns that were kept."""
    ramp = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (200, 1))
    kept, starts = [], []
    for seed in range(60):
        result = augment(ramp, only(crop=0.36), rng(seed))
        kept.append(float(result[100, -1] - result[100, 0]))
        starts.append(float(result[100, 0]))
    assert 0.79 < min(kept) < 0.85
    assert 0.95 < max(kept) <= 1
    assert max(starts) > 0.1


def test_flip_mirrors_exactly() -> None:
    image = texture(80, 61)
    assert np.array_equal(augment(image, only(flip=1), rng()), image[:, ::-1])
    flipped = sum(
        np.array_equal(augment(image, only(flip=0.5), rng(seed)), image[:, ::-1])
        for seed in range(100)
    )
    assert 30 < flipped < 70


def test_edges_are_black_or_repeated() -> None:
    image = np.full((64, 64), 0.5, dtype=np.float32)
    results = [augment(image, only(rotation=40), rng(seed)) for seed in range(40)]
    black = [bool((result == 0).any()) for result in results]
    assert 5 < sum(black) < 35
    for result, is_black in zip(results, black, strict=True):
        assert is_black or np.allclose(result, 0.5)


def test_brightness_adds_one_number() -> None:
    image = texture()
    added = []
    for seed in range(40):
        change = augment(image, only(brightness=0.2), rng(seed)) - image
        assert np.ptp(change) < 1e-6
        added.append(float(change.mean()))
    assert -0.2 <= min(added) < -0.1
    assert 0.1 < max(added) <= 0.2


def test_contrast_scales_about_the_mean() -> None:
    image = texture()
    factors = []
    for seed in range(40):
        result = augment(image, only(contrast=0.3), rng(seed))
        assert result.mean() == pytest.approx(image.mean(), abs=1e-5)
        factors.append(float(result.std() / image.std()))
    assert math.exp(-0.3) - 1e-3 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= math.exp(0.3) + 1e-3


def test_gamma_is_one_exponent() -> None:
    image = texture()
    exponents = []
    for seed in range(40):
        exponent = np.log(augment(image, only(gamma=0.3), rng(seed))) / np.log(image)
        assert np.ptp(exponent) < 1e-3
        exponents.append(float(exponent.mean()))
    assert math.exp(-0.3) - 1e-3 <= min(exponents) < 0.9
    assert 1.1 < max(exponents) <= math.exp(0.3) + 1e-3


def test_erasing_fills_one_rectangle_with_one_grey() -> None:
    image = texture(120, 90)
    shares = []
    for seed in range(60):
        result = augment(image, only(erasing=1), rng(seed))
        rows, columns = np.nonzero(result != image)
        box = result[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert np.ptp(box) == 0
        assert len(rows) >= 0.99 * box.size  # a pixel may have had that grey before
        shares.append(box.size / image.size)
    assert ERASED_AREA[0] * 0.9 <= min(shares) < 0.06
    assert 0.15 < max(shares) <= ERASED_AREA[1] * 1.05


def test_erasing_happens_with_its_probability() -> None:
    image = texture()
    erased = [
        not np.array_equal(augment(image, only(erasing=0.25), rng(seed)), image)
        for seed in range(200)
    ]
    assert 25 < sum(erased) < 80


def test_turning_one_change_off_leaves_the_others() -> None:
    both = augment(blob(), only(shift=0.1, erasing=0.0, gamma=0.0), rng(5))
    config = only(shift=0.1, gamma=0.4)
    with_gamma = augment(blob(), config, rng(5))
    bright = both > 0.05
    exponent = np.log(with_gamma[bright]) / np.log(both[bright])
    assert np.ptp(exponent[both[bright] < 0.9]) < 1e-3


def test_view_zero_is_the_image_itself() -> None:
    image = texture()
    assert view(image, AugmentConfig(), 1, SHA, 0) is image


def test_views_do_not_depend_on_order() -> None:
    image = texture()
    forwards = [view(image, AugmentConfig(), 1, SHA, index) for index in range(5)]
    backwards = [view(image, AugmentConfig(), 1, SHA, index) for index in reversed(range(5))]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert np.array_equal(one, other)


def test_views_depend_on_seed_content_and_index() -> None:
    image = texture()
    base = view(image, AugmentConfig(), 1, SHA, 1)
    for seed, sha, index in ((2, SHA, 1), (1, "cd" * 32, 1), (1, SHA, 2)):
        assert not np.array_equal(base, view(image, AugmentConfig(), seed, sha, index))


def test_view_is_the_same_in_another_process() -> None:
    """Python's own `hash` differs by process; a view must not depend on it."""
    code = (
        "import numpy as np, hashlib\n"
        "from pneumoscope.config import AugmentConfig\n"
        "from pneumoscope.images.augment import view, view_fingerprint\n"
        "image = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)\n"
        f"pixels = view(image, AugmentConfig(), 4, {SHA!r}, 3)\n"
        "print(hashlib.sha256(pixels.tobytes()).hexdigest(),"
        " view_fingerprint(AugmentConfig(), 4, 3))\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_fingerprints() -> None:
    config = AugmentConfig()
    assert view_fingerprint(config, 5, 0) == "plain"
    prints = {
        view_fingerprint(config, 0, 1),
        view_fingerprint(config, 1, 1),
        view_fingerprint(config, 0, 2),
        view_fingerprint(dataclasses.replace(config, zoom=0.2), 0, 1),
    }
    assert len(prints) == 4
    assert view_fingerprint(AugmentConfig(), 0, 1) in prints


@pytest.mark.parametrize(
    ("name", "value"), [("crop", 1.0), ("flip", 1.5), ("rotation", -3.0), ("gamma", math.nan)]
)
def test_invalid_ranges_are_rejected_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        augment(texture(), only(**{name: value}), rng())


def test_negative_view_is_rejected() -> None:
    with pytest.raises(UsageError, match="-1"):
        view(texture(), AugmentConfig(), 0, SHA, -1)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 4, 3), dtype=np.float32)])
def test_wrong_arrays_are_rejected(wrong: np.ndarray) -> None:
    with pytest.raises(PneumoscopeError, match="wanted float32"):
        augment(wrong, AugmentConfig(), rng())
