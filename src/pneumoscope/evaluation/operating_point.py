"""Choose the operating point, and recalibrate a model for one site.

The operating point is the probability from which PNEUMONIA is predicted. Choose it on validation
images, never on test images.

A model is recalibrated on a small labelled sample of one site. Scores on any scale are mapped
linearly to 0–1 for the evaluation (`ScoreScale`). This changes no metric except those of
calibration, because all others depend only on the order of the scores. Calibration, Brier score and
ECE are reported only if the score is a probability.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig, ThresholdConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.calibration import (
    Calibration,
    CalibrationAssessment,
    assess_calibration,
    fit_calibration,
    fit_line,
    held_out_losses,
    logit,
    sigmoid,
)
from pneumoscope.evaluation.intervals import percentile_interval, resampled_weights
from pneumoscope.evaluation.proportions import Patients, patient_codes
from pneumoscope.evaluation.ranked_metrics import (
    RankedScores,
    checked_labels,
    checked_scores,
    confusion_counts,
)
from pneumoscope.records import Estimate

_TOLERANCE = 1e-12
"""Rounding error within which a rate counts as reaching the target."""

FEWEST_PER_CLASS = 10
"""Minimum number of patients of each class for a recalibration."""

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Old probabilities for which the new ones are reported."""

_MOST_REFITS = 400


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
    tp: Int64Array
    tn: Int64Array
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


def _fixed(truth: Int64Array, ranked: RankedScores, target: float) -> ChosenThreshold:
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


def _cuts(truth: Int64Array, ranked: RankedScores, config: ThresholdConfig) -> _Cuts:
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
    truth: Int64Array, scores: Float64Array, conditions: Int64Array, cuts: _Cuts
) -> Float64Array:
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


@dataclass(frozen=True, slots=True)
class Recalibration:
    """The recalibration of a model on the sample of a site.

    Attributes:
        calibration: the calibration to use; the old one if a new one is not better.
        changed: whether it differs from the old one.
        images: number of labelled images of the sample with a result.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        before: calibration of the old probabilities.
        loss: mean log-loss of the old probabilities.
        gain: cross-validated decrease of the log-loss, with its interval over patients. If the
            interval includes 0, the sample does not show an improvement.
        moved: for each of `SHOWN`, the new probability, with an interval from refits to resampled
            patients.
    """

    calibration: Calibration
    changed: bool
    images: int
    patients: int
    positives: int
    before: CalibrationAssessment
    loss: float
    gain: Estimate
    moved: tuple[Estimate, ...]


def recalibrate(
    labels: ArrayLike,
    logits: ArrayLike,
    patients: Patients,
    old: Calibration,
    config: IntervalConfig,
) -> Recalibration:
    """Fit temperature or Platt scaling on top of the old calibration, or keep the old one.

    The method is selected by `fit_calibration`: the simplest whose cross-validated log-loss is
    within one standard error of the best.

    Args:
        labels: int, (n,), 0 or 1.
        logits: float64, (n,), uncalibrated logits.
        patients: (n,), patient ids.
        old: the calibration in use.
        config: level, resamples and seed.

    Raises:
        DataError: fewer than `FEWEST_PER_CLASS` patients in a class; shapes differ.
    """
    truth = checked_labels(labels)
    values = old.slope * np.asarray(logits, dtype=np.float64) + old.intercept
    ids = np.asarray(patients)
    codes, count = patient_codes(ids, truth.size)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        found = np.unique(ids[truth == label]).size
        if found < FEWEST_PER_CLASS:
            raise DataError(
                f"--recalibrate: found {found} patients with {name}, wanted at least "
                f"{FEWEST_PER_CLASS} of each class. Label more images of the site."
            )
    added = fit_calibration(truth, values, ids, config.seed)
    losses = held_out_losses(truth, values, ids, config.seed)
    gained = losses["none"] - losses[added.method]
    shares: list[Float64Array] = []
    moved: list[Float64Array] = []
    for weights in resampled_weights(codes, count, config):
        shares.append(weights @ gained / weights.sum(axis=1))
        for row in weights[: max(_MOST_REFITS - len(moved), 0)]:
            images = np.repeat(np.arange(truth.size), row.astype(np.int64))
            moved.append(_refitted(added, truth[images], values[images]))
    low, high, _ = percentile_interval(np.concatenate(shares), config.level, count)
    changed = added.method != "none"
    return Recalibration(
        calibration=composed(old, added) if changed else old,
        changed=changed,
        images=truth.size,
        patients=count,
        positives=int(truth.sum()),
        before=assess_calibration(truth, sigmoid(values), ids, config.level),
        loss=float(losses["none"].mean()),
        gain=Estimate(float(gained.mean()), low, high),
        moved=_moved(added, np.array(moved), config.level, count),
    )


