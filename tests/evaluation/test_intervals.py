from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation import intervals, metrics
from pneumoscope.evaluation.intervals import (
    bootstrap_metrics,
    bootstrap_share,
    delong_auc,
    delong_interval,
    expanded_tail,
    fewest_patients,
    logit_interval,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.proportions import auc_interval, patient_codes, wilson_interval
from pneumoscope.evaluation.ranked_metrics import METRIC_NAMES, RankedScores, ece_values
from pneumoscope.records import Estimate
from support.known import holds, known, limits, width


def clustered(
    rng: np.random.Generator,
    patients: int = 60,
    images: int = 3,
    decimals: int = 9,
    shift: float = 1.5,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Patients of one class each; scores of one patient share an effect."""
    owner = np.repeat(np.arange(patients), images)
    labels = (np.arange(patients) % 2)[owner]
    effect = rng.normal(size=patients)[owner]
    logits = shift * (labels - 0.5) * 2 + effect + 0.7 * rng.normal(size=owner.size)
    return labels, np.round(1 / (1 + np.exp(-logits)), decimals), [f"p{i}" for i in owner]


def naive_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    called = (scores >= threshold).astype(int)
    undefined = {"zero_division": math.nan}
    recall = [reference.recall_score(labels, called, pos_label=k, **undefined) for k in (0, 1)]
    precision = [
        reference.precision_score(labels, called, pos_label=k, **undefined) for k in (0, 1)
    ]
    both, some = 0 < labels.sum() < len(labels), labels.sum() > 0
    return {
        "accuracy": np.mean(called == labels),
        "balanced_accuracy": sum(recall) / 2,
        "sensitivity": recall[1],
        "specificity": recall[0],
        "ppv": precision[1],
        "npv": precision[0],
        "f1": reference.f1_score(labels, called, **undefined),
        "auc": reference.roc_auc_score(labels, scores) if both else math.nan,
        "average_precision": (
            reference.average_precision_score(labels, scores) if some else math.nan
        ),
        "brier": np.mean((scores - labels) ** 2),
        "ece": ece_values(RankedScores.of(labels, scores).counts_once())[0],
    }


@pytest.mark.parametrize("decimals", [9, 1])
def test_vectorised_bootstrap_equals_a_loop_over_the_same_resamples(decimals: int) -> None:
    # Five patients: resamples of one class, and so undefined metrics, do occur.
    rng = np.random.default_rng(0)
    labels, scores, patients = clustered(rng, patients=5, decimals=decimals)
    config = IntervalConfig(level=0.9, resamples=120, seed=3)
    codes, count = patient_codes(patients, len(labels))
    loop: dict[str, list[float]] = {}
    for weights in np.concatenate(list(resampled_weights(codes, count, config))):
        images = np.repeat(np.arange(len(labels)), weights.astype(int))
        for name, value in naive_metrics(labels[images], scores[images], 0.5).items():
            loop.setdefault(name, []).append(value)
    found = bootstrap_metrics(labels, scores, patients, 0.5, config)
    fewest = fewest_patients(labels, codes)
    assert fewest == 2
    for name, values in loop.items():
        estimate = found.estimates[name]
        if name == "ece":  # has tests of its own
            assert len(labels) < 40
            assert estimate == Estimate(None)
            continue
        low, high, _ = percentile_interval(np.array(values), 0.9, fewest)
        if name in ("auc", "average_precision"):
            low, high, _ = logit_interval(known(estimate.value), np.array(values), 0.9, fewest)
        if low == high:  # `edges` has another there
            assert width(estimate) > 0
            continue
        assert estimate.low == pytest.approx(low, abs=1e-9), name
        assert estimate.high == pytest.approx(high, abs=1e-9), name
        assert found.dropped[name] == np.isnan(values).sum(), name
    assert set(loop) == set(METRIC_NAMES)
    assert found.dropped["auc"] > 0
    assert found.dropped["accuracy"] == 0


def test_resamples_draw_patients_whole_and_as_many_as_there_are() -> None:
    codes = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = np.concatenate(list(resampled_weights(codes, 4, IntervalConfig(resamples=500))))
    assert weights.shape == (500, 7)
    per_patient = weights[:, [0, 2, 3, 6]]
    assert (per_patient.sum(axis=1) == 4).all()
    assert (weights == per_patient[:, codes]).all()
    assert per_patient.mean() == pytest.approx(1.0)
    # Multinomial: variance 1 - 1/4 for each patient.
    assert per_patient.var(axis=0) == pytest.approx([0.75] * 4, abs=0.15)


def test_seed_alone_decides_not_image_order_nor_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, patients = clustered(np.random.default_rng(1))
    config = IntervalConfig(resamples=200)
    first = bootstrap_metrics(labels, scores, patients, 0.5, config)
    back = slice(None, None, -1)
    turned = bootstrap_metrics(labels[back], scores[back], patients[back], 0.5, config)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 1000)
    blocked = bootstrap_metrics(labels, scores, patients, 0.5, config)
    other = bootstrap_metrics(labels, scores, patients, 0.5, IntervalConfig(resamples=200, seed=1))
    for name, estimate in first.estimates.items():
        for same in (turned, blocked):
            assert same.estimates[name].low == pytest.approx(estimate.low, abs=1e-9)
            assert same.estimates[name].high == pytest.approx(estimate.high, abs=1e-9)
    assert other.estimates["auc"] != first.estimates["auc"]


def test_repeats_of_patients_are_no_news() -> None:
    labels, scores, patients = clustered(np.random.default_rng(2), images=1)
    config = IntervalConfig(resamples=300)
    once = bootstrap_metrics(labels, scores, patients, 0.5, config).estimates["auc"]
    copied = bootstrap_metrics(
        np.tile(labels, 5), np.tile(scores, 5), patients * 5, 0.5, config
    ).estimates["auc"]
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_perfect_separation_leaves_an_interval_everywhere() -> None:
    labels = np.array([0] * 20 + [1] * 20)
    scores = np.where(labels == 1, 0.9, 0.1)
    patients = [str(i) for i in range(40)]
    found = bootstrap_metrics(labels, scores, patients, 0.5, IntervalConfig(resamples=100))
    wilson = wilson_interval(20, 20, 0.95)
    for name in ("average_precision", "sensitivity", "specificity", "ppv", "npv"):
        assert found.estimates[name] == wilson
    assert found.estimates["accuracy"] == wilson_interval(40, 40, 0.95)
    low = known(wilson.low)
    balanced = found.estimates["balanced_accuracy"].low
    assert balanced == pytest.approx(1.0 - (1.0 - low) / math.sqrt(2))
    assert found.estimates["f1"].low == pytest.approx(2 * low / (1 + low))
    assert found.estimates["auc"] == auc_interval(1.0, 20, 20, 0.95)
    assert low == pytest.approx(0.8389, abs=1e-4)
    assert wilson.high == 1.0
    assert delong_interval(labels, scores, 0.95, patients) == auc_interval(1.0, 20, 20, 0.95)


def test_one_patient_is_one_image() -> None:
    found = bootstrap_metrics([0, 1, 1], [0.2, 0.4, 0.9], ["a"] * 3, 0.5, IntervalConfig())
    assert found.estimates["sensitivity"] == Estimate(0.5)
    assert found.estimates["specificity"] == wilson_interval(1, 1, 0.95)
    assert found.estimates["auc"] == auc_interval(1.0, 1, 1, 0.95)
    perfect = delong_interval([0, 1, 1], [0.2, 0.4, 0.9], 0.95, ["a"] * 3)
    assert perfect == auc_interval(1.0, 1, 1, 0.95)
    assert delong_interval([0, 1, 1], [0.3, 0.2, 0.9], 0.95, ["a"] * 3) == Estimate(0.5)


def test_one_class_leaves_the_defined_metrics() -> None:
    labels, scores = np.ones(10, dtype=int), np.linspace(0.1, 1, 10)
    patients = np.arange(10)
    found = bootstrap_metrics(labels, scores, patients, 0.5, IntervalConfig(resamples=50))
    undefined = {name for name, e in found.estimates.items() if e.value is None}
    assert undefined == {"balanced_accuracy", "specificity", "auc", "ece"}
    assert found.estimates["auc"] == Estimate(None)
    assert found.dropped["auc"] == 50
    assert found.estimates["sensitivity"].low is not None
    assert delong_interval(labels, scores, 0.95) == Estimate(None)


def test_ties_everywhere_are_chance() -> None:
    labels = np.array([0, 1] * 15)
    scores = np.full(30, 0.3)
    found = bootstrap_metrics(labels, scores, np.arange(30), 0.5, IntervalConfig(resamples=50))
    assert found.estimates["auc"] == auc_interval(0.5, 15, 15, 0.95)
    assert found.estimates["ppv"] == Estimate(None)
    assert delong_interval(labels, scores, 0.95) == auc_interval(0.5, 15, 15, 0.95)


def test_impossible_settings_are_rejected() -> None:
    data = ([0, 1], [0.1, 0.9], ["a", "b"], 0.5)
    with pytest.raises(UsageError, match=r"level: found 95"):
        bootstrap_metrics(*data, IntervalConfig(level=95.0))
    with pytest.raises(UsageError, match=r"resamples: found 0"):
        bootstrap_metrics(*data, IntervalConfig(resamples=0))
    with pytest.raises(DataError, match=r"patients: found shape \(1,\), wanted \(2,\)"):
        bootstrap_metrics([0, 1], [0.1, 0.9], ["a"], 0.5, IntervalConfig())


def test_share_equals_accuracy_of_the_same_resamples() -> None:
    _, scores, patients = clustered(np.random.default_rng(3))
    labels = np.ones(len(scores), dtype=int)  # one class, as a share is of one
    config = IntervalConfig(resamples=300)
    accuracy = bootstrap_metrics(labels, scores, patients, 0.5, config).estimates["accuracy"]
    share = bootstrap_share((scores >= 0.5) == labels, patients, config)
    assert (share.value, share.low, share.high) == pytest.approx(
        (accuracy.value, accuracy.low, accuracy.high)
    )
    assert bootstrap_share([], [], config) == Estimate(None)
    assert bootstrap_share([True, False], ["a", "a"], config) == Estimate(0.5)


@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_wilson_agrees_with_scipy(trials: int, successes: int, level: float) -> None:
    successes = min(successes, trials)
    ours = wilson_interval(successes, trials, level)
    theirs = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert ours.value == successes / trials
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    mirrored = wilson_interval(trials - successes, trials, level)
    low, high = limits(ours)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_without_trials_is_undefined() -> None:
    assert wilson_interval(0, 0, 0.95) == Estimate(None)


def brute_force_delong(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[float, float]:
    """Obuchowski's estimator written out over all pairs and patients."""
    wins = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    psi = (wins > 0) + 0.5 * (wins == 0)
    auc, (m, n) = psi.mean(), psi.shape
    own_1, own_0 = patients[labels == 1], patients[labels == 0]
    gain, loss = {}, {}
    for p in set(patients):
        gain[p] = sum(v - auc for v, own in zip(psi.mean(axis=1), own_1, strict=True) if own == p)
        loss[p] = sum(v - auc for v, own in zip(psi.mean(axis=0), own_0, strict=True) if own == p)
    i_1, i_0, i = len(set(own_1)), len(set(own_0)), len(set(patients))
    s_10 = i_1 / ((i_1 - 1) * m) * sum(v**2 for v in gain.values())
    s_01 = i_0 / ((i_0 - 1) * n) * sum(v**2 for v in loss.values())
    s_11 = i / (i - 1) * sum(gain[p] * loss[p] for p in set(patients))
    return auc, s_10 / m + s_01 / n + 2 * s_11 / (m * n)


@pytest.mark.parametrize("decimals", [9, 1])
@pytest.mark.parametrize("patients", [12, 25, 80])
def test_delong_agrees_with_all_pairs(patients: int, decimals: int) -> None:
    rng = np.random.default_rng(patients)
    labels = rng.integers(0, 2, 80)  # patients may have images of both classes
    scores = np.round(np.clip(0.3 * rng.normal(size=80) + 0.3 + 0.3 * labels, 0, 1), decimals)
    owner = np.arange(80) % patients
    assert delong_auc(labels, scores, owner) == pytest.approx(
        brute_force_delong(labels, scores, owner), abs=1e-12
    )
    if patients == 80:
        # One image each: DeLong's own formula, sample variances of the components.
        wins = scores[labels == 1][:, None] - scores[labels == 0][None, :]
        psi = (wins > 0) + 0.5 * (wins == 0)
        parts = [psi.mean(axis=axis) for axis in (1, 0)]
        variance = sum(part.var(ddof=1) / part.size for part in parts)
        assert delong_auc(labels, scores)[1] == pytest.approx(variance, abs=1e-12)


def test_delong_of_copied_images_is_that_of_the_originals() -> None:
    labels, scores, patients = clustered(np.random.default_rng(4), images=1)
    once = delong_auc(labels, scores)
    copied = delong_auc(np.tile(labels, 4), np.tile(scores, 4), patients * 4)
    naive = delong_auc(np.tile(labels, 4), np.tile(scores, 4))
    assert copied == pytest.approx(once)
    assert naive[1] < 0.3 * once[1]


def test_delong_interval_is_normal_on_the_logit_scale() -> None:
    labels, scores, _ = clustered(np.random.default_rng(5), images=1)
    auc, variance = delong_auc(labels, scores)
    found = delong_interval(labels, scores, 0.9)
    half = stats.norm.ppf(0.95) * math.sqrt(variance) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    ends = [1 / (1 + math.exp(-x)) for x in (middle - half, middle + half)]
    assert found.value == pytest.approx(metrics.auc(labels, scores))
    assert [found.low, found.high] == pytest.approx(ends)


def test_delong_needs_two_patients_per_class() -> None:
    auc, variance = delong_auc([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], ["a", "b", "c", "c"])
    assert auc == 0.75
    assert math.isnan(variance)


def test_intervals_cover_the_truth_with_clustered_patients() -> None:
    rng = np.random.default_rng(6)
    shift, spread = 1.2, math.hypot(1.0, 0.7)
    true_auc = stats.norm.cdf(2 * shift / (spread * math.sqrt(2)))
    true_sensitivity = stats.norm.cdf(shift / spread)
    hits = dict.fromkeys(("auc", "sensitivity", "delong", "independent"), 0)
    config = IntervalConfig(resamples=300)
    runs = 150
    for _ in range(runs):
        labels, scores, patients = clustered(rng, patients=120, images=3, shift=shift)
        found = bootstrap_metrics(labels, scores, patients, 0.5, config).estimates
        truths = {
            "auc": (found["auc"], true_auc),
            "sensitivity": (found["sensitivity"], true_sensitivity),
            "delong": (delong_interval(labels, scores, 0.95, patients), true_auc),
            "independent": (delong_interval(labels, scores, 0.95), true_auc),
        }
        for name, (estimate, truth) in truths.items():
            hits[name] += holds(estimate, truth)
    coverage = {name: count / runs for name, count in hits.items()}
    for name in ("auc", "sensitivity", "delong"):
        assert 0.88 <= coverage[name] <= 1.0, coverage
    # What resampling images instead of patients would have claimed.
    assert coverage["independent"] < coverage["delong"] - 0.05, coverage


def test_expanded_tail_is_students_and_nothing_for_many() -> None:
    reach = math.sqrt(10 / 9) * stats.t.ppf(0.975, 9)
    assert expanded_tail(0.95, 10) == pytest.approx(stats.norm.sf(reach))
    assert 0.008 < expanded_tail(0.95, 10) < 0.0095
    assert expanded_tail(0.95, 1_000_000) == pytest.approx(0.025, abs=1e-6)
    assert expanded_tail(0.95, 1) == expanded_tail(0.95, 2) < 1e-9  # one patient is no evidence


def test_few_resamples_make_percentiles_no_narrower() -> None:
    rng = np.random.default_rng(0)
    few = [percentile_interval(rng.random(79), 0.95, 10**9) for _ in range(2000)]
    # The k-th of b uniform values is k / (b + 1) on average: 2 of 79 is the 2.5 % wanted.
    assert np.mean([low for low, _, _ in few]) == pytest.approx(0.025, abs=0.002)
    assert np.mean([high for _, high, _ in few]) == pytest.approx(0.975, abs=0.002)


def test_fewest_patients_are_those_of_the_rarer_class() -> None:
    labels, codes = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 3, 3])
    assert fewest_patients(labels, codes) == 1
    assert fewest_patients(np.ones(6, int), codes) == 4
    assert fewest_patients(np.empty(0, int), np.empty(0, int)) == 0


