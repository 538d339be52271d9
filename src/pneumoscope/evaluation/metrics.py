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

The curves of a report as numbers: ROC and precision–recall, reliability, score histogram.

Comes in: labels (int, (n,)), probabilities (float64, (n,)), one patient id per image, a seed.
Goes out: frozen records of tuples, with `to_dict` and `from_dict` for JSON.
Does not know how they are drawn, nor of models or files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import resampled_counts
from pneumoscope.evaluation.proportions import (
    Patients,
    patient_codes,
    score_interval,
    wilson_interval,
)
from pneumoscope.evaluation.ranked_metrics import (
    FloatArray,
    RankedCounts,
    RankedScores,
    auc_values,
    average_precision_values,
    brier_values,
    checked_scores,
    confusion_counts,
    ece_values,
    equal_mass_bins,
    metric_values,
)


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for these images; NaN is returned."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Images by truth and answer; positive is PNEUMONIA.

    Example:
        >>> evaluate([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9]).confusion_matrix
        ConfusionMatrix(tn=1, fp=1, fn=0, tp=2)
    """

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


GRID_POINTS = 101
HISTOGRAM_BINS = 20
_ROUNDING = 1e-9
"""Of an image: a grid point that is a whole number of images may miss it by that much."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve on the grid 0, 0.01, …, 1, with a pointwise band.

    ROC: x is the false positive rate (1 - specificity), y the sensitivity. Precision–recall: x is
    the recall (sensitivity), y the precision (ppv).

    Attributes:
        x: the 101 grid points.
        y: the value at each, in [0, 1].
        low: lower end of the percentile interval at each point; empty without a band.
        high: upper end likewise.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, list[float]]:
        """Lists, for JSON."""
        return {"x": [*self.x], "y": [*self.y], "low": [*self.low], "high": [*self.high]}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Curve:
        """What `to_dict` wrote."""
        return cls(*(_floats(document[key]) for key in ("x", "y", "low", "high")))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often it was PNEUMONIA where the model said so with a given probability.

    One entry per bin of near-equal mass (the bins of `metrics.ece`), rising.

    Attributes:
        probability: mean probability of the bin's images.
        share: share of them that are PNEUMONIA.
        low: lower end of its Wilson interval (images taken for independent).
        high: upper end likewise.
        images: how many there are.
    """

    probability: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    images: tuple[int, ...]

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Lists, for JSON."""
        return {
            "probability": [*self.probability],
            "share": [*self.share],
            "low": [*self.low],
            "high": [*self.high],
            "images": [*self.images],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Reliability:
        """What `to_dict` wrote."""
        return cls(
            _floats(document["probability"]),
            _floats(document["share"]),
            _floats(document["low"]),
            _floats(document["high"]),
            _integers(document["images"]),
        )


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """Images per class and probability.

    Attributes:
        edges: 21 rising bounds from 0 to 1; a bin holds its lower one, the last one both.
        normal: NORMAL images per bin, 20 counts.
        pneumonia: PNEUMONIA images per bin, 20 counts.
    """

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    pneumonia: tuple[int, ...]

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Lists, for JSON."""
        return {
            "edges": [*self.edges],
            "normal": [*self.normal],
            "pneumonia": [*self.pneumonia],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ScoreHistogram:
        """What `to_dict` wrote."""
        return cls(
            _floats(document["edges"]),
            _integers(document["normal"]),
            _integers(document["pneumonia"]),
        )


def roc_and_precision_recall(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients, config: IntervalConfig
) -> tuple[Curve | None, Curve | None]:
    """ROC and precision–recall curves with bands from the bootstrap of `bootstrap_metrics`.

    The ROC curve runs straight between its points and takes the upper end of a vertical step.
    The precision–recall curve is a step: at each recall the precision of the highest threshold
    that reaches it, so that its area is the average precision. Resamples in which a curve is
    undefined are left out. The bands hold point by point, not for the curve as a whole.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids; with fewer than two there is no band.
        config: level, resamples, seed.

    Returns:
        `None` for a curve that is undefined: ROC without images of both classes,
        precision–recall without PNEUMONIA images.

    Raises:
        DataError: shapes differ or values are out of range.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth, scores = checked_scores(labels, probabilities)
    codes, count = patient_codes(patients, truth.size)
    ill = np.unique(codes[truth == 1]).size
    grid = np.linspace(0.0, 1.0, GRID_POINTS)
    roc_point, pr_point = _on_grid(RankedScores.of(truth, scores).counts_once())
    roc_rows, pr_rows = [], []
    if count > 1:
        for counts in resampled_counts(truth, scores, patients, config):
            roc, precision_recall = _on_grid(counts)
            roc_rows.append(roc)
            pr_rows.append(precision_recall)
    return (
        _banded(
            roc_point, roc_rows, config.level, np.full(GRID_POINTS, float(ill)), fixed_end=True
        ),
        _banded(pr_point, pr_rows, config.level, np.maximum(ill * grid, 1.0), fixed_end=False),
    )


def reliability(labels: ArrayLike, probabilities: ArrayLike, level: float) -> Reliability:
    """The reliability diagram: bins of near-equal mass with Wilson intervals at `level`.

    Raises:
        DataError: shapes differ or values are out of range.
    """
    bins = equal_mass_bins(RankedScores.of(*checked_scores(labels, probabilities)).counts_once())
    used = np.flatnonzero(bins.mass[0])[::-1]  # the ranking falls, a diagram rises
    images = [int(mass) for mass in bins.mass[0, used]]
    positives = [int(count) for count in bins.positives[0, used]]
    intervals = [wilson_interval(k, n, level) for k, n in zip(positives, images, strict=True)]
    return Reliability(
        probability=_floats(bins.score_sum[0, used] / bins.mass[0, used]),
        share=_floats([interval.value for interval in intervals]),
        low=_floats([interval.low for interval in intervals]),
        high=_floats([interval.high for interval in intervals]),
        images=tuple(images),
    )


def score_histogram(labels: ArrayLike, probabilities: ArrayLike) -> ScoreHistogram:
    """Count the images of each class in 20 equal steps of probability.

    Raises:
        DataError: shapes differ or values are out of range.
    """
    truth, scores = checked_scores(labels, probabilities)
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    normal, pneumonia = (np.histogram(scores[truth == label], edges)[0] for label in (0, 1))
    return ScoreHistogram(_floats(edges), _integers(normal), _integers(pneumonia))


def _on_grid(counts: RankedCounts) -> tuple[FloatArray, FloatArray]:
    """ROC and precision–recall at the grid points, each (b, 101); NaN rows where undefined."""
    rows = len(counts.positives)
    roc = np.full((rows, GRID_POINTS), np.nan)
    precision_recall = np.full((rows, GRID_POINTS), np.nan)
    totals = zip(counts.all_positives, counts.all_negatives, strict=True)
    for row, (positives, negatives) in enumerate(totals):
        tp, fp = counts.true_positives[row], counts.false_positives[row]
        if positives:
            precision_recall[row] = _precision_at(tp, fp, positives)
        if positives and negatives:
            roc[row] = _sensitivity_at(tp, fp, positives, negatives)
    return roc, precision_recall


def _sensitivity_at(
    tp: FloatArray, fp: FloatArray, positives: float, negatives: float
) -> FloatArray:
    # Counts, not rates, are compared: a rate may miss its grid point by rounding.
    wanted = np.linspace(0.0, negatives, GRID_POINTS)
    x, y = np.concatenate([[0.0], fp]), np.concatenate([[0.0], tp])
    after = np.searchsorted(x, wanted + _ROUNDING, side="right")
    before = after - 1
    after = np.minimum(after, x.size - 1)
    run = np.maximum(x[after] - x[before], 1.0)
    way = np.clip((wanted - x[before]) / run, 0.0, 1.0)
    risen: FloatArray = y[before] + way * (y[after] - y[before])
    return risen / positives


def _precision_at(tp: FloatArray, fp: FloatArray, positives: float) -> FloatArray:
    wanted = np.linspace(0.0, positives, GRID_POINTS) - _ROUNDING
    # At recall 0, the precision of the first threshold that finds anything.
    first = np.searchsorted(tp, np.maximum(wanted, 0.5), side="left")
    precision: FloatArray = tp[first] / (tp[first] + fp[first])
    return precision


def _banded(
    point: FloatArray,
    rows: list[FloatArray],
    level: float,
    patients: FloatArray,
    *,
    fixed_end: bool,
) -> Curve | None:
    """A curve with its band: percentiles, or Wilson's limits where no resample differs.

    Args:
        point: (1, 101).
        rows: blocks of resamples, (b, 101) each.
        level: of the band.
        patients: (101,), on how many patients each value rests.
        fixed_end: whether the curve's end is given by what it is, as that of ROC at (1, 1).
    """
    if np.isnan(point).any():
        return None
    grid = np.linspace(0.0, 1.0, GRID_POINTS)
    resampled = np.concatenate([*rows, np.empty((0, GRID_POINTS))])
    kept = resampled[~np.isnan(resampled[:, 0])]
    if not len(kept):
        return Curve(_floats(grid), _floats(point[0]))
    tail = (1.0 - level) / 2
    low, high = np.quantile(kept, [tail, 1.0 - tail], axis=0)
    flat = high - low <= 1e-12
    flat[-1] &= not fixed_end
    for k in np.flatnonzero(flat & (patients > 0)):
        found = score_interval(float(point[0, k]), float(patients[k]), level)
        low[k], high[k] = found.low, found.high
    return Curve(_floats(grid), _floats(point[0]), _floats(low), _floats(high))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
