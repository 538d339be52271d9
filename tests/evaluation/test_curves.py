from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import resampled_weights
from pneumoscope.evaluation.metrics import (
    Curve,
    Reliability,
    ScoreHistogram,
    reliability,
    roc_and_precision_recall,
    score_histogram,
)
from pneumoscope.evaluation.proportions import patient_codes, wilson_interval

FEW = IntervalConfig(resamples=60)


def sample(seed: int, n: int = 400, decimals: int = 9) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.6).astype(int)
    scores = np.round(1 / (1 + np.exp(-(rng.normal(size=n) + 2 * labels - 1))), decimals)
    return labels, scores, [f"p{i // 2}" for i in range(n)]


def reference_roc(labels: np.ndarray, scores: np.ndarray, grid: Sequence[float]) -> list[float]:
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    values = []
    for x in grid:
        reached = tpr[fpr <= x + 1e-12].max()
        before = fpr[fpr <= x + 1e-12].max()
        later = fpr > x + 1e-12
        if later.any():
            way = (x - before) / (fpr[later].min() - before)
            reached += way * (tpr[later].min() - reached)
        values.append(reached)
    return values


def reference_precision(
    labels: np.ndarray, scores: np.ndarray, grid: Sequence[float]
) -> list[float]:
    precision, recall, _ = reference.precision_recall_curve(labels, scores)
    precision, recall = precision[::-1][1:], recall[::-1][1:]  # rising recall, without (0, 1)
    return [precision[np.flatnonzero(recall >= max(x - 1e-12, 1e-9))[0]] for x in grid]


@pytest.mark.parametrize("decimals", [9, 1])
def test_curves_agree_with_scikit_learn(decimals: int) -> None:
    labels, scores, patients = sample(1, decimals=decimals)
    roc, pr = roc_and_precision_recall(labels, scores, patients, FEW)
    assert roc is not None
    assert pr is not None
    assert roc.x == tuple(np.linspace(0, 1, 101))
    np.testing.assert_allclose(roc.y, reference_roc(labels, scores, roc.x), atol=1e-9)
    np.testing.assert_allclose(pr.y, reference_precision(labels, scores, pr.x), atol=1e-9)


def test_area_under_the_curves_is_auc_and_average_precision() -> None:
    labels, scores, patients = sample(2, n=4000)
    roc, pr = roc_and_precision_recall(labels, scores, patients, IntervalConfig(resamples=2))
    assert roc is not None
    assert pr is not None
    auc = reference.roc_auc_score(labels, scores)
    precision = reference.average_precision_score(labels, scores)
    assert reference.auc(roc.x, roc.y) == pytest.approx(auc, abs=2e-3)
    assert reference.auc(pr.x, pr.y) == pytest.approx(precision, abs=2e-3)


def test_a_grid_point_on_a_vertical_step_takes_its_upper_end() -> None:
    # Half of 58 negatives, reckoned as 50 steps of 0.58, is 29 less a rounding error.
    labels = np.array([0] * 58 + [1] * 2)
    ranking = np.linspace(0.9, 0.1, 58)
    scores = np.concatenate([ranking, [0.95, (ranking[28] + ranking[29]) / 2]])
    roc, _ = roc_and_precision_recall(labels, scores, np.arange(60), FEW)
    assert roc is not None
    assert roc.y[0] == roc.y[48] == 0.5
    assert roc.y[50] == 1.0


def test_a_recall_just_reached_takes_its_own_precision() -> None:
    # Half of 14 positives, reckoned as 50 steps of 0.14, is 7 and a rounding error.
    labels = np.array([1] * 7 + [0] * 7 + [1] * 7)
    scores = np.linspace(0.9, 0.1, 21)
    _, pr = roc_and_precision_recall(labels, scores, np.arange(21), FEW)
    assert pr is not None
    assert pr.y[50] == 1.0
    assert pr.y[51] == pytest.approx(8 / 15)


