"""Two ways of scoring are compared by what a user would notice."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.inference.certificates import compare, correlation, differences, exceeded_limits

LABELS = np.array([0, 0, 1, 1])
BEFORE = np.array([0.1, 0.4, 0.6, 0.9])


def test_what_changed_is_counted_at_the_threshold() -> None:
    after = np.array([0.1, 0.55, 0.45, 0.9])
    found = compare(LABELS, BEFORE, after, 0.5, [0.9, None, 0.99])
    assert found.images == 4
    assert found.decisions_changed == 2
    assert found.decisions_per_thousand == 500.0
    assert found.largest_difference == pytest.approx(0.15)
    assert found.mean_difference == pytest.approx(0.075)
    assert (found.auc_before, found.auc_after) == (1.0, 0.75)
    assert found.auc_difference == pytest.approx(0.25)
    assert found.heatmap_correlation == 0.9


def test_no_number_is_as_far_as_can_be() -> None:
    after = np.array([0.1, 0.4, np.nan, 0.9])
    np.testing.assert_array_equal(differences(BEFORE, after), [0, 0, 1, 0])
    found = compare(LABELS, BEFORE, after, 0.5, [])
    assert found.decisions_changed == 1
    assert found.auc_difference is None
    assert found.heatmap_correlation is None


def test_one_class_has_no_auc() -> None:
    assert compare(np.ones(4, np.int64), BEFORE, BEFORE, 0.5, []).auc_before is None


def test_maps_are_correlated_unless_both_are_flat() -> None:
    ramp = np.arange(9, dtype=np.float32).reshape(3, 3)
    flat = np.zeros((3, 3), np.float32)
    assert correlation(ramp, 2 * ramp + 1) == pytest.approx(1.0)
    assert correlation(ramp, -ramp) == pytest.approx(-1.0)
    assert correlation(ramp, flat) == 0.0
    assert correlation(flat, flat) is None


def test_only_limits_that_are_passed_are_reported() -> None:
    tests = (("a", 1.0, 0.5), ("b", 0.5, 0.5), ("c", None, 0.1), ("d", 3.0, None))
    assert exceeded_limits(tests) == ("a: found 1, wanted at most 0.5",)
