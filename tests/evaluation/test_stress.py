"""Paired differences: against resampling by hand with scikit-learn, by simulation, at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import recall_score, roc_auc_score

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals import fewest_patients, percentile_interval, resampled_weights
from pneumoscope.evaluation.proportions import patient_codes
from pneumoscope.evaluation.stress import METRICS, Paired, compare_paired, judge
from pneumoscope.records import Estimate
from support.known import holds, width

THRESHOLD = 0.5


def simulated(
    rng: np.random.Generator, patients: int, images: int, shift: float, fade: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, patients, and probabilities before and after a change that adds -`fade` and noise.

    A patient's images share an effect of deviation 0.7; the change's own noise has 0.5.
    """
    truth = rng.integers(0, 2, patients).repeat(images)
    ids = np.arange(patients).repeat(images)
    effect = rng.normal(0, 0.7, patients).repeat(images)
    score = shift * (2 * truth - 1) + effect + rng.normal(0, 1, truth.size)
    changed = score - fade + rng.normal(0, 0.5, truth.size)
    return truth, ids.astype(str), stats.norm.cdf(score), stats.norm.cdf(changed)


def test_values_and_intervals_are_those_of_resampling_by_hand() -> None:
    labels, patients, plain, changed = simulated(np.random.default_rng(0), 40, 2, 0.8, 0.3)
    config = IntervalConfig(resamples=60, seed=5)
    found = compare_paired(labels, patients, plain, changed, THRESHOLD, config)

    def by_hand(rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        called = scores[rows] >= THRESHOLD
        return {
            "sensitivity": recall_score(labels[rows], called),
            "specificity": recall_score(labels[rows], called, pos_label=0),
            "auc": roc_auc_score(labels[rows], scores[rows]),
        }

    codes, count = patient_codes(patients, labels.size)
    weights = np.concatenate(list(resampled_weights(codes, count, config))).astype(int)
    resamples = [np.repeat(np.arange(labels.size), row) for row in weights]
    every = np.arange(labels.size)
    fewest = fewest_patients(labels, codes)
    for metric in METRICS:
        drawn = [[by_hand(rows, s)[metric] for rows in resamples] for s in (plain, changed)]
        point = [by_hand(every, s)[metric] for s in (plain, changed)]
        rows = {
            "plain": (point[0], drawn[0]),
            "changed": (point[1], drawn[1]),
            "difference": (point[1] - point[0], np.subtract(drawn[1], drawn[0])),
        }
        for name, (value, samples) in rows.items():
            estimate = getattr(found, name)[metric]
            low, high, _ = percentile_interval(np.array(samples), 0.95, fewest)
            wanted = pytest.approx((value, low, high))
            assert (estimate.value, estimate.low, estimate.high) == wanted, (metric, name)


def test_an_unchanged_image_differs_by_nothing_for_certain() -> None:
    labels, patients, plain, _ = simulated(np.random.default_rng(1), 30, 2, 0.8, 0)
    found = compare_paired(labels, patients, plain, plain, THRESHOLD, IntervalConfig(resamples=50))
    assert all(found.difference[metric] == Estimate(0.0, 0.0, 0.0) for metric in METRICS)
    assert found.plain == found.changed
    assert found.fall == 0


def test_what_was_rejected_stands_on_neither_side() -> None:
    labels, patients, plain, changed = simulated(np.random.default_rng(2), 40, 2, 0.8, 0.3)
    config = IntervalConfig(resamples=40)
    plain[3] = np.nan  # no result when unchanged: not counted as rejected
    changed[3:10] = np.nan
    kept = ~np.isnan(changed)
    found = compare_paired(labels, patients, plain, changed, THRESHOLD, config)
    assert (found.images, found.refused) == (73, 6)
    assert found.positives == labels[kept].sum()
    alone = compare_paired(
        labels[kept], patients[kept], plain[kept], changed[kept], THRESHOLD, config
    )
    assert (alone.plain, alone.difference) == (found.plain, found.difference)
    assert alone.refused == 0


@pytest.mark.parametrize("remaining", ["none", "one class", "one patient"])
def test_undefined_values_are_none(remaining: str) -> None:
    labels, patients, plain, changed = simulated(np.random.default_rng(3), 20, 2, 0.8, 0.3)
    if remaining == "none":
        changed[:] = np.nan
    if remaining == "one class":
        changed[labels == 0] = np.nan
    if remaining == "one patient":
        patients[:] = "p"
    found = compare_paired(
        labels, patients, plain, changed, THRESHOLD, IntervalConfig(resamples=20)
    )
    if remaining == "one patient":
        assert found.difference["sensitivity"].value is not None
        assert found.difference["sensitivity"].low is None
        return
    assert found.difference["auc"] == found.difference["specificity"] == Estimate(None)
    assert (found.difference["sensitivity"].value is None) == (remaining == "none")
    if remaining == "none":
        assert judge(found, 0.05, plausible=True) == "shown"


def test_intervals_of_differences_cover_the_truth_with_clustered_patients() -> None:
    rng = np.random.default_rng(4)
    shift, fade = 1.0, 0.35
    spread, after = math.hypot(1, 0.7), math.sqrt(1 + 0.49 + 0.25)
    cdf = stats.norm.cdf
    truths = {
        "sensitivity": cdf((shift - fade) / after) - cdf(shift / spread),
        "specificity": cdf((shift + fade) / after) - cdf(shift / spread),
        "auc": cdf(math.sqrt(2) * shift / after) - cdf(math.sqrt(2) * shift / spread),
    }
    runs, hits = 1000, dict.fromkeys(METRICS, 0)
    widths, apart = [], []
    for _ in range(runs):
        data = simulated(rng, 100, 2, shift, fade)
        found = compare_paired(*data, THRESHOLD, IntervalConfig(resamples=400))
        for metric in METRICS:
            estimate = found.difference[metric]
            hits[metric] += holds(estimate, truths[metric])
        difference, both = found.difference["auc"], (found.plain["auc"], found.changed["auc"])
        widths.append(width(difference))
        apart.append(math.hypot(*map(width, both)))
    coverage = {metric: count / runs for metric, count in hits.items()}
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage
    # What comparing two independent samples would have claimed is far wider.
    assert np.mean(widths) < 0.75 * np.mean(apart)


def paired(sensitivity: tuple[float, float], specificity: tuple[float, float]) -> Paired:
    """Differences (value, low) of an imaginary change."""
    difference = {
        "sensitivity": Estimate(sensitivity[0], sensitivity[1], 0.3),
        "specificity": Estimate(specificity[0], specificity[1], 0.3),
        "auc": Estimate(0.0, 0.0, 0.0),
    }
    plain = {metric: Estimate(0.9, 0.8, 1.0) for metric in METRICS}
    return Paired(10, 10, 5, 0, plain, plain, difference)  # type: ignore[arg-type]


def test_the_verdict_goes_by_value_and_tells_where_the_interval_reaches_beyond() -> None:
    assert judge(paired((0.0, -0.04), (0.1, 0.0)), 0.05, plausible=True) == "holds"
    assert judge(paired((-0.05, -0.05), (0.0, 0.0)), 0.05, plausible=True) == "holds"
    assert judge(paired((0.0, -0.06), (0.0, 0.0)), 0.05, plausible=True) == "unsure"
    assert judge(paired((0.2, 0.1), (-0.06, -0.2)), 0.05, plausible=True) == "fails"
    assert judge(paired((-0.9, -1.0), (-0.9, -1.0)), 0.05, plausible=False) == "shown"
    assert paired((0.2, 0.1), (-0.06, -0.2)).fall == pytest.approx(0.06)


def test_shapes_that_do_not_fit_and_impossible_levels_are_rejected() -> None:
    with pytest.raises(DataError, match="one per label"):
        compare_paired([0, 1], ["a", "b"], [0.1, 0.2], [0.1], 0.5, IntervalConfig())
    with pytest.raises(UsageError, match=r"interval\.level"):
        compare_paired([0, 1], ["a", "b"], [0.1, 0.2], [0.1, 0.2], 0.5, IntervalConfig(level=1.5))