def composed(old: Calibration, added: Calibration) -> Calibration:
    """The single line that is equivalent to `old` followed by `added`."""
    slope = added.slope * old.slope
    intercept = added.slope * old.intercept + added.intercept
    return Calibration("temperature" if intercept == 0.0 else "platt", slope, intercept)


def moved_probabilities(
    probabilities: ArrayLike, old: Calibration, new: Calibration
) -> Float64Array:
    """Convert probabilities of the old calibration to those of the new one; same shape."""
    return new.apply((logit(probabilities) - old.intercept) / old.slope)


def _refitted(added: Calibration, truth: Int64Array, values: Float64Array) -> Float64Array:
    """The new probabilities of `SHOWN` after refitting the same method to resampled images."""
    if truth.min() == truth.max():
        return np.full(len(SHOWN), np.nan)
    return fit_line(added.method, truth, values).apply(logit(SHOWN))


def _moved(
    added: Calibration, refits: Float64Array, level: float, patients: int
) -> tuple[Estimate, ...]:
    points = added.apply(logit(SHOWN))
    found = []
    for k, point in enumerate(points):
        low, high, _ = percentile_interval(refits[:, k], level, patients)
        found.append(Estimate(float(point), low, high))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """The range of a score.

    Attributes:
        low: the score that is mapped to 0.
        high: the score that is mapped to 1.
        probability: whether the score is a probability; then it is not changed.
    """

    low: float = 0.0
    high: float = 1.0
    probability: bool = True

    @property
    def noun(self) -> str:
        """What a score is called on pages."""
        return "probability" if self.probability else "score"

    @property
    def nouns(self) -> str:
        """The plural of `noun`."""
        return "probabilities" if self.probability else "scores"

    @classmethod
    def of(cls, scores: ArrayLike, threshold: float | None) -> ScoreScale:
        """The scale of scores and their threshold; they are probabilities if all are in [0, 1].

        Raises:
            DataError: a score is not finite, or distinct scores become equal when scaled.
        """
        values = np.asarray(scores, np.float64)
        bounds = values if threshold is None else np.append(values, threshold)
        if not bounds.size:
            return cls()
        if not np.isfinite(bounds).all():
            raise DataError(
                "scores: found a number that is not finite, wanted finite numbers. Correct or "
                "remove it."
            )
        low, high = float(bounds.min()), float(bounds.max())
        if low >= 0.0 and high <= 1.0:
            return cls()
        if low == high:
            low, high = low - 0.5, high + 0.5
        scale = cls(low, high, probability=False)
        if np.unique(scale.to_unit(bounds)).size < np.unique(bounds).size:
            raise DataError(
                f"scores: found a range from {low:g} to {high:g} in which some distinct scores "
                "become equal when scaled to 0–1. Provide their logarithms or their ranks."
            )
        return scale

    def to_unit(self, values: ArrayLike) -> Float64Array:
        """Map scores to 0–1, float64, in the same shape and order."""
        scores = np.asarray(values, np.float64)
        if self.probability:
            return scores
        # Halved, so that the full range of doubles does not overflow.
        return (scores / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def from_unit(self, values: ArrayLike) -> Float64Array:
        """Map values from 0–1 back to the scores' own units, float64, same shape."""
        units = np.asarray(values, np.float64)
        return units if self.probability else self.low + units * (self.high - self.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
