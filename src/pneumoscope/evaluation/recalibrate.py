"""A model's calibration fitted anew to a small labelled sample of one site.

Comes in: labels (int, (n,)), raw logits (float64, (n,)), patients of the sample, the calibration so
far. Goes out: a `Recalibration`, with what is known of how sure it is. Does not know of models,
thresholds or files.

Scores on any scale, brought to 0–1 for the evaluation and back to their own units.

All metrics but those of calibration depend on the order of scores only, so a straight line from
the scores' range to 0–1 changes none of them. Whether a score is a probability decides whether
calibration, Brier score and ECE are reported.
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
"""Patients of each class below which no line is fitted."""

SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Old probabilities whose new ones are told."""

_MOST_REFITS = 400


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What the sample of a site says of a model's probabilities.

    Attributes:
        calibration: to use from now on; the old one where the sample shows no need of another.
        changed: whether it is another.
        images: labelled images of the sample with an answer.
        patients: how many they are of.
        positives: PNEUMONIA images among them.
        before: how far the old probabilities could be taken at their word.
        loss: mean log-loss of the old probabilities.
        gain: by how much cross-validation says it falls; interval over patients. An interval that
            holds 0 says that the sample can't tell.
        moved: for each of `SHOWN`, the new probability with the interval of refits to resampled
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
    """Fit temperature or Platt's line on top of the old calibration, or keep that.

    The choice is `fit_calibration`'s: the simplest whose cross-validated log-loss is within one
    standard error of the best.

    Raises:
        DataError: fewer than `FEWEST_PER_CLASS` patients in a class; shapes differ.
    """
    truth = checked_labels(labels)
    values = old.slope * np.asarray(logits, dtype=np.float64) + old.intercept
    ids = np.asarray(patients)
    codes, count = patient_codes(ids, truth.size)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        there = np.unique(ids[truth == label]).size
        if there < FEWEST_PER_CLASS:
            raise DataError(
                f"--recalibrate: found {there} patients with {name}, wanted at least "
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
    """One line that does what `old` and then `added` do."""
    slope = added.slope * old.slope
    intercept = added.slope * old.intercept + added.intercept
    return Calibration("temperature" if intercept == 0.0 else "platt", slope, intercept)


def moved_probabilities(probabilities: ArrayLike, old: Calibration, new: Calibration) -> FloatArray:
    """Probabilities of the old calibration as the new one gives them; shape as given."""
    return new.apply((logit(probabilities) - old.intercept) / old.slope)


def _refitted(added: Calibration, truth: IntArray, values: FloatArray) -> FloatArray:
    """The new probabilities of `SHOWN` by the same method on resampled images."""
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
        low: the score that becomes 0.
        high: the score that becomes 1.
        probability: whether the score is a probability, which stays as it is.
    """

    low: float = 0.0
    high: float = 1.0
    probability: bool = True

    @classmethod
    def of(cls, scores: ArrayLike, threshold: float | None) -> ScoreScale:
        """The scale of scores and their threshold: probabilities if all lie in [0, 1].

        Raises:
            DataError: a score is not finite, or scores differ by less than can be kept apart.
        """
        values = np.asarray(scores, np.float64)
        bounds = values if threshold is None else np.append(values, threshold)
        if not bounds.size:
            return cls()
        if not np.isfinite(bounds).all():
            raise DataError("scores: found a number that is not finite. Correct or remove it.")
        low, high = float(bounds.min()), float(bounds.max())
        if low >= 0.0 and high <= 1.0:
            return cls()
        if low == high:
            low, high = low - 0.5, high + 0.5
        scale = cls(low, high, probability=False)
        if np.unique(scale.to_unit(bounds)).size < np.unique(bounds).size:
            raise DataError(
                f"scores: they range from {low:g} to {high:g}, and some differ by so little that "
                "they can't be kept apart on one scale. Give their logarithms or their ranks."
            )
        return scale

    def to_unit(self, values: ArrayLike) -> FloatArray:
        """Scores on the scale from 0 to 1, in their order and shape."""
        scores = np.asarray(values, np.float64)
        if self.probability:
            return scores
        # Halves, so that the widest range of doubles does not overflow.
        return (scores / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def from_unit(self, values: ArrayLike) -> FloatArray:
        """Scores in their own units."""
        units = np.asarray(values, np.float64)
        return units if self.probability else self.low + units * (self.high - self.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
