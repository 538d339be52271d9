"""Shares with limits at the effective number of images, and differences of them."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from pneumoscope.evaluation.proportions import (
    clustered_interval,
    difference,
    effective_images,
    exact_limits,
    wilson_interval,
)
from pneumoscope.records import Estimate


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 12), (45, 50), (50, 50), (120, 300)])
def test_one_image_each_is_wilsons(hits: int, n: int) -> None:
    found = clustered_interval(np.arange(n) < hits, [f"p{k}" for k in range(n)], 0.95)
    low, high = proportion_confint(hits, n, 0.05, "wilson")
    assert found.value == hits / n
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def test_effective_number_is_that_of_the_ratio_estimator() -> None:
    rng = np.random.default_rng(4)
    owner = np.sort(rng.integers(0, 40, 150))
    hits = (rng.random(150) < 0.3) | (owner % 3 == 0)
    _, codes = np.unique(owner, return_inverse=True)
    count = codes.max() + 1
    rank = np.argsort(~hits, kind="stable")
    k = int(hits.sum())
    # By hand: residuals of patients' sums about the overall share.
    share = k / 150
    sums = np.bincount(codes, hits - share)
    variance = (sums**2).sum() * count / (count - 1) / 150**2
    from scipy import stats

    factor = (stats.t.ppf(0.975, 149) / stats.t.ppf(0.975, count - 1)) ** 2
    plain = share * (1 - share) * 150 / 149 / variance
    assert plain < 120  # these patients' images are alike
    assert effective_images(codes[rank], count)[k] == pytest.approx(plain * factor)


def test_repeats_tell_nothing_new() -> None:
    hits = np.arange(60) < 51
    once = clustered_interval(hits, np.arange(60), 0.95)
    often = clustered_interval(np.repeat(hits, 5), np.repeat(np.arange(60), 5), 0.95)
    assert once.low is not None
    assert often.low == pytest.approx(once.low, abs=0.006)
    assert often.high == pytest.approx(once.high, abs=0.006)


def test_a_flawless_group_keeps_an_interval() -> None:
    found = clustered_interval(np.ones(40, bool), np.repeat(np.arange(20), 2), 0.95)
    assert found.value == found.high == 1.0
    assert found.low is not None
    assert 0.8 < found.low < proportion_confint(20, 20, 0.05, "wilson")[0] + 1e-9


def test_nothing_and_one_patient() -> None:
    assert clustered_interval(np.empty(0, bool), [], 0.95) == Estimate(None)
    assert clustered_interval([True, False], ["p", "p"], 0.95) == Estimate(0.5)


def test_one_sided_limit() -> None:
    low, high = exact_limits(np.array([0.9]), np.array([50.0]), 0.05)
    wanted = proportion_confint(45, 50, 0.1, "beta")
    assert (low[0], high[0]) == pytest.approx(wanted)


def test_difference_is_newcombes() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:873-890), table II: 56/70 and 48/80, method 10."""
    found = difference(wilson_interval(56, 70, 0.95), wilson_interval(48, 80, 0.95))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    other = confint_proportions_2indep(56, 70, 48, 80, method="newcomb")
    assert (found.low, found.high) == pytest.approx(other)


def test_difference_of_what_is_not_there() -> None:
    assert difference(Estimate(None), Estimate(0.5, 0.4, 0.6)) == Estimate(None)
    assert difference(Estimate(0.75), Estimate(0.5, 0.4, 0.6)) == Estimate(0.25)
