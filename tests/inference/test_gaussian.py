"""Mahalanobis distances to the nearest class, unchanged by storage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pneumoscope.inference.input_check import Gaussian, fit_gaussian
from pneumoscope.inference.weights_store import read_table, save_table


def vectors(count: int, seed: int = 0) -> np.ndarray:
    stream = np.random.default_rng(seed)
    return (stream.standard_normal((count, 6)) * [5, 3, 2, 0.5, 0.5, 0.5] + 10).astype(np.float32)


def test_with_all_components_it_is_the_mahalanobis_distance() -> None:
    seen, others = vectors(2000), vectors(50, seed=1) + 3
    inverse = np.linalg.inv(np.cov(seen.T, bias=True))
    centred = others - seen.mean(0)
    wanted = np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred))
    found = fit_gaussian(seen, 5).distances(others)
    np.testing.assert_allclose(found, wanted, rtol=0.01)


def test_what_components_leave_over_counts_by_one_deviation() -> None:
    seen = vectors(4000)
    gaussian = fit_gaussian(seen, 3)
    assert gaussian.axes.shape == (6, 3)
    np.testing.assert_allclose(gaussian.deviations, [5, 3, 2, 0.5], rtol=0.05)
    middle = gaussian.means[0]
    aside = middle + np.array([0, 0, 0, 0.5, 0.5, 0.5], np.float32)
    assert gaussian.distances(aside[None])[0] == pytest.approx(np.sqrt(3), rel=0.05)
    usual = gaussian.distances(vectors(4000, seed=2))
    assert np.square(usual).mean() == pytest.approx(6, rel=0.05)


def test_the_nearest_of_the_class_means_counts() -> None:
    seen = np.concatenate([vectors(400), vectors(400, seed=1) + 100])
    classes = np.repeat([0, 1], 400)
    apart = fit_gaussian(seen, 3, classes)
    assert apart.means.shape == (2, 6)
    between = np.full((1, 6), 60, np.float32)
    usual = np.quantile(apart.distances(seen), 0.99)
    assert apart.distances(between)[0] > 10 * usual
    assert fit_gaussian(seen, 3).distances(between)[0] < usual


def test_few_or_equal_vectors_have_a_distribution_too() -> None:
    few = fit_gaussian(vectors(9), 5)
    assert few.axes.shape == (6, 2)
    equal = fit_gaussian(np.ones((20, 6), np.float32), 3)
    assert equal.distances(np.ones((1, 6), np.float32))[0] == 0
    assert equal.distances(np.zeros((1, 6), np.float32))[0] > 1e5


def test_it_is_the_same_after_being_stored(tmp_path: Path) -> None:
    first = fit_gaussian(vectors(400), 3, np.arange(400) % 2)
    save_table(tmp_path / "t.npz", first.to_arrays("x"))
    again = Gaussian.from_arrays(read_table(tmp_path / "t.npz"), "x")
    others = vectors(30, seed=3)
    assert np.array_equal(first.distances(others), again.distances(others))


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("x.means", None, "missing"),
        ("x.axes", np.zeros((6, 4), np.float16), "wrong shapes"),
        ("x.axes", np.zeros((5, 3), np.float16), r"means \(1, 6\)"),
        ("x.means", np.full((1, 6), np.nan, np.float32), "non-finite"),
        ("x.deviations", np.array([1, 1, 0, 1], np.float32), "a deviation of 0"),
    ],
)
def test_arrays_that_can_not_be_used_are_rejected(
    part: str, value: np.ndarray | None, words: str
) -> None:
    arrays = fit_gaussian(vectors(400), 3).to_arrays("x")
    changed = {name: array for name, array in arrays.items() if name != part}
    if value is not None:
        changed[part] = value
    with pytest.raises(ValueError, match=words):
        Gaussian.from_arrays(changed, "x")
