"""Choose the operating point: the probability from which PNEUMONIA is predicted.

Choose it on validation images, never on test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import ThresholdConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.ranked_metrics import (
    FloatArray,
    IntArray,
    RankedScores,
    checked_scores,
    confusion_counts,
)

_TOLERANCE = 1e-12
"""Rounding error within which a rate counts as reaching the target."""


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """An operating point and its performance on the images it was chosen on.

    Attributes:
        value: PNEUMONIA is predicted if probability >= value.
        rule: how it was chosen, in words.
        sensitivity: on these images; `None` without PNEUMONIA images (rule `fixed` only).
        specificity: on these images; `None` without NORMAL images (rule `fixed` only).
    """

    value: float
    rule: str
    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True, slots=True)
class _Cuts:
    """All distinct ways to split the images by a threshold, from all PNEUMONIA to none.

    A threshold in (low, high] gives `tp` and `tn`; all arrays are (c,), in order of the threshold.
    """

    low: list[float]
    high: list[float]
    tp: IntArray
    tn: IntArray
    positives: int
    negatives: int


def choose_threshold(
    labels: ArrayLike,
    probabilities: ArrayLike,
    config: ThresholdConfig,
    conditions: ArrayLike | None = None,
) -> ChosenThreshold:
    """Choose the operating point by the configured rule.

    The threshold is midway between two adjacent distinct scores, or between an outermost score and
    0 or 1. Among equally good thresholds, `balanced_accuracy` and `worst_case` take the middle of
    the widest plateau; the two target rules have a unique best pair of sensitivity and specificity.
    `worst_case` is the maximin rule (Wald, "Statistical decision functions which minimize the
    maximum risk", Ann Math 1945;46:265): it maximises the lowest rate of correct predictions over
    all conditions and both classes.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        config: the rule, and its target if it has one.
        conditions: int, (n,), the condition under which each score was measured, for `worst_case`;
            by default one condition for all.

    Raises:
        DataError: a class is missing (except for `fixed`), the target is reached only by predicting
            one class for all images, shapes differ, or values are out of range.
        UsageError: the target is out of range.
    """
    truth, scores = checked_scores(labels, probabilities)
    if config.rule == "fixed":
        return _fixed(truth, RankedScores.of(truth, scores), config.target)
    cuts = _cuts(truth, RankedScores.of(truth, scores), config)
    if config.rule == "balanced_accuracy":
        # In integers, so that equal balanced accuracies compare equal.
        low, high, best = _widest_plateau(cuts, cuts.tp * cuts.negatives + cuts.tn * cuts.positives)
        rule = "highest balanced accuracy"
    elif config.rule == "worst_case":
        given = np.zeros(truth.shape, np.int64) if conditions is None else np.asarray(conditions)
        low, high, best = _widest_plateau(cuts, _least_shares(truth, scores, given, cuts))
        number = len(np.unique(given))
        rule = "highest minimum of sensitivity and specificity" + f" over {number} conditions" * (
            number > 1
        )
    else:
        best = _best_for_target(cuts, config)
        low, high = cuts.low[best], cuts.high[best]
        other = "specificity" if config.rule == "sensitivity" else "sensitivity"
        rule = f"{config.rule} at least {config.target:g}, then highest {other}"
    return ChosenThreshold(
        _middle(low, high),
        rule,
        float(cuts.tp[best] / cuts.positives),
        float(cuts.tn[best] / cuts.negatives),
    )


def _fixed(truth: IntArray, ranked: RankedScores, target: float) -> ChosenThreshold:
    if not 0.0 <= target <= 1.0:
        raise UsageError(
            f"threshold.target: found {target}, wanted a probability from 0 to 1 "
            "for the rule 'fixed', as 0.5."
        )
    tn, fp, fn, tp = (float(count[0]) for count in confusion_counts(ranked.counts_once(), target))
    return ChosenThreshold(
        target,
        f"fixed at {target:g}",
        tp / (tp + fn) if tp + fn else None,
        tn / (tn + fp) if tn + fp else None,
    )


def _cuts(truth: IntArray, ranked: RankedScores, config: ThresholdConfig) -> _Cuts:
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives:
        raise DataError(
            f"threshold rule {config.rule!r}: found {positives} PNEUMONIA and {negatives} NORMAL "
            "images, wanted both classes. Give images of both, or use the rule 'fixed'."
        )
    counts = ranked.counts_once()
    rising = [float(score) for score in ranked.scores[::-1]]
    # The i lowest distinct scores are below the threshold of cut i.
    below_positive = np.concatenate([[0], np.cumsum(counts.positives[0, ::-1])]).astype(np.int64)
    below_negative = np.concatenate([[0], np.cumsum(counts.negatives[0, ::-1])]).astype(np.int64)
    low, high = [0.0, *rising], [*rising, 1.0]
    # A probability of 1 is predicted PNEUMONIA at every threshold up to 1.
    cuts = len(low) - (rising[-1] == 1.0)
    return _Cuts(
        low[:cuts],
        high[:cuts],
        positives - below_positive[:cuts],
        below_negative[:cuts],
        positives,
        negatives,
    )


def _least_shares(
    truth: IntArray, scores: FloatArray, conditions: IntArray, cuts: _Cuts
) -> FloatArray:
    """For each cut (c,), the lowest rate of correct predictions over conditions and classes."""
    least = np.ones(len(cuts.high))
    for condition in np.unique(conditions):
        for label in (0, 1):
            ranked = np.sort(scores[(conditions == condition) & (truth == label)])
            if ranked.size:
                below = np.searchsorted(ranked, cuts.high, side="left")
                # Divide last, so that equal rates compare equal.
                correct = ranked.size - below if label else below
                least = np.minimum(least, correct / ranked.size)
    return least


def _widest_plateau(cuts: _Cuts, gains: NDArray[Any]) -> tuple[float, float, int]:
    """Bounds of the widest run of best cuts, and the index of the cut that contains its middle."""
    best = np.flatnonzero(gains == gains.max())
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    widest = max(runs, key=lambda run: cuts.high[run[-1]] - cuts.low[run[0]])
    low, high = cuts.low[widest[0]], cuts.high[widest[-1]]
    middle = _middle(low, high)
    return low, high, next(int(index) for index in widest if middle <= cuts.high[index])


def _best_for_target(cuts: _Cuts, config: ThresholdConfig) -> int:
    if not 0.0 < config.target <= 1.0:
        raise UsageError(
            f"threshold.target: found {config.target}, wanted a share above 0, up to 1, "
            f"for the rule {config.rule!r}, as 0.95."
        )
    sensitivity, specificity = cuts.tp / cuts.positives, cuts.tn / cuts.negatives
    if config.rule == "sensitivity":
        rate, other, other_name, label = sensitivity, specificity, "specificity", "PNEUMONIA"
    else:
        rate, other, other_name, label = specificity, sensitivity, "sensitivity", "NORMAL"
    reached = np.flatnonzero(rate >= config.target - _TOLERANCE)
    best = max(reached, key=lambda index: (other[index], rate[index]), default=None)
    if best is None or other[best] == 0.0:
        useful = rate[other > 0.0].max(initial=0.0)
        raise DataError(
            f"threshold rule {config.rule!r}: the target {config.target:g} is only reached by "
            f"predicting {label} for all (a {other_name} of 0). At most {useful:.4g} is possible "
            f"with these {cuts.positives} PNEUMONIA and {cuts.negatives} NORMAL images. "
            "Lower the target."
        )
    return int(best)


def _middle(low: float, high: float) -> float:
    """The midpoint, or `high` if the midpoint rounds down to `low`."""
    middle = low + (high - low) / 2
    return middle if middle > low else high
