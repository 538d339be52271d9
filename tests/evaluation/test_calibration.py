from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.linear_model import LogisticRegression

from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation.calibration import (
    Calibration,
    assess_calibration,
    brier_parts,
    fit_calibration,
    logit,
    sigmoid,
)
from pneumoscope.records import Estimate
from support.known import holds


def sample(
    seed: int, slope: float, intercept: float, n: int = 1500
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels that follow sigmoid(slope × logit + intercept)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=n)
    labels = (rng.random(n) < special.expit(slope * logits + intercept)).astype(int)
    return labels, logits, [f"p{i // 2}" for i in range(n)]


@given(st.floats(-800, 800), st.floats(0.1, 5), st.floats(-5, 5))
@settings(max_examples=200, deadline=None)
def test_apply_is_a_stable_sigmoid(value: float, slope: float, intercept: float) -> None:
    calibration = Calibration("platt", slope, intercept)
    found = calibration.apply(np.array([value, -value], dtype=np.float32))
    inside = slope * np.array([value, -value], dtype=np.float32).astype(float) + intercept
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, special.expit(inside), rtol=1e-12, atol=1e-300)


def test_none_leaves_probabilities_alone() -> None:
    probabilities = np.linspace(0.001, 0.999, 50)
    np.testing.assert_allclose(Calibration().apply(logit(probabilities)), probabilities)
    assert np.isfinite(logit([0.0, 1.0])).all()


@pytest.mark.parametrize(
    ("slope", "intercept", "method"),
    [(1.0, 0.0, "none"), (0.4, 0.0, "temperature"), (0.5, -1.5, "platt")],
)
def test_the_simplest_method_that_is_good_enough_is_taken(
    slope: float, intercept: float, method: str
) -> None:
    found = fit_calibration(*sample(1, slope, intercept), seed=0)
    assert found.method == method
    assert found.slope == pytest.approx(slope, abs=0.1)
    assert found.intercept == pytest.approx(intercept, abs=0.2)


def test_platt_agrees_with_logistic_regression_on_smoothed_targets() -> None:
    labels, logits, patients = sample(2, 0.5, -1.5)
    found = fit_calibration(labels, logits, patients, seed=0)
    positives, negatives = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(logits, 2)[:, None],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    assert found.method == "platt"
    assert found.slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found.intercept == pytest.approx(model.intercept_[0], abs=1e-4)


def test_separable_classes_give_a_finite_slope() -> None:
    labels = np.array([0] * 30 + [1] * 30)
    logits = np.where(labels == 1, 0.2, -0.2) + np.linspace(0, 0.1, 60)
    found = fit_calibration(labels, logits, np.arange(60), seed=0)
    assert found.method != "none"
    assert 1.0 < found.slope < 1000
    assert np.isfinite(found.apply(logits)).all()


@pytest.mark.parametrize(
    ("labels", "logits", "patients"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], ["a", "b", "c"]),
        ([0, 1, 1], [0.1, 0.2, 0.3], ["a", "a", "a"]),
        ([], [], []),
    ],
)
def test_too_little_to_learn_from_leaves_logits_alone(
    labels: list[int], logits: list[float], patients: list[str]
) -> None:
    assert fit_calibration(labels, logits, patients, seed=0) == Calibration()


def test_a_ranking_is_never_turned_round() -> None:
    labels, logits, patients = sample(3, -1.0, 0.0)
    assert fit_calibration(labels, logits, patients, seed=0) == Calibration()


def test_patients_stay_together_so_repeats_are_no_evidence() -> None:
    # Five patients copied 200 times: image-wise folds would take any fit for proven.
    rng = np.random.default_rng(4)
    logits = np.repeat(rng.normal(size=6), 200)
    labels = np.repeat([0, 1, 0, 1, 1, 0], 200)
    assert fit_calibration(labels, logits, np.repeat(np.arange(6), 200), seed=0).method == "none"


def test_the_seed_decides() -> None:
    data = sample(5, 0.8, 0.2, n=200)
    assert fit_calibration(*data, seed=3) == fit_calibration(*data, seed=3)


def test_what_are_no_logits_is_rejected() -> None:
    with pytest.raises(DataError, match="1 that are not finite"):
        fit_calibration([0, 1], [0.1, math.inf], ["a", "b"], seed=0)
    with pytest.raises(DataError, match=r"found shape \(1,\)"):
        fit_calibration([0, 1], [0.1], ["a", "b"], seed=0)


