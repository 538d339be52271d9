"""The calibration error's interval: by simulation, and where percentiles hold nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.calibration import _unfolded
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.proportions import wilson_interval
from pneumoscope.evaluation.ranked_metrics import RankedScores, ece_values, equal_mass_bins
from pneumoscope.records import Estimate
from support.known import holds, known

SETS, RESAMPLES = 120, 150


def drawn(seed: int, extreme: float, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities `extreme` times too extreme, patients with so many images."""
    rng = np.random.default_rng(seed)
    positive = rng.random(240) < 0.5
    owner = np.repeat(np.arange(240), images)
    labels = positive[owner].astype(int)
    shared = rng.normal(size=240)[owner]
    own = rng.normal(size=owner.size)
    weight = 0.7 if images > 1 else 0.0
    score = 2 * labels - 1 + weight * shared + np.sqrt(1 - weight**2) * own
    return labels, 1 / (1 + np.exp(-extreme * 2 * score)), owner


def true_error(extreme: float) -> float:
    def error(x: float) -> float:
        density = (stats.norm.pdf(x, 1) + stats.norm.pdf(x, -1)) / 2
        gap = abs(1 / (1 + np.exp(-2 * extreme * x)) - 1 / (1 + np.exp(-2 * x)))
        return float(gap * density)

    return float(integrate.quad(error, -8, 8)[0])


def interval(seed: int, extreme: float, images: int) -> Estimate:
    labels, scores, patients = drawn(seed, extreme, images)
    config = IntervalConfig(resamples=RESAMPLES, seed=seed)
    return bootstrap_metrics(labels, scores, patients, 0.5, config).estimates["ece"]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("extreme", [1.0, 1.6, 2.5])
def test_holds_the_truth_whether_there_is_an_error_or_not(extreme: float, images: int) -> None:
    truth = true_error(extreme)
    found = [interval(seed, extreme, images) for seed in range(SETS)]
    held = np.mean([holds(one, truth) for one in found])
    # 95 % wanted: of 120 sets chance alone leaves 90 to 99 %.
    assert held >= 0.89
    assert all(holds(one, known(one.value)) for one in found)
    if extreme == 2.5:
        assert np.mean([known(one.low) > 0 for one in found]) > (0.2 if images == 1 else 0.9)


def test_taking_noise_off_is_the_mean_of_a_folded_normal() -> None:
    draws = np.random.default_rng(0).normal(size=400_000)
    for gap, noise in ((0.0, 0.1), (0.05, 0.1), (-0.2, 0.1)):
        folded = np.abs(gap + noise * draws).mean()
        less = _unfolded(np.array([gap]), np.array([noise]))[0]
        assert less == pytest.approx(2 * abs(gap) - folded, abs=1e-3)
    assert _unfolded(np.array([0.3]), np.array([0.0]))[0] == pytest.approx(0.3)


def test_bins_are_those_of_the_error_itself() -> None:
    from pneumoscope.evaluation.calibration import GapResamples

    labels, scores, _ = drawn(3, 1.6, 1)
    ranked = RankedScores.of(labels, np.round(scores, 1))  # ties share a bin
    gaps = GapResamples.of(ranked)
    bins = equal_mass_bins(ranked.counts_once())
    used = bins.mass[0] > 0
    mass = np.diff(np.append(gaps.starts, labels.size))
    assert mass == pytest.approx(bins.mass[0, used])
    ours = np.add.reduceat(gaps.excess, gaps.starts) / mass
    assert ours == pytest.approx(bins.gaps()[0, used])


def test_without_noise_the_interval_is_that_of_no_hit() -> None:
    # Every label is as its probability predicts: no resample differs.
    labels = np.tile([0, 1], 100)
    scores = labels.astype(float)
    found = bootstrap_metrics(labels, scores, np.arange(200), 0.5, IntervalConfig(resamples=30))
    ece = found.estimates["ece"]
    assert (ece.value, ece.low) == (0.0, 0.0)
    assert ece.high == pytest.approx(wilson_interval(0, 200, 0.95).high)
    assert ece_values(RankedScores.of(labels, scores).counts_once())[0] == 0.0
