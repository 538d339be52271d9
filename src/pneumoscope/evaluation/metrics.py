"""The metrics of `metrics.json`, one function each.

Comes in: labels (int, shape (n,), 1 is PNEUMONIA), probabilities of PNEUMONIA (float64, shape
(n,), in [0, 1]) and, where an answer is yes or no, a threshold. Goes out: one float.
Does not know of patients, intervals, models or files.

Decision rule, everywhere: PNEUMONIA when probability >= threshold.
Naming: a function bears the name of its key in `metrics.json`. Higher is better for all but
`brier` and `ece`, which are errors: 0 is best.
Undefined (no image of a class, nothing called PNEUMONIA, no image at all) is NaN, with an
`UndefinedMetricWarning`. All functions raise `DataError` for labels other than 0 and 1,
probabilities outside [0, 1], and shapes that differ.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from numpy.typing import ArrayLike

from pneumoscope.evaluation.ranked_metrics import (
    RankedCounts,
    RankedScores,
    auc_values,
    average_precision_values,
    brier_values,
    checked_scores,
    confusion_counts,
    ece_values,
    metric_values,
)


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for these images; NaN is returned."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Images by truth and answer; positive is PNEUMONIA."""

    tn: int
    fp: int
    fn: int
    tp: int

    def to_dict(self) -> dict[str, int]:
        """As in `metrics.json`."""
        return {"tn": self.tn, "fp": self.fp, "fn": self.fn, "tp": self.tp}


def confusion_matrix(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float
) -> ConfusionMatrix:
    """Count images by label and answer.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        threshold: PNEUMONIA is the answer from here up.

    Raises:
        DataError: labels or probabilities out of range, or shapes that differ.
    """
    tn, fp, fn, tp = confusion_counts(_counts(labels, probabilities), threshold)
    return ConfusionMatrix(int(tn[0]), int(fp[0]), int(fn[0]), int(tp[0]))


def accuracy(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Share of images answered rightly, in [0, 1]."""
    value = metric_values(_counts(labels, probabilities), threshold)["accuracy"][0]
    return _told("accuracy", float(value), "there is no image")


def balanced_accuracy(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Mean of sensitivity and specificity, in [0, 1]; needs both classes."""
    value = metric_values(_counts(labels, probabilities), threshold)["balanced_accuracy"][0]
    return _told("balanced_accuracy", float(value), "one of the classes has no image")


def sensitivity(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Share of PNEUMONIA images that are called so (recall), in [0, 1]."""
    value = metric_values(_counts(labels, probabilities), threshold)["sensitivity"][0]
    return _told("sensitivity", float(value), "there is no PNEUMONIA image")


def specificity(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Share of NORMAL images that are called so, in [0, 1]."""
    value = metric_values(_counts(labels, probabilities), threshold)["specificity"][0]
    return _told("specificity", float(value), "there is no NORMAL image")


def ppv(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Share of PNEUMONIA answers that are right (precision), in [0, 1], at this prevalence."""
    value = metric_values(_counts(labels, probabilities), threshold)["ppv"][0]
    return _told("ppv", float(value), "no image is called PNEUMONIA")


def npv(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Share of NORMAL answers that are right, in [0, 1], at this prevalence."""
    value = metric_values(_counts(labels, probabilities), threshold)["npv"][0]
    return _told("npv", float(value), "no image is called NORMAL")


def f1(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> float:
    """Harmonic mean of sensitivity and ppv, `2 tp / (2 tp + fp + fn)`, in [0, 1]."""
    value = metric_values(_counts(labels, probabilities), threshold)["f1"][0]
    return _told("f1", float(value), "no image is PNEUMONIA or called so")


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Chance that a PNEUMONIA image scores above a NORMAL one, ties counted half, in [0, 1].

    The Mann–Whitney form of the area under the ROC curve (Hanley & McNeil 1982).
    """
    value = auc_values(_counts(labels, probabilities))[0]
    return _told("auc", float(value), "one of the classes has no image")


def average_precision(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Sum over falling thresholds of (gain in recall) × precision, in [0, 1].

    scikit-learn's step-wise definition: no interpolation between the steps.
    """
    value = average_precision_values(_counts(labels, probabilities))[0]
    return _told("average_precision", float(value), "there is no PNEUMONIA image")


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared difference of probability and label, in [0, 1], 0 is best (Brier 1950)."""
    value = brier_values(_counts(labels, probabilities))[0]
    return _told("brier", float(value), "there is no image")


def ece(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error with bins of equal mass, debiased, in [0, 1], 0 is best.

    The mean over images of |mean probability - share of PNEUMONIA| in their bin. The plain
    statistic is never 0, even for a perfect forecast, because each bin's share is a noisy
    sample. So the sampling variance `q (1 - q) / (n - 1)` of a bin with n images and share q is
    subtracted from the bin's squared gap, and what is left below 0 counts as 0 (Bröcker 2012,
    doi:10.1007/s00382-011-1191-1; Kumar, Liang & Ma 2019, arXiv:1909.10155, who do so for the
    squared error). Being cut at 0, a little bias upwards stays.

    At most 15 bins, and fewer rather than less than 20 images in each; equal probabilities
    share a bin.
    """
    value = ece_values(_counts(labels, probabilities))[0]
    return _told("ece", float(value), "there is no image")


def _counts(labels: ArrayLike, probabilities: ArrayLike) -> RankedCounts:
    return RankedScores.of(*checked_scores(labels, probabilities)).counts_once()


def _told(name: str, value: float, reason: str) -> float:
    if math.isnan(value):
        message = f"{name} is undefined: {reason}"
        warnings.warn(message, UndefinedMetricWarning, stacklevel=3)
    return value