def test_bands_come_from_the_same_resamples_one_by_one() -> None:
    labels, scores, patients = sample(3, n=60, decimals=1)
    config = IntervalConfig(level=0.8, resamples=40, seed=5)
    roc, pr = roc_and_precision_recall(labels, scores, patients, config)
    assert roc is not None
    assert pr is not None
    codes, count = patient_codes(patients, 60)
    roc_rows, pr_rows = [], []
    for weights in np.concatenate(list(resampled_weights(codes, count, config))):
        images = np.repeat(np.arange(60), weights.astype(int))
        roc_rows.append(reference_roc(labels[images], scores[images], roc.x))
        pr_rows.append(reference_precision(labels[images], scores[images], pr.x))
    for curve, rows in ((roc, roc_rows), (pr, pr_rows)):
        low, high = np.quantile(rows, [0.1, 0.9], axis=0)
        apart = high > low  # elsewhere Wilson's limits stand
        np.testing.assert_allclose(np.array(curve.low)[apart], low[apart], atol=1e-9)
        np.testing.assert_allclose(np.array(curve.high)[apart], high[apart], atol=1e-9)


def test_a_flawless_model_has_a_band_all_the_same() -> None:
    labels = np.array([0] * 20 + [1] * 20)
    roc, pr = roc_and_precision_recall(labels, labels * 1.0, np.arange(40), FEW)
    assert roc is not None
    assert pr is not None
    wanted = wilson_interval(20, 20, FEW.level).low
    assert roc.low[:-1] == pytest.approx([wanted] * 100)
    assert roc.low[-1] == roc.high[-1] == 1.0  # at no specificity everything is called
    assert pr.low[-1] == pytest.approx(wanted)
    assert max(pr.low) == pr.low[-1]  # fewer patients, less certainty
    assert set(pr.high) == {1.0}


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_curves_stay_in_bounds_whatever_comes(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([step for _, step in rows]) / 8
    found = roc_and_precision_recall(labels, scores, np.arange(len(rows)), FEW)
    assert (found[0] is None) == (len(set(labels)) < 2)
    assert (found[1] is None) == (labels.sum() == 0)
    for curve in found:
        if curve is not None:
            for side in (curve.y, curve.low, curve.high):
                assert all(0 <= value <= 1 for value in side)
            assert all(low <= high for low, high in zip(curve.low, curve.high, strict=True))
    if found[0] is not None:
        assert list(found[0].y) == sorted(found[0].y)
        assert found[0].y[-1] == 1.0


def test_one_patient_has_a_curve_without_a_band() -> None:
    roc, pr = roc_and_precision_recall([0, 1], [0.2, 0.7], ["a", "a"], FEW)
    assert roc is not None
    assert pr is not None
    assert roc.low == roc.high == pr.low == pr.high == ()
    assert set(roc.y) == set(pr.y) == {1.0}


def test_reliability_bins_are_equal_rise_and_carry_wilson_intervals() -> None:
    labels, scores, _ = sample(4, n=300)
    found = reliability(labels, scores, 0.9)
    assert found.images == (20,) * 15
    assert list(found.probability) == sorted(found.probability)
    first = np.argsort(scores)[:20]
    assert found.probability[0] == pytest.approx(scores[first].mean())
    assert found.share[0] == pytest.approx(labels[first].mean())
    expected = wilson_interval(int(labels[first].sum()), 20, 0.9)
    assert (found.low[0], found.high[0]) == (expected.low, expected.high)


def test_histogram_counts_every_image_of_each_class_once() -> None:
    labels, scores, _ = sample(5)
    scores[:4] = [0.0, 1.0, 0.05, 0.95]
    labels[:4] = [0, 1, 0, 1]
    found = score_histogram(labels, scores)
    assert sum(found.normal) == (labels == 0).sum()
    assert sum(found.pneumonia) == (labels == 1).sum()
    assert len(found.normal) == len(found.pneumonia) == 20
    assert score_histogram([0, 1], [0.0, 1.0]).pneumonia == (*(0,) * 19, 1)
    assert score_histogram([0], [0.05]).normal[1] == 1


def test_records_come_back_from_json() -> None:
    labels, scores, patients = sample(6)
    roc, _ = roc_and_precision_recall(labels, scores, patients, FEW)
    assert roc is not None
    rel, hist = reliability(labels, scores, 0.95), score_histogram(labels, scores)
    assert Curve.from_dict(json.loads(json.dumps(roc.to_dict()))) == roc
    assert Reliability.from_dict(json.loads(json.dumps(rel.to_dict()))) == rel
    assert ScoreHistogram.from_dict(json.loads(json.dumps(hist.to_dict()))) == hist
