"""Choosing the operating point: from which probability up the answer is PNEUMONIA.

Comes in: labels (int, (n,)) and probabilities (float64, (n,)) of the images to choose on, which
must be validation, never test, and a `ThresholdConfig`. Goes out: one `ChosenThreshold`.
Does not know which split it is given, nor of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import ThresholdConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.ranked_metrics import (
    IntArray,
    RankedScores,
    checked_scores,
    confusion_counts,
)

_TOLERANCE = 1e-12
"""A share that equals the target but for rounding reaches it."""


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """An operating point and what it gave on the images it was chosen on.

    Attributes:
        value: PNEUMONIA is the answer when probability >= value.
        rule: how it was chosen, in words.
        sensitivity: on the images given; `None` without PNEUMONIA images (fixed values only).
        specificity: on the images given; `None` without NORMAL images (fixed values only).
    """

    value: float
    rule: str
    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Every way to part the images by a threshold, from all PNEUMONIA to (where it can be) none.

    A threshold t in (low, high] gives tp and tn; all arrays are (c,), thresholds rising.
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

    A threshold lies midway between two adjacent distinct scores, or between an outermost score
    and 0 or 1. Where several do equally well: `balanced_accuracy` and `worst_case` take the middle
    of the widest plateau; the two target rules allow one best pair of sensitivity and specificity
    only. `worst_case` is the maximin rule of decision theory (Wald, "Statistical decision functions
    which minimize the maximum risk", Ann Math 1945;46:265): whatever the condition, and whichever
    the class, no other threshold would have done better at worst.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        config: the rule, and its target where it has one.
        conditions: int, (n,): under which condition each score was found, for `worst_case`; one
            for all if not given.

    Raises:
        DataError: one class only (but for `fixed`), or a target that is only reached by giving
            every image the same answer; shapes or values that are wrong.
        UsageError: the target is not a share.
    """
    truth, scores = checked_scores(labels, probabilities)
    if config.rule == "fixed":
        return _fixed(truth, RankedScores.of(truth, scores), config.target)
    cuts = _cuts(truth, RankedScores.of(truth, scores), config)
    if config.rule == "balanced_accuracy":
        # Whole numbers, so that equal balanced accuracies are equal.
        low, high, best = _widest_plateau(cuts, cuts.tp * cuts.negatives + cuts.tn * cuts.positives)
        rule = "highest balanced accuracy"
    elif config.rule == "worst_case":
        given = np.zeros(truth.shape, np.int64) if conditions is None else np.asarray(conditions)
        low, high, best = _widest_plateau(cuts, _least_shares(truth, scores, given, cuts))
        number = len(np.unique(given))
        rule = (
            "highest least one of sensitivity and specificity"
            + f" under {number} conditions" * (number > 1)
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
    # Below the threshold of cut i lie the i lowest distinct scores.
    below_positive = np.concatenate([[0], np.cumsum(counts.positives[0, ::-1])]).astype(np.int64)
    below_negative = np.concatenate([[0], np.cumsum(counts.negatives[0, ::-1])]).astype(np.int64)
    low, high = [0.0, *rising], [*rising, 1.0]
    # No threshold up to 1 calls a probability of 1 NORMAL.
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
    truth: IntArray, scores: NDArray[np.float64], conditions: NDArray[np.int64], cuts: _Cuts
) -> NDArray[np.float64]:
    """For each cut (c,) the least share of one class under one condition that is called rightly."""
    least = np.ones(len(cuts.high))
    for condition in np.unique(conditions):
        for label in (0, 1):
            ranked = np.sort(scores[(conditions == condition) & (truth == label)])
            if ranked.size:
                below = np.searchsorted(ranked, cuts.high, side="left")
                # Divided last, so that equal shares are equal.
                right = ranked.size - below if label else below
                least = np.minimum(least, right / ranked.size)
    return least


def _widest_plateau(cuts: _Cuts, gains: NDArray[Any]) -> tuple[float, float, int]:
    """Bounds of the widest run of the cuts that gain most, and where in it its middle falls."""
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
        held, other, other_name, answer = sensitivity, specificity, "specificity", "PNEUMONIA"
    else:
        held, other, other_name, answer = specificity, sensitivity, "sensitivity", "NORMAL"
    reached = np.flatnonzero(held >= config.target - _TOLERANCE)
    best = max(reached, key=lambda index: (other[index], held[index]), default=None)
    if best is None or other[best] == 0.0:
        useful = held[other > 0.0].max(initial=0.0)
        raise DataError(
            f"threshold rule {config.rule!r}: the target {config.target:g} is only reached by "
            f"answering {answer} for all (a {other_name} of 0). At most {useful:.4g} is possible "
            f"with these {cuts.positives} PNEUMONIA and {cuts.negatives} NORMAL images. "
            "Lower the target."
        )
    return int(best)


def _middle(low: float, high: float) -> float:
    """Midway, but above `low`: between neighbouring floats the mean may round down to it."""
    middle = low + (high - low) / 2
    return middle if middle > low else high
