"""Decision curves against the formula as written, resample by resample."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.decision import cost_table, decision_curve, shifted
from pneumoscope.evaluation.intervals import expanded_tail, fewest_patients, resampled_weights
from pneumoscope.evaluation.plan import threshold_table
from pneumoscope.evaluation.proportions import patient_codes, wilson_interval
from support.known import known

CONFIG = IntervalConfig(resamples=60, seed=1)


def simulated(n: int = 200) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(3)
    scores = np.round(rng.random(n), 3)
    return (rng.random(n) < scores).astype(int), scores, [f"p{k // 2}" for k in range(n)]


def test_net_benefit_of_the_images_is_vickers_and_elkins() -> None:
    labels, scores, patients = simulated()
    curve = decision_curve(labels, scores, patients, float(labels.mean()), CONFIG)
    n = len(labels)
    for p, benefit, everyone in zip(curve.probability, curve.model, curve.treat_all, strict=True):
        _, fp, _, tp = confusion_matrix(labels, scores >= p).ravel()
        assert benefit == pytest.approx(tp / n - fp / n * p / (1 - p))
        positive = labels.sum()
        assert everyone == pytest.approx(positive / n - (n - positive) / n * p / (1 - p))


def test_intervals_are_those_of_the_same_resamples_one_by_one() -> None:
    labels, scores, patients = simulated()
    curve = decision_curve(labels, scores, patients, 0.2, CONFIG)
    codes, count = patient_codes(patients, len(labels))
    k = curve.probability.index(0.3)
    values = []
    for weights in np.concatenate(list(resampled_weights(codes, count, CONFIG))):
        called = shifted(scores, (weights @ labels) / weights.sum(), 0.2) >= 0.3
        positive, negative = weights * labels, weights * (1 - labels)
        gained = 0.2 * (positive @ called) / positive.sum()
        values.append(gained - 0.8 * (negative @ called) / negative.sum() * 0.3 / 0.7)
    tail = expanded_tail(CONFIG.level, fewest_patients(labels, codes))
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull")
    assert (curve.low[k], curve.high[k]) == pytest.approx((low, high))


def test_moving_the_prevalence_is_bayes_rule() -> None:
    # Probability 0.5 where half are positive is a likelihood ratio of 1: the prevalence itself.
    assert shifted([0.5], 0.5, 0.03)[0] == pytest.approx(0.03)
    assert shifted([0.0, 1.0], 0.5, 0.03).tolist() == [0.0, 1.0]
    back = shifted(shifted([0.2, 0.9], 0.4, 0.1), 0.1, 0.4)
    assert back == pytest.approx([0.2, 0.9])


def test_a_flawless_model_gains_every_case() -> None:
    labels = np.arange(80) % 2
    curve = decision_curve(labels, labels * 1.0, np.arange(80), 0.3, CONFIG)
    assert set(np.round(curve.model, 12)) == {0.3}
    # 40 of each: sensitivity and specificity may be as low as Wilson's limit.
    low = known(wilson_interval(40, 40, CONFIG.level).low)
    assert curve.low[49] == pytest.approx(0.3 - (1 - low) * np.hypot(0.3, 0.7))
    assert curve.high == pytest.approx([0.3] * 99)
    useful = curve.useful()
    assert useful is not None
    assert 0.01 < useful[0] < 0.1
    assert 0.7 < useful[1] < 0.99


def test_limits_where_one_rate_is_extreme_do_not_depend_on_the_order() -> None:
    """The other rate's hits are clustered by patient as they are, not as the rows happen to lie."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], 60)
    scores = np.concatenate([rng.uniform(0.6, 1, 60), rng.uniform(0, 0.8, 60)])
    patients = np.array([f"p{k // 4}" for k in range(120)])
    mixed = rng.permutation(120)
    one = decision_curve(labels, scores, patients, 0.3, CONFIG)
    other = decision_curve(labels[mixed], scores[mixed], patients[mixed], 0.3, CONFIG)
    assert one.low == pytest.approx(other.low)
    assert one.high == pytest.approx(other.high)


def test_no_error_among_few_patients_is_no_proof_of_no_cost() -> None:
    labels, scores = np.repeat([0, 1], 10), np.linspace(0.05, 0.95, 20)
    thresholds = threshold_table(labels, scores, np.arange(20), CONFIG).thresholds
    found = cost_table(labels, scores, np.arange(20), thresholds, 0.1, (20, 1), CONFIG)
    cheapest = found.at(found.cheapest)
    # Ten of each: up to 1 - Wilson's limit may be missed, and as many be false alarms.
    reach = 1 - known(wilson_interval(10, 10, CONFIG.level).low)
    assert (cheapest.value, cheapest.low) == (0.0, 0.0)
    assert cheapest.high == pytest.approx(1000 * reach * np.hypot(20 * 0.1, 0.9))
    # All called: no case is missed, every normal image is an alarm.
    everyone = found.at(0)
    assert everyone.value == pytest.approx(found.call_all)
    assert everyone.low == pytest.approx(found.call_all - 1000 * reach * 0.9)
    assert everyone.high == pytest.approx(found.call_all + 1000 * reach * 2.0)
    # Between the edges the bootstrap remains.
    mixed = np.where(np.arange(20) % 5 == 0, 1 - labels, labels)
    at = np.array([0.5])
    inside = cost_table(mixed, scores, np.arange(20), at, 0.1, (20, 1), CONFIG).at(0)
    assert inside.low is not None
    assert inside.high is not None
    assert inside.value is not None
    assert 0 < inside.low < inside.value < inside.high


def test_a_model_without_skill_is_useful_nowhere() -> None:
    rng = np.random.default_rng(0)
    curve = decision_curve(np.arange(80) % 2, rng.random(80), np.arange(80), 0.3, CONFIG)
    assert curve.useful() is None
    single = decision_curve([0, 1], [0.2, 0.7], ["a", "a"], 0.3, CONFIG)
    assert single.low == ()
    assert single.useful() is None