def test_calibration_comes_back_from_json() -> None:
    calibration = Calibration("platt", 0.7, -0.3)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"method": "isotonic"},
        {"method": ["platt"]},
        {"slope": 0.0},
        {"slope": "1"},
        {"slope": True},
        {"intercept": math.nan},
        {"intercept": None},
    ],
)
def test_a_broken_calibration_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="calibration: found"):
        Calibration.from_dict(Calibration("platt", 0.7, -0.3).to_dict() | change)


def test_slope_and_intercept_agree_with_logistic_regression() -> None:
    labels, logits, patients = sample(6, 0.6, 0.8)
    found = assess_calibration(labels, sigmoid(logits), patients, 0.95)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels)
    assert found.slope.value == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found.intercept.value == pytest.approx(model.intercept_[0], abs=1e-4)
    # In the large: shifting by it makes mean probability equal prevalence.
    shifted = special.expit(logits + found.in_the_large.value)
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-8)
    assert found.mean_probability == pytest.approx(special.expit(logits).mean())
    assert found.prevalence == labels.mean()


def test_calibration_intervals_cover_the_truth_and_grow_with_clusters() -> None:
    hits = 0
    for seed in range(100):
        labels, logits, _ = sample(seed, 0.6, 0.8, n=300)
        slope = assess_calibration(labels, special.expit(logits), np.arange(300), 0.95).slope
        hits += holds(slope, 0.6)
    assert 88 <= hits <= 100
    data = np.tile(labels, 4), np.tile(special.expit(logits), 4)
    copied = assess_calibration(*data, np.tile(np.arange(300), 4), 0.95).slope
    assert (copied.low, copied.high) == pytest.approx((slope.low, slope.high), rel=1e-3)


def test_where_nothing_can_be_fitted_it_is_undefined() -> None:
    apart = assess_calibration([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.9], np.arange(4), 0.95)
    assert apart.slope == apart.intercept == Estimate(None)
    assert apart.in_the_large.value is not None
    one = assess_calibration([1, 1], [0.1, 0.9], ["a", "b"], 0.95)
    assert one.in_the_large == Estimate(None)
    alone = assess_calibration([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.9], ["a"] * 4, 0.95)
    assert alone.slope.value is not None
    assert alone.slope.low is None
    with pytest.raises(DataError, match="no image"):
        assess_calibration([], [], [], 0.95)


def test_saturated_probabilities_are_no_problem() -> None:
    labels = np.array([0, 1] * 50)
    wrong = np.where(labels == 1, 1.0, 0.0)
    wrong[:2] = [1.0, 0.0]
    found = assess_calibration(labels, wrong, np.arange(100), 0.95)
    assert found.slope.value is not None
    assert 0 < found.slope.value < 1
    right = assess_calibration(labels, labels.astype(float), np.arange(100), 0.95)
    assert right.in_the_large.value == pytest.approx(0.0, abs=1e-3)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=1, max_size=80),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_brier_parts_add_up(rows: list[tuple[int, int]], constant: bool) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([0.3 if constant else step / 10 for _, step in rows])
    parts = brier_parts(labels, scores)
    brier = np.mean((scores - labels) ** 2)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bin
    assert total == pytest.approx(brier, abs=1e-12)
    assert parts.uncertainty == pytest.approx(labels.var(), abs=1e-12)
    if constant:  # one forecast, one bin: Murphy's three parts are all
        assert parts.within_bin == pytest.approx(0.0, abs=1e-12)
        assert parts.reliability == pytest.approx((0.3 - labels.mean()) ** 2, abs=1e-12)
        assert parts.resolution == pytest.approx(0.0, abs=1e-12)


def test_brier_parts_of_few_distinct_forecasts_are_murphys() -> None:
    rng = np.random.default_rng(8)
    scores = rng.choice([0.1, 0.5, 0.9], size=600)
    labels = (rng.random(600) < scores).astype(int)
    parts = brier_parts(labels, scores)
    weight = [np.mean(scores == value) for value in (0.1, 0.5, 0.9)]
    share = [labels[scores == value].mean() for value in (0.1, 0.5, 0.9)]
    gaps = zip(weight, share, (0.1, 0.5, 0.9), strict=True)
    assert parts.reliability == pytest.approx(sum(w * (s - v) ** 2 for w, s, v in gaps))
    spread = zip(weight, share, strict=True)
    assert parts.resolution == pytest.approx(sum(w * (s - labels.mean()) ** 2 for w, s in spread))
    assert parts.within_bin == pytest.approx(0.0, abs=1e-12)
