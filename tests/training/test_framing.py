"""The field cut anew: the lungs fill it by the same shares whatever they filled before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.training.framing import reframe
from pneumoscope.training.network import build_backbone
from pneumoscope.training.whole import build_curriculum
from support.small_network import small_network
from training.test_surroundings import squares_with_lungs
from training.test_whole import CONFIG, SIZES, squares_of

COUNT, SIDE = 300, 100


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def lungs_of(first: int, last: int) -> np.ndarray:
    """Lungs that lie from one row and column to another, in a field of 100."""
    codes = np.zeros((COUNT, SIDE, SIDE), np.uint8)
    codes[:, first:last, first:last] = 3
    return codes


def filled(first: int, last: int, chance: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Share of the field that lungs fill afterwards, in height and width: (n,) each."""
    codes = lungs_of(first, last)
    shown = reframe(80 * codes, codes, chance, np.random.default_rng(1)) > 120
    return shown.any(2).mean(1), shown.any(1).mean(1)


@pytest.mark.parametrize(("first", "last"), [(20, 75), (30, 80), (2, 60), (5, 55)])
def test_small_lungs_are_shown_as_large_as_any(first: int, last: int) -> None:
    height, width = filled(first, last)
    for found in (height, width):
        assert found.min() == pytest.approx(0.6, abs=0.03)
        assert found.max() == 1
        assert found.mean() == pytest.approx(0.84, abs=0.02)  # of 0.6 to 1.1, at most 1
        assert (found == 1).mean() == pytest.approx(0.2, abs=0.07)
    assert abs(np.corrcoef(height, width)[0, 1]) < 0.2


def test_large_lungs_and_small_ones_fill_the_upper_shares_as_often() -> None:
    large, small = (filled(*extent)[0] for extent in ((10, 90), (25, 75)))
    assert large.min() == pytest.approx(0.8, abs=0.01)  # nothing comes from beyond the field
    for least in (0.85, 0.9, 0.95):
        assert (large > least).mean() == pytest.approx((small > least).mean(), abs=0.06)


def test_the_new_field_lies_within_the_old_one_and_the_lungs_keep_their_place() -> None:
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8), (COUNT, SIDE, SIDE))
    codes = lungs_of(20, 70)
    found = reframe(ramp, codes, 1.0, np.random.default_rng(2))
    first, last = found[:, 0, 0].astype(int), found[:, 0, -1].astype(int)
    assert (np.diff(found[:, 0].astype(int)) >= 0).all()
    length = last - first + 1
    whole = length > 52  # lungs and more
    assert (first[whole] <= 20).all()
    assert (last[whole] >= 69).all()
    cut = length < 48
    assert (first[cut] >= 20).all()
    assert (last[cut] <= 69).all()
    assert np.ptp(first[whole]) > 10  # anywhere about them


def test_unknown_lungs_are_taken_to_lie_where_most_do_and_as_many_are_cut_as_asked() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, SIDE, SIDE), np.uint8)
    before = pixels.copy()
    found = reframe(pixels, np.zeros_like(pixels), 0.5, np.random.default_rng(4))
    np.testing.assert_array_equal(pixels, before)
    # One direction or the other is cut in 1 - 0.36² of the halves.
    assert (found != pixels).any((1, 2)).mean() == pytest.approx(0.435, abs=0.08)
    np.testing.assert_array_equal(
        reframe(pixels, np.zeros_like(pixels), 0.0, np.random.default_rng(4)), pixels
    )


def test_training_cuts_fields_by_each_images_own_lungs(tmp_path: Path) -> None:
    train, val = squares_with_lungs(tmp_path / "train", 24), squares_of(tmp_path / "val", 70, 1)
    lessons = [
        build_curriculum(build_backbone(None), (train, val), config, SIZES, {}).lessons[1]
        for config in (CONFIG, replace(CONFIG, distort=replace(CONFIG.distort, reframe=1.0)))
    ]
    plain, cut = ([inputs for inputs, _ in lesson.batches(1)] for lesson in lessons)
    assert any((a[0] != b[0]).any() for a, b in zip(plain, cut, strict=True))
