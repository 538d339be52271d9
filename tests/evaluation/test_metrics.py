from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.evaluation import metrics
from pneumoscope.evaluation.ranked_metrics import (
    METRIC_NAMES,
    RankedScores,
    equal_mass_bins,
    metric_values,
)

THRESHOLDED = {
    "accuracy": reference.accuracy_score,
    "balanced_accuracy": reference.balanced_accuracy_score,
    "sensitivity": reference.recall_score,
    "specificity": lambda y, c: reference.recall_score(y, c, pos_label=0),
    "ppv": reference.precision_score,
    "npv": lambda y, c: reference.precision_score(y, c, pos_label=0),
    "f1": reference.f1_score,
}
RANKED = {
    "auc": reference.roc_auc_score,
    "average_precision": reference.average_precision_score,
    "brier": reference.brier_score_loss,
}


def sample(seed: int, n: int = 300, decimals: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.6).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=n) + 2 * labels - 1)))
    return labels, np.round(scores, decimals)


# Multiples of 1/16, so that ties are common and 1 - p is exact.
@st.composite
def both_classes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=60))]
    steps = draw(st.lists(st.integers(0, 16), min_size=len(labels), max_size=len(labels)))
    return np.array(labels), np.array(steps) / 16


@pytest.mark.parametrize("decimals", [9, 1])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", THRESHOLDED)
def test_values_agree_with_scikit_learn(name: str, threshold: float, decimals: int) -> None:
    labels, scores = sample(1, decimals=decimals)
    called = (scores >= threshold).astype(int)
    ours = metrics.point_metrics(labels, scores, threshold)[name]
    assert ours == pytest.approx(THRESHOLDED[name](labels, called), abs=1e-12)


@pytest.mark.parametrize("decimals", [9, 1])
@pytest.mark.parametrize("name", RANKED)
def test_rankings_agree_with_scikit_learn(name: str, decimals: int) -> None:
    labels, scores = sample(2, decimals=decimals)
    ours = metrics.point_metrics(labels, scores, 0.5)[name]
    assert ours == pytest.approx(RANKED[name](labels, scores), abs=1e-12)


def test_probability_at_the_threshold_is_pneumonia() -> None:
    matrix = metrics.confusion_matrix([0, 1, 1, 0], [0.5, 0.5, 0.49, 0.1], 0.5)
    assert matrix.to_dict() == {"tn": 1, "fp": 1, "fn": 1, "tp": 1}


