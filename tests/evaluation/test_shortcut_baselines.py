"""Shortcut baselines: strong features, patient-wise cross-validation, too few patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.stress import held_out_probabilities, shortcut_baseline
from support.known import known, limits

QUICK = IntervalConfig(resamples=100)


def test_informative_features_are_detected_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 60)
    patients = np.arange(120).astype(str)
    numbers = rng.normal(size=(120, 6))
    noise = shortcut_baseline(numbers, labels, patients, 5, QUICK)
    assert noise is not None
    low, high = limits(noise.auc)
    assert low < 0.5 < high
    numbers[:, 2] = 1e6 * (labels + rng.normal(0, 0.3, 120))  # in bytes, say
    strong = shortcut_baseline(numbers, labels, patients, 5, QUICK)
    assert strong is not None
    assert known(strong.auc.value) > 0.97
    assert (strong.images, strong.patients) == (120, 120)


def test_a_patient_is_never_in_training_and_test_fold() -> None:
    # Each patient's images are alike and of one class, so only the patient predicts the class.
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40).repeat(5)
    patients = np.arange(40).repeat(5).astype(str)
    numbers = rng.normal(size=(40, 60)).repeat(5, axis=0)
    grouped = held_out_probabilities(numbers, labels, patients, 5, 0)
    split_up = held_out_probabilities(numbers, labels, np.arange(200).astype(str), 5, 0)
    assert roc_auc_score(labels, split_up) > 0.95
    assert grouped is not None
    assert roc_auc_score(labels, grouped) < 0.75
    assert np.isfinite(grouped).all()


@pytest.mark.parametrize(("positive", "defined"), [(1, False), (2, True)])
def test_one_patient_of_a_class_is_too_few(positive: int, defined: bool) -> None:
    labels = np.array([0] * 10 + [1] * positive * 2)
    patients = [f"n{k}" for k in range(10)] + [f"i{k // 2}" for k in range(2 * positive)]
    numbers = np.arange(len(labels), dtype=float)[:, None]
    assert (shortcut_baseline(numbers, labels, patients, 5, QUICK) is not None) == defined
