"""Every threshold, predictive values at any prevalence, and the threshold that surely holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from pneumoscope.config import IntervalConfig, PlanConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals import (
    bootstrap_metrics,
    expanded_tail,
    fewest_patients,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.plan import (
    MOST_ROWS,
    at_prevalence,
    column_limits,
    confident_threshold,
    threshold_table,
)
from pneumoscope.evaluation.proportions import patient_codes

CONFIG = IntervalConfig(resamples=150, seed=2)
PLAN = PlanConfig(resamples=150)


def simulated(
    n: int = 240, seed: int = 0, decimals: int = 9
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, n // 2, n))
    labels = (owner % 2).astype(int)
    logits = 2.2 * (labels - 0.5) + rng.normal(size=n // 2)[owner] * 0.6 + rng.normal(size=n)
    return labels, np.round(1 / (1 + np.exp(-logits)), decimals), [f"p{k}" for k in owner]


@pytest.mark.parametrize("decimals", [9, 1])
def test_rates_are_scikit_learns_at_every_threshold(decimals: int) -> None:
    labels, scores, patients = simulated(n=100, decimals=decimals)
    table = threshold_table(labels, scores, patients, CONFIG)
    assert len(table.thresholds) == len(np.unique(scores)) + (scores.max() < 1)
    assert (np.diff(table.thresholds) > 0).all()
    for k, threshold in enumerate(table.thresholds):
        called = scores >= threshold
        row = table.row(k, 0.1)
        sensitivity = sk.recall_score(labels, called)
        specificity = sk.recall_score(labels, called, pos_label=0)
        assert row.sensitivity.value == pytest.approx(sensitivity)
        assert row.specificity.value == pytest.approx(specificity)
        assert row.missed.value == pytest.approx(100 * (1 - sensitivity))
        assert row.false_alarms.value == pytest.approx(900 * (1 - specificity))
        calls = 0.1 * sensitivity + 0.9 * (1 - specificity)
        if calls:
            assert row.ppv.value == pytest.approx(0.1 * sensitivity / calls)
        else:
            assert row.ppv.value is None


def test_at_the_images_own_prevalence_the_values_are_the_images() -> None:
    labels, scores, patients = simulated()
    table = threshold_table(labels, scores, patients, CONFIG, keep=0.4)
    row = table.row(table.nearest(0.4), float(labels.mean()))
    assert row.threshold == 0.4
    assert row.ppv.value == pytest.approx(sk.precision_score(labels, scores >= 0.4))
    assert row.npv.value == pytest.approx(sk.precision_score(labels, scores >= 0.4, pos_label=0))


def test_limits_are_those_of_the_same_resamples_one_by_one() -> None:
    labels, scores, patients = simulated(n=60)
    table = threshold_table(labels, scores, patients, CONFIG, keep=0.5)
    row = table.row(table.nearest(0.5), 0.07)
    codes, count = patient_codes(patients, len(labels))
    values = []
    for weights in np.concatenate(list(resampled_weights(codes, count, CONFIG))):
        called = scores >= 0.5
        positive, negative = weights * labels, weights * (1 - labels)
        sensitivity, alarms = positive @ called / positive.sum(), negative @ called / negative.sum()
        values.append(0.07 * sensitivity / (0.07 * sensitivity + 0.93 * alarms))
    # Carried over from even prevalence: the same but for interpolation between two resamples.
    tail = expanded_tail(CONFIG.level, fewest_patients(labels, codes))
    limits = np.nanquantile(values, [tail, 1 - tail], method="weibull")
    assert (row.ppv.low, row.ppv.high) == pytest.approx(tuple(limits), abs=1e-3)
    usual = bootstrap_metrics(labels, scores, patients, 0.5, CONFIG).estimates
    assert row.sensitivity.low == pytest.approx(usual["sensitivity"].low)
    assert row.specificity.high == pytest.approx(usual["specificity"].high)


def test_column_limits_leave_out_what_is_undefined() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, 4))
    values[rng.random((50, 4)) < 0.3] = np.nan
    values[:, 3] = np.nan
    low, high = column_limits(values, 0.9, 30)
    for k in range(3):
        one = percentile_interval(values[:, k], 0.9, 30)
        assert (low[k], high[k]) == pytest.approx(one[:2])
    assert np.isnan([low[3], high[3]]).all()


def test_bayes_by_hand() -> None:
    # Sensitivity 0.9, specificity 0.8 at 1 in 100: 9 of 207 calls are right.
    even = np.array([0.9 / (0.9 + 0.2)])
    assert at_prevalence(even, 0.01)[0] == pytest.approx(9 / 207)


@pytest.mark.parametrize("kind", ["sensitivity", "specificity"])
def test_chosen_threshold_is_the_last_before_the_limit_fails(
    kind: Literal["sensitivity", "specificity"],
) -> None:
    labels, scores, _ = simulated(n=400)
    patients = [str(k) for k in range(400)]
    found = confident_threshold(labels, scores, patients, kind, 0.8, PLAN)
    inside = labels == (kind == "sensitivity")

    def limit(threshold: float) -> float:
        hits = int(((scores >= threshold) == labels)[inside].sum())
        return float(proportion_confint(hits, int(inside.sum()), 0.1, "beta")[0])

    assert found.limit == pytest.approx(limit(found.value))
    assert found.limit >= 0.8
    further = np.sort(scores[inside])
    if kind == "sensitivity":
        beyond = further[further >= found.value][0] + 1e-9
    else:
        beyond = further[further < found.value][-1]
    assert limit(beyond) < 0.8
    assert 0.9 < found.chance <= 1.0
    assert kind in found.rule
    assert "95%" in found.rule


def test_repeats_of_the_same_patients_make_it_no_surer() -> None:
    labels, scores, _ = simulated(n=300)
    once = confident_threshold(labels, scores, np.arange(300), "sensitivity", 0.8, PLAN)
    y, p, patients = (np.repeat(part, 4) for part in (labels, scores, np.arange(300)))
    often = confident_threshold(y, p, patients, "sensitivity", 0.8, PLAN)
    assert often.value == pytest.approx(once.value, abs=0.03)


def test_what_is_wanted_and_can_not_be_shown() -> None:
    labels, scores, patients = simulated(n=40)
    with pytest.raises(DataError, match="Evaluate on more patients"):
        confident_threshold(labels, scores, patients, "sensitivity", 0.999, PLAN)
    same = np.full(len(labels), 0.5)
    with pytest.raises(DataError, match="only reached by predicting PNEUMONIA for all"):
        confident_threshold(labels, same, patients, "sensitivity", 0.5, PLAN)
    with pytest.raises(UsageError, match="--min-sensitivity"):
        confident_threshold(labels, scores, patients, "sensitivity", 1.0, PLAN)
    with pytest.raises(DataError, match="some of both"):
        threshold_table([1, 1], [0.1, 0.2], ["a", "b"], CONFIG)


def test_confidence_is_paid_for() -> None:
    labels, scores, patients = simulated(n=300)
    sure = confident_threshold(
        labels, scores, patients, "sensitivity", 0.8, replace(PLAN, confidence=0.99)
    )
    less = confident_threshold(
        labels, scores, patients, "sensitivity", 0.8, replace(PLAN, confidence=0.6)
    )
    assert sure.value < less.value


def test_many_scores_are_thinned_but_the_one_in_use_stays() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(3000)
    table = threshold_table(
        (rng.random(3000) < scores).astype(int),
        scores,
        np.arange(3000),
        IntervalConfig(resamples=2),
        keep=0.123456,
    )
    assert MOST_ROWS <= len(table.thresholds) <= MOST_ROWS + 1
    assert 0.123456 in table.thresholds
    assert table.sensitivity[0, 0] == 1.0
    assert table.specificity[-1, 0] == 1.0


def test_scores_of_zero_and_one() -> None:
    table = threshold_table([0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], list("abcd"), CONFIG)
    assert ((table.thresholds >= 0) & (table.thresholds <= 1)).all()
    best = table.row(table.nearest(0.5), 0.5)
    assert (best.sensitivity.value, best.specificity.value) == (1.0, 1.0)
    assert table.specificity[0, 0] == 0.0
