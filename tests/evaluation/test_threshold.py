from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.config import ThresholdConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.operating_point import choose_threshold

Rule = Literal["balanced_accuracy", "sensitivity", "specificity"]


@st.composite
def both_classes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=40))]
    steps = draw(st.lists(st.integers(0, 12), min_size=len(labels), max_size=len(labels)))
    return np.array(labels), np.array(steps) / 12


def shares(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float]:
    called = scores >= threshold
    return float(called[labels == 1].mean()), float((~called)[labels == 0].mean())


def all_pairs(labels: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    cuts = [0.0, *(np.unique(scores) + 1e-6)]
    return [shares(labels, scores, cut) for cut in cuts if cut <= 1.0]


def test_separable_classes_are_parted_in_the_middle_of_the_gap() -> None:
    chosen = choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], ThresholdConfig())
    assert chosen.value == pytest.approx(0.5)
    assert (chosen.sensitivity, chosen.specificity) == (1.0, 1.0)
    assert chosen.rule == "highest balanced accuracy"


def test_among_equal_plateaus_the_widest_wins() -> None:
    # Balanced accuracy 0.75 both from 0.1 to 0.2 and from 0.5 to 0.9.
    labels, scores = [0, 1, 0, 1], [0.1, 0.2, 0.5, 0.9]
    chosen = choose_threshold(labels, scores, ThresholdConfig())
    assert chosen.value == pytest.approx(0.7)
    assert (chosen.sensitivity, chosen.specificity) == (0.5, 1.0)


def test_touching_plateaus_count_as_one() -> None:
    # At 0.5 stand one of each class, so balanced accuracy is the same on both sides of it.
    labels, scores = [0, 0, 1, 1, 0, 1], [0.2, 0.5, 0.5, 0.6, 0.1, 0.9]
    chosen = choose_threshold(labels, scores, ThresholdConfig())
    assert chosen.value == pytest.approx(0.4)
    assert chosen.sensitivity == 1.0
    assert chosen.specificity == pytest.approx(2 / 3)


