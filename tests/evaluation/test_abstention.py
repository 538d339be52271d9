"""Risk and coverage, bands and conformal sets, against what they are by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import accuracy_score

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.abstention import (
    Uncertain,
    choose_band,
    choose_sets,
    conformal_quantile,
    risk_coverage,
)

CONFIG = IntervalConfig(resamples=50)


def simulated(
    n: int = 600, seed: int = 0, decimals: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(int)
    logits = 3.0 * (labels - 0.5) + 1.5 * rng.normal(size=n)
    return labels, np.round(1 / (1 + np.exp(-logits)), decimals), np.arange(n)


def test_curve_by_definition() -> None:
    labels, scores, patients = simulated(n=100)
    found = risk_coverage(labels, scores, patients, 0.3, CONFIG)
    sure = np.abs(np.log(scores / (1 - scores)) - np.log(0.3 / 0.7))
    order = np.argsort(-sure)
    risks = [1 - accuracy_score(labels[order[:k]], scores[order[:k]] >= 0.3) for k in range(1, 101)]
    assert found.coverage == pytest.approx(np.arange(1, 101) / 100)
    assert found.risk == pytest.approx(risks)
    assert found.area.value == pytest.approx(np.mean(risks))
    assert found.area.low is not None
    assert found.area.high is not None
    assert found.area.low < np.mean(risks) < found.area.high


def test_equally_sure_images_enter_together() -> None:
    found = risk_coverage([1, 0, 1, 0], [0.5, 0.5, 0.9, 0.1], list("abcd"), 0.3, CONFIG)
    assert len(found.coverage) == 3  # 0.5 twice
    assert found.coverage[-1] == 1.0
    assert found.risk[-1] == 0.25


def test_band_keeps_the_risk_and_holds_the_threshold() -> None:
    labels, scores, patients = simulated()
    found = choose_band(labels, scores, patients, 0.4, 0.15, 0.95)
    assert found.low < 0.4 < found.high
    # As far to both sides on the logit scale.
    ends = special.logit([found.low, 0.4, found.high])
    assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1])
    covered = (scores < found.low) | (scores >= found.high)
    wrong = (scores >= found.high) != (labels == 1)
    assert found.coverage.value == pytest.approx(covered.mean())
    assert found.risk.value == pytest.approx(wrong[covered].mean())
    assert (found.risk.value or 0) < 0.15 < (labels != (scores >= 0.4)).mean()
    wider = choose_band(labels, scores, patients, 0.4, 0.12, 0.95)
    assert wider.low < found.low
    assert wider.high > found.high


def test_no_band_is_needed_where_risk_is_low_anyway() -> None:
    labels, _, patients = simulated()
    found = choose_band(labels, 0.1 + 0.8 * labels, patients, 0.5, 0.05, 0.95)
    assert found.coverage.value == 1.0


def test_band_that_can_not_be() -> None:
    labels, scores, patients = simulated(n=60)
    with pytest.raises(DataError, match="no band"):
        choose_band(labels, scores, patients, 0.5, 0.01, 0.95)
    with pytest.raises(UsageError, match="--band"):
        choose_band(labels, scores, patients, 0.5, 0.0, 0.95)
    with pytest.raises(UsageError, match="threshold"):
        choose_band(labels, scores, patients, 1.0, 0.1, 0.95)


@pytest.mark.parametrize(("n", "coverage"), [(19, 0.95), (40, 0.9), (137, 0.8), (200, 0.99)])
def test_quantile_is_the_textbooks(n: int, coverage: float) -> None:
    """Angelopoulos & Bates 2021, arXiv:2107.07511, section 1: the corrected quantile."""
    scores = np.random.default_rng(n).random(n)
    level = math.ceil((n + 1) * coverage) / n
    wanted = np.quantile(scores, level, method="inverted_cdf")
    assert conformal_quantile(scores, np.arange(n), coverage) == wanted
    assert conformal_quantile(scores[:10], np.arange(10), 0.95) == math.inf


def test_copies_of_images_change_no_quantile() -> None:
    scores = np.random.default_rng(0).random(60)
    once = conformal_quantile(scores, np.arange(60), 0.9)
    times = 1 + np.arange(60) % 4
    often = conformal_quantile(np.repeat(scores, times), np.repeat(np.arange(60), times), 0.9)
    assert often == once


def sets_of(probabilities: np.ndarray, found: Uncertain) -> np.ndarray:
    """Whether NORMAL and PNEUMONIA are in the prediction set of each image, (n, 2)."""
    return np.column_stack([probabilities < found.high, probabilities >= found.low])


def test_sets_by_their_p_values() -> None:
    """The class is in the set if its conformal p-value is above 1 - coverage (Vovk 2012)."""
    labels, scores, patients = simulated(n=300)
    found = choose_sets(labels, scores, patients, 0.5, 0.95)
    new = np.linspace(0.001, 0.999, 500)
    sets = sets_of(new, found)
    for label in (0, 1):
        seen = scores[labels == label] if label == 0 else 1 - scores[labels == label]
        fresh = new if label == 0 else 1 - new
        p = [(np.count_nonzero(seen >= s) + 1) / (seen.size + 1) for s in fresh]
        inside = np.array(p) > 0.05
        assert (sets[:, label] | ~inside).all()  # ours may only be larger, and hold the threshold
    assert found.low <= 0.5 <= found.high


def test_sets_cover_new_patients() -> None:
    held: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(60):
        labels, scores, patients = simulated(n=800, seed=seed)
        found = choose_sets(labels[:300], scores[:300], patients[:300], 0.5, 0.9)
        sets = sets_of(scores[300:], found)
        for label in (0, 1):
            held[label].append(sets[labels[300:] == label, label].mean())
    assert 0.885 < np.mean(held[0]) < 0.93
    assert 0.885 < np.mean(held[1]) < 0.93


def test_sets_need_enough_of_each_class() -> None:
    labels, scores, patients = simulated(n=24)
    with pytest.raises(DataError, match="wanted at least 99"):
        choose_sets(labels, scores, patients, 0.5, 0.99)
    with pytest.raises(UsageError, match="--sets"):
        choose_sets(labels, scores, patients, 0.5, 1.0)