@given(both_classes())
@settings(max_examples=150, deadline=None)
def test_auc_is_the_share_of_pairs_won(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    pairs = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert metrics.auc(labels, scores) == pytest.approx(float(pairs), abs=1e-12)


@given(both_classes())
@settings(max_examples=100, deadline=None)
def test_rankings_ignore_monotone_transforms(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    bent = scores**3 / 2 + 0.1
    ours, theirs = (metrics.point_metrics(labels, each, 0.5) for each in (scores, bent))
    for name in ("auc", "average_precision"):
        assert ours[name] == theirs[name]


@given(both_classes())
@settings(max_examples=100, deadline=None)
def test_swapping_the_classes_mirrors_everything(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    swapped, mirrored = 1 - labels, 1 - scores
    threshold = 0.5 + 1 / 64  # between the grid's scores, so that >= turns into <
    ours = metrics.point_metrics(labels, scores, threshold)
    theirs = metrics.point_metrics(swapped, mirrored, 1 - threshold)
    for name, other in {
        "sensitivity": "specificity",
        "ppv": "npv",
        "auc": "auc",
        "brier": "brier",
    }.items():
        assert ours[name] == pytest.approx(theirs[other], abs=1e-12, nan_ok=True)
    assert metrics.auc(swapped, scores) == pytest.approx(1 - metrics.auc(labels, scores), abs=1e-12)


@given(both_classes(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_images_does_not_matter(
    data: tuple[np.ndarray, np.ndarray], random: Random
) -> None:
    labels, scores = data
    order = list(range(len(labels)))
    random.shuffle(order)
    first = metric_values(RankedScores.of(labels, scores).counts_once(), 0.5)
    second = metric_values(RankedScores.of(labels[order], scores[order]).counts_once(), 0.5)
    for name in METRIC_NAMES:
        np.testing.assert_allclose(first[name], second[name], atol=1e-12)


def test_metric_names_are_the_contract() -> None:
    values = metrics.point_metrics(*sample(3), 0.5)
    assert tuple(values) == METRIC_NAMES
    assert values["auc"] == metrics.auc(*sample(3))


@pytest.mark.parametrize(
    ("labels", "scores", "undefined"),
    [
        ([], [], METRIC_NAMES),
        ([1, 1], [0.1, 0.9], ("balanced_accuracy", "specificity", "auc")),
        ([0, 0], [0.1, 0.9], ("balanced_accuracy", "sensitivity", "auc", "average_precision")),
        ([0, 1], [0.1, 0.2], ("ppv",)),
        ([0, 1], [0.8, 0.9], ("npv",)),
        (
            [0, 0],
            [0.1, 0.2],
            ("balanced_accuracy", "sensitivity", "ppv", "f1", "auc", "average_precision"),
        ),
    ],
)
def test_undefined_is_nan(
    labels: list[int], scores: list[float], undefined: tuple[str, ...]
) -> None:
    found = metrics.point_metrics(labels, scores, 0.5)
    assert {name for name, value in found.items() if math.isnan(value)} == {*undefined, "ece"}
    assert math.isnan(metrics.auc(labels, scores)) == ("auc" in undefined)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 2], [0.1, 0.2], "found 2, wanted 0"),
        ([0, 1], [0.1, 1.2], "found 1.2 at position 1"),
        ([0, 1], [math.nan, 0.2], "found nan at position 0"),
        ([0, 1], [0.2], r"found shape \(1,\), wanted \(2,\)"),
        ([[0, 1]], [[0.1, 0.2]], r"found shape \(1, 2\)"),
    ],
)
def test_what_are_no_labels_or_probabilities_is_rejected(
    labels: list[Any], scores: list[Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        metrics.auc(labels, scores)


def test_ece_of_distinct_scores_against_its_formula() -> None:
    labels, scores = sample(4, n=300)
    assert len(set(scores)) == 300
    order = np.argsort(-scores)
    total = 0.0
    for part in np.split(order, 15):
        share = labels[part].mean()
        noise = share * (1 - share) / (len(part) - 1)
        total += math.sqrt(max((scores[part].mean() - share) ** 2 - noise, 0)) * len(part) / 300
    assert metrics.point_metrics(labels, scores, 0.5)["ece"] == pytest.approx(total, abs=1e-12)


def test_ece_of_one_bin_is_undefined() -> None:
    labels, scores = sample(4, n=40)
    assert 0.0 <= metrics.point_metrics(labels, scores, 0.5)["ece"] <= 1.0
    assert math.isnan(metrics.point_metrics(labels[:39], scores[:39], 0.5)["ece"])


def test_ece_of_constant_scores_is_the_debiased_gap() -> None:
    labels = np.array([1] * 30 + [0] * 70)
    expected = math.sqrt(0.2**2 - 0.3 * 0.7 / 99)
    assert metrics.point_metrics(labels, np.full(100, 0.5), 0.5)["ece"] == pytest.approx(expected)


def test_ece_is_nearly_unbiased_for_a_perfect_forecast() -> None:
    rng = np.random.default_rng(5)
    ours, plain = [], []
    for _ in range(60):
        scores = rng.random(600)
        labels = (rng.random(600) < scores).astype(int)
        ours.append(metrics.point_metrics(labels, scores, 0.5)["ece"])
        bins = equal_mass_bins(RankedScores.of(labels, scores).counts_once())
        plain.append(float((bins.mass * np.abs(bins.gaps())).sum() / 600))
    assert np.mean(plain) > 0.04
    assert np.mean(ours) < 0.5 * np.mean(plain)


@given(both_classes())
@settings(max_examples=100, deadline=None)
def test_bins_hold_every_image_once_and_never_part_ties(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, scores = (np.repeat(values, 9) for values in data)
    bins = equal_mass_bins(RankedScores.of(labels, scores).counts_once())
    assert bins.mass.sum() == len(labels)
    assert bins.positives.sum() == labels.sum()
    assert bins.score_sum.sum() == pytest.approx(scores.sum())
    assert np.count_nonzero(bins.mass) <= min(15, max(1, len(labels) // 20), len(set(scores)))
    sizes = {score: np.count_nonzero(scores == score) for score in set(scores)}
    assert all(mass == 0 or mass >= min(sizes.values()) for mass in bins.mass[0])
