"""Where a count is 0 or all, every interval that is shown anywhere has a width that holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import CompareConfig, IntervalConfig
from pneumoscope.evaluation.abstention import risk_coverage
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.decision import decision_curve
from pneumoscope.evaluation.evaluate import Evaluation, evaluate, from_metrics_json
from pneumoscope.evaluation.groups import by_group
from pneumoscope.evaluation.intervals import bootstrap_metrics, bootstrap_share
from pneumoscope.evaluation.plan import threshold_table
from pneumoscope.evaluation.proportions import auc_interval, ratio_limits, wilson_interval
from pneumoscope.evaluation.stress import compare_paired
from pneumoscope.records import Estimate

CONFIG = IntervalConfig(resamples=60)
Case = tuple[np.ndarray, np.ndarray, list[str]]


def _of(normal: list[float], positive: list[float], images: int = 1) -> Case:
    """Labels, scores and patients; every score of each class is a patient with so many images."""
    labels = np.repeat([0] * len(normal) + [1] * len(positive), images)
    scores = np.repeat([*normal, *positive], images)
    return labels, scores, [f"p{k // images}" for k in range(labels.size)]


CASES: dict[str, Callable[[], Case]] = {
    "20+20 all right": lambda: _of([0.1] * 20, [0.9] * 20),
    "2+2 all right": lambda: _of([0.1] * 2, [0.9] * 2),
    "1+1 all right": lambda: _of([0.1], [0.9]),
    "20+20 all right, other scores": lambda: _of(
        list(np.linspace(0, 0.4, 20)), list(np.linspace(0.6, 1, 20))
    ),
    "20+20 exactly 0 and 1": lambda: _of([0.0] * 20, [1.0] * 20),
    "20+20 all wrong": lambda: _of([0.9] * 20, [0.1] * 20),
    "all called pneumonia": lambda: _of([0.8] * 20, [0.9] * 20),
    "all called normal": lambda: _of([0.1] * 20, [0.2] * 20),
    "one score for all": lambda: _of([0.7] * 20, [0.7] * 20),
    "no miss, some alarms": lambda: _of([0.1] * 15 + [0.9] * 5, [0.9] * 20),
    "no alarm, some misses": lambda: _of([0.1] * 20, [0.9] * 15 + [0.2] * 5),
    "5+5 patients of 8 images": lambda: _of([0.1] * 5, [0.9] * 5, 8),
    "no normal image": lambda: _of([], [0.9] * 20),
    "no pneumonia image": lambda: _of([0.1] * 20, []),
}


def _flat(estimates: Mapping[Any, Estimate]) -> list[str]:
    """Names of what has a value, and no interval of some width that holds it."""
    return [
        name
        for name, found in estimates.items()
        if found.value is not None
        and not (
            found.low is not None
            and found.high is not None
            and found.low <= found.value + 1e-9
            and found.value <= found.high + 1e-9
            and found.high - found.low > 0.01
        )
    ]


@pytest.mark.parametrize("name", CASES)
def test_no_metric_collapses(name: str) -> None:
    labels, scores, patients = CASES[name]()
    found = evaluate(labels, scores, patients, 0.5, "given", CONFIG)
    assert _flat(dict(found.metrics)) == []
    assert from_metrics_json(found.to_metrics_json()) == found
    assert "Wilson" in found.to_metrics_json()["interval"]["method"]
    curve = found.roc
    if curve is not None:
        widths = np.subtract(curve.high, curve.low)[:-1]
        assert widths.min() > 0.001


def test_flawless_numbers_by_hand() -> None:
    """20 of 20 is 0.839 to 1 (Wilson); the AUC's limit is 0.899 (Newcombe 2006, method 5)."""
    found = _evaluated("20+20 all right").metrics
    low = {name: round(estimate.low or 0, 4) for name, estimate in found.items()}
    assert low["sensitivity"] == low["specificity"] == low["ppv"] == low["npv"] == 0.8389
    assert low["accuracy"] == 0.9124
    assert low["auc"] == 0.8987
    assert {estimate.high for name, estimate in found.items() if name not in ("brier", "ece")} == {
        1.0
    }
    two = _evaluated("2+2 all right").metrics
    assert two["sensitivity"].low == pytest.approx(0.3424, abs=1e-4)


def test_patients_count_and_not_their_images() -> None:
    """Five patients with eight images each are no more than five images."""
    found = _evaluated("5+5 patients of 8 images").metrics["sensitivity"]
    limit = wilson_interval(5, 5, 0.95).low
    assert found.low is not None
    assert limit is not None
    assert found.low <= limit


def _evaluated(name: str) -> Evaluation:
    labels, scores, patients = CASES[name]()
    return evaluate(labels, scores, patients, 0.5, "given", CONFIG)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("no ")])
def test_no_number_of_a_plan_collapses(name: str) -> None:
    labels, scores, patients = CASES[name]()
    table = threshold_table(labels, scores, patients, CONFIG, keep=0.5)
    for k in range(table.thresholds.size):
        row = table.row(k, 0.1)
        shown = {
            field: getattr(row, field)
            for field in ("sensitivity", "specificity", "ppv", "npv", "missed", "false_alarms")
        }
        assert _flat(shown) == [], table.thresholds[k]


