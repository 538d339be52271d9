"""Recalibrate a model on a small labelled sample of one site, and scale scores to 0–1.

Scores on any scale are mapped linearly to 0–1 for the evaluation (`ScoreScale`). This changes no
metric except those of calibration, because all others depend only on the order of the scores.
Calibration, Brier score and ECE are reported only if the score is a probability.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError
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
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray, checked_labels
from pneumoscope.records import Estimate

FEWEST_PER_CLASS = 10
"""Minimum number of patients of each class for a recalibration."""

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Old probabilities for which the new ones are reported."""

_MOST_REFITS = 400


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
    shares: list[FloatArray] = []
    moved: list[FloatArray] = []
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


def moved_probabilities(probabilities: ArrayLike, old: Calibration, new: Calibration) -> FloatArray:
    """Convert probabilities of the old calibration to those of the new one; same shape."""
    return new.apply((logit(probabilities) - old.intercept) / old.slope)


def _refitted(added: Calibration, truth: IntArray, values: FloatArray) -> FloatArray:
    """The new probabilities of `SHOWN` after refitting the same method to resampled images."""
    if truth.min() == truth.max():
        return np.full(len(SHOWN), np.nan)
    return fit_line(added.method, truth, values).apply(logit(SHOWN))


def _moved(
    added: Calibration, refits: FloatArray, level: float, patients: int
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

    def to_unit(self, values: ArrayLike) -> FloatArray:
        """Map scores to 0–1, float64, in the same shape and order."""
        scores = np.asarray(values, np.float64)
        if self.probability:
            return scores
        # Halved, so that the full range of doubles does not overflow.
        return (scores / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def from_unit(self, values: ArrayLike) -> FloatArray:
        """Map values from 0–1 back to the scores' own units, float64, same shape."""
        units = np.asarray(values, np.float64)
        return units if self.probability else self.low + units * (self.high - self.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