@given(both_classes(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_no_threshold_does_better_in_its_worst_case(
    data: tuple[np.ndarray, np.ndarray], number: int
) -> None:
    labels, scores = data
    conditions = np.arange(len(labels)) % number

    def least(threshold: float) -> float:
        called = scores >= threshold
        parts = [
            (called[of] if label else ~called[of]).mean()
            for k in range(number)
            for label in (0, 1)
            if (of := (labels == label) & (conditions == k)).any()
        ]
        return float(min(parts))

    chosen = choose_threshold(labels, scores, ThresholdConfig("worst_case"), conditions)
    cuts = [0.0, *(np.unique(scores) + 1e-6)]
    assert least(chosen.value) == pytest.approx(max(least(cut) for cut in cuts if cut <= 1.0))
    found = shares(labels, scores, chosen.value)
    assert (chosen.sensitivity, chosen.specificity) == pytest.approx(found)


def test_one_condition_moves_the_threshold_to_where_both_classes_suffer_alike() -> None:
    # As they are the classes part at 0.5; shifted up by 0.4 only from 0.6 up.
    labels = np.array([0, 0, 1, 1] * 2)
    scores = np.array([0.1, 0.2, 0.8, 0.9, 0.5, 0.6, 0.95, 0.99])
    conditions = np.repeat([0, 1], 4)
    chosen = choose_threshold(labels, scores, ThresholdConfig("worst_case"), conditions)
    assert chosen.value == pytest.approx(0.7)
    assert chosen.rule == "highest minimum of sensitivity and specificity over 2 conditions"
    alone = choose_threshold(labels[:4], scores[:4], ThresholdConfig("worst_case"))
    assert alone.value == pytest.approx(0.5)
    assert alone.rule == "highest minimum of sensitivity and specificity"


@given(both_classes())
@settings(max_examples=200, deadline=None)
def test_balanced_accuracy_is_never_beaten(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    chosen = choose_threshold(labels, scores, ThresholdConfig())
    found = shares(labels, scores, chosen.value)
    assert (chosen.sensitivity, chosen.specificity) == pytest.approx(found)
    assert sum(found) == pytest.approx(max(sum(pair) for pair in all_pairs(labels, scores)))
    assert 0.0 <= chosen.value <= 1.0


@given(both_classes(), st.sampled_from(["sensitivity", "specificity"]), st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_targets_are_reached_with_the_best_of_the_other(
    data: tuple[np.ndarray, np.ndarray], rule: Rule, tenths: int
) -> None:
    labels, scores = data
    held, other = (0, 1) if rule == "sensitivity" else (1, 0)
    target = tenths / 10
    reaching = [p[other] for p in all_pairs(labels, scores) if p[held] >= target - 1e-12]
    config = ThresholdConfig(rule, target)
    if max(reaching, default=0.0) == 0.0:
        with pytest.raises(DataError, match=f"'{rule}': the target"):
            choose_threshold(labels, scores, config)
        return
    chosen = choose_threshold(labels, scores, config)
    found = shares(labels, scores, chosen.value)
    assert found[held] >= target - 1e-12
    assert found[other] == pytest.approx(max(reaching))
    assert (chosen.sensitivity, chosen.specificity) == pytest.approx(found)


def test_neighbouring_floats_are_still_parted() -> None:
    low = 0.5
    high = math.nextafter(low, 1.0)
    chosen = choose_threshold([0, 1], [low, high], ThresholdConfig())
    assert (chosen.sensitivity, chosen.specificity) == (1.0, 1.0)
    assert low < chosen.value <= high


def test_rule_texts_and_tie_breaking_of_targets() -> None:
    labels, scores = [0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.25, 0.6, 0.8, 0.9]
    sensitive = choose_threshold(labels, scores, ThresholdConfig("sensitivity", 0.75))
    assert sensitive.value == pytest.approx(0.45)
    assert sensitive.rule == "sensitivity at least 0.75, then highest specificity"
    specific = choose_threshold(labels, scores, ThresholdConfig("specificity", 1.0))
    assert specific.value == pytest.approx(0.75)
    assert (specific.sensitivity, specific.specificity) == (0.5, 1.0)
    assert specific.rule == "specificity at least 1, then highest sensitivity"


def test_fixed_takes_the_target_even_with_one_class() -> None:
    chosen = choose_threshold([1, 1], [0.3, 0.5], ThresholdConfig("fixed", 0.5))
    assert chosen.value == 0.5
    assert chosen.rule == "fixed at 0.5"
    assert chosen.sensitivity == 0.5
    assert chosen.specificity is None


@pytest.mark.parametrize("rule", ["balanced_accuracy", "sensitivity", "specificity"])
def test_one_class_is_rejected(rule: Rule) -> None:
    with pytest.raises(DataError, match=r"2 PNEUMONIA and 0 NORMAL.*both classes.*'fixed'"):
        choose_threshold([1, 1], [0.3, 0.5], ThresholdConfig(rule, 0.9))


def test_unreachable_targets_say_what_is_possible() -> None:
    labels, scores = [0, 0, 1, 1], [0.2, 0.9, 0.1, 0.6]
    with pytest.raises(DataError, match=r"0\.9 is only reached by predicting PNEUMONIA.*0\.5 is"):
        choose_threshold(labels, scores, ThresholdConfig("sensitivity", 0.9))
    with pytest.raises(DataError, match=r"predicting NORMAL for all \(a sensitivity of 0\)"):
        choose_threshold(labels, scores, ThresholdConfig("specificity", 0.9))


@pytest.mark.parametrize(("rule", "target"), [("sensitivity", 1.2), ("specificity", 0.0)])
def test_targets_that_are_no_shares_are_wrong_usage(rule: Rule, target: float) -> None:
    with pytest.raises(UsageError, match=f"found {target}, wanted a share"):
        choose_threshold([0, 1], [0.1, 0.9], ThresholdConfig(rule, target))
    with pytest.raises(UsageError, match="wanted a probability"):
        choose_threshold([0, 1], [0.1, 0.9], ThresholdConfig("fixed", 1.2))