def test_missed_per_thousand_by_hand() -> None:
    labels, scores, patients = CASES["20+20 all right"]()
    table = threshold_table(labels, scores, patients, CONFIG, keep=0.5)
    row = table.row(table.nearest(0.5), 0.1)
    assert row.missed.value == 0
    assert row.missed.high == pytest.approx(100 * (1 - 0.8389), abs=0.01)
    assert row.false_alarms.high == pytest.approx(900 * (1 - 0.8389), abs=0.05)
    # With 0.161 of the negatives and all positives predicted positive, the PPV is 0.408.
    assert row.ppv.low == pytest.approx(
        0.1 / (0.1 + 0.9 * 0.1611 / np.sqrt(0.8389 * 1.1611)), abs=1e-3
    )
    assert row.npv.high == 1.0


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("no ")])
def test_no_number_of_a_stress_test_collapses(name: str) -> None:
    labels, scores, patients = CASES[name]()
    moved = np.clip(scores + np.linspace(0, 1e-4, scores.size), 0, 1)
    found = compare_paired(labels, patients, scores, moved, 0.5, CONFIG)
    for one in (found.plain, found.changed):
        assert _flat(one) == []
    if name != "one score for all":  # scores that are moved apart do change that AUC
        assert [m for m in _flat(found.difference) if m != "auc"] == []


def test_a_flawless_model_may_fall_under_change() -> None:
    """Nothing changed in 20 images: the fall may still be what 20 images can't show."""
    labels, scores, patients = CASES["20+20 all right"]()
    found = compare_paired(labels, patients, scores, scores * 0.99, 0.5, CONFIG).difference
    assert found["sensitivity"].low == pytest.approx(-0.1611, abs=1e-3)  # Tango, 0 of 20
    assert found["auc"].low == pytest.approx(-0.1013, abs=1e-3)


def test_no_difference_of_a_comparison_collapses() -> None:
    labels, scores, patients = CASES["20+20 all right"]()
    found = compare(labels, (scores, scores * 0.98), (0.5, 0.5), patients, CompareConfig(fewest=2))
    shown = {
        name: gap
        for name, gap in found.differences.two_sided.items()
        if name not in ("brier", "ece")
    }
    assert _flat(shown) == []
    assert not found.passed  # 20 patients do not show that nothing is lost
    assert {check.name: round(check.lower or 0, 3) for check in found.checks}["auc"] < -0.05


def test_groups_and_shares_and_curves() -> None:
    labels, scores, patients = CASES["20+20 all right"]()
    (column,) = by_group(labels, scores, patients, 0.5, {"site": ["a", "b"] * 20}, 0.95)
    for group in column.groups:
        assert _flat({"auc": group.auc, "sensitivity": group.sensitivity, **group.gaps}) == []
    assert bootstrap_share([True] * 20, np.arange(20), CONFIG) == wilson_interval(20, 20, 0.95)
    assert bootstrap_share([0.0] * 20, np.arange(20), CONFIG) == wilson_interval(0, 20, 0.95)
    assert _flat({"area": risk_coverage(labels, scores, patients, 0.5, CONFIG).area}) == []
    curve = decision_curve(labels, scores, patients, 0.3, CONFIG)
    assert np.subtract(curve.high, curve.low)[10:90].min() > 0.01


@pytest.mark.parametrize(("auc", "n"), [(0.95, 30), (0.99, 30), (0.8, 20)])
def test_the_interval_of_an_auc_holds(auc: float, n: int) -> None:
    """Of 300 samples of two normal populations at least 93 % hold the truth."""
    from statistics import NormalDist

    apart = NormalDist().inv_cdf(auc) * np.sqrt(2)
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        positive, negative = rng.normal(apart, 1, n), rng.normal(0, 1, n)
        found = auc_interval(float((positive[:, None] > negative).mean()), n, n, 0.95)
        held += (found.low or 0) <= auc <= (found.high or 0)
    assert held >= 279


def test_ratios_by_hand() -> None:
    """A numerator of 0: the upper limit is u1 / sqrt(l2 (2 θ2 - l2))."""
    low, high = ratio_limits(
        tuple(np.array([[0.0], [0.0], [0.16]])), tuple(np.array([[1.0], [0.84], [1.0]]))
    )
    assert low[0] == 0.0
    assert high[0] == pytest.approx(0.16 / np.sqrt(0.84 * 1.16))


def test_inner_values_keep_the_bootstrap() -> None:
    labels, scores, patients = _of([0.1] * 18 + [0.8] * 2, [0.9] * 17 + [0.3] * 3)
    found = bootstrap_metrics(
        labels, scores, patients, 0.5, IntervalConfig(resamples=500)
    ).estimates
    assert found["sensitivity"].low != wilson_interval(17, 20, 0.95).low
    assert found["sensitivity"].low == pytest.approx(0.68, abs=0.05)