def test_logit_interval_stays_inside_and_is_symmetric_there() -> None:
    values = np.random.default_rng(0).normal(0.98, 0.01, 500).clip(0, 1)
    low, high, dropped = logit_interval(0.98, np.append(values, np.nan), 0.95, 100)
    assert low is not None
    assert high is not None
    assert 0.9 < low < 0.98 < high < 1
    assert dropped == 1
    odds = [math.log(p / (1 - p)) for p in (low, 0.98, high)]
    assert odds[1] - odds[0] == pytest.approx(odds[2] - odds[1])
    reach = math.sqrt(100 / 99) * stats.t.ppf(0.975, 99)
    assert odds[2] - odds[1] == pytest.approx(reach * values.std() / (0.98 * 0.02))
    assert logit_interval(1.0, np.ones(20), 0.95, 100) == (1.0, 1.0, 0)


def test_2000_resamples_of_5000_images_are_quick_and_small() -> None:
    labels, scores, patients = clustered(np.random.default_rng(8), patients=2500, images=2)
    started = time.process_time()
    bootstrap_metrics(labels, scores, patients, 0.5, IntervalConfig())
    assert time.process_time() - started < 5.0
    tracemalloc.start()
    bootstrap_metrics(labels, scores, patients, 0.5, IntervalConfig(resamples=200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
