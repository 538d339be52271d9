"""The metrics of `metrics.json` as single numbers, and the curves of a report.

Labels are int, (n,), 1 for PNEUMONIA; probabilities of PNEUMONIA are float64, (n,), in [0, 1].
PNEUMONIA is predicted if probability >= threshold. All functions raise `DataError` for labels other
than 0 and 1, probabilities outside [0, 1], and shapes that differ.

The curves (ROC, precision–recall, reliability, score histogram) are frozen records of tuples, with
`to_dict` and `from_dict` for JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import resampled_counts
from pneumoscope.evaluation.proportions import (
    Patients,
    patient_codes,
    score_interval,
    wilson_interval,
)
from pneumoscope.evaluation.ranked_metrics import (
    RankedCounts,
    RankedScores,
    auc_values,
    checked_scores,
    confusion_counts,
    equal_mass_bins,
    metric_values,
)

GRID_POINTS = 101
HISTOGRAM_BINS = 20
_ROUNDING = 1e-9
"""Rounding error, in images, of a grid point that is a whole number of images."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Numbers of images by label and predicted class; PNEUMONIA is positive.

    Examples:
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
    """Count images by label and predicted class.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        threshold: PNEUMONIA is predicted if the probability is at least this.

    Raises:
        DataError: labels or probabilities are out of range, or shapes differ.
    """
    tn, fp, fn, tp = confusion_counts(_counts(labels, probabilities), threshold)
    return ConfusionMatrix(int(tn[0]), int(fp[0]), int(fn[0]), int(tp[0]))


def point_metrics(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float
) -> dict[str, float]:
    """All metrics of `metrics.json` by name (`METRIC_NAMES`), without intervals.

    They are defined at `ranked_metrics.metric_values`. Higher is better for all except `brier` and
    `ece`, for which 0 is best. Undefined ones (no image of a class, nothing predicted PNEUMONIA)
    are NaN. Arguments and errors are those of `confusion_matrix`.
    """
    values = metric_values(_counts(labels, probabilities), threshold)
    return {name: float(value[0]) for name, value in values.items()}


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Probability that a PNEUMONIA image scores above a NORMAL one, ties counted half, in [0, 1].

    The Mann–Whitney form of the area under the ROC curve (Hanley & McNeil 1982). NaN if one of the
    classes has no image.

    Raises:
        DataError: labels or probabilities are out of range, or shapes differ.
    """
    return float(auc_values(_counts(labels, probabilities))[0])


def _counts(labels: ArrayLike, probabilities: ArrayLike) -> RankedCounts:
    return RankedScores.of(*checked_scores(labels, probabilities)).counts_once()


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve on the grid 0, 0.01, …, 1, with a pointwise confidence band.

    ROC: x is the false positive rate (1 - specificity), y the sensitivity. Precision–recall: x is
    the recall (sensitivity), y the precision (ppv).

    Attributes:
        x: the 101 grid points.
        y: the value at each, in [0, 1].
        low: lower limit at each point; empty without a band.
        high: upper limit at each point, likewise.
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
        """Read the document that `to_dict` wrote."""
        return cls(*(_floats(document[key]) for key in ("x", "y", "low", "high")))


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: observed frequency of PNEUMONIA by predicted probability.

    One entry per bin of near-equal mass (the bins of `ece`), in increasing order.

    Attributes:
        probability: mean predicted probability of the bin's images.
        share: observed share of PNEUMONIA.
        low: lower limit of its Wilson interval, which assumes independent images.
        high: upper limit, likewise.
        images: number of images.
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
        """Read the document that `to_dict` wrote."""
        return cls(
            _floats(document["probability"]),
            _floats(document["share"]),
            _floats(document["low"]),
            _floats(document["high"]),
            _integers(document["images"]),
        )


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """Numbers of images per class and probability.

    Attributes:
        edges: 21 increasing bounds from 0 to 1; a bin includes its lower bound, the last bin both.
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
        """Read the document that `to_dict` wrote."""
        return cls(
            _floats(document["edges"]),
            _integers(document["normal"]),
            _integers(document["pneumonia"]),
        )


def roc_and_precision_recall(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients, config: IntervalConfig
) -> tuple[Curve | None, Curve | None]:
    """ROC and precision–recall curves with bands from the bootstrap of `bootstrap_metrics`.

    The ROC curve is linear between its points and takes the upper end of a vertical step. The
    precision–recall curve is a step function: at each recall it has the precision of the highest
    threshold that reaches it, so its area is the average precision. Resamples in which a curve is
    undefined are left out. The bands are pointwise, not simultaneous.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids; with fewer than two patients there is no band.
        config: level, resamples and seed.

    Returns:
        The two curves; `None` if undefined (ROC if a class is missing, precision–recall without
        PNEUMONIA images).

    Raises:
        DataError: shapes differ or values are out of range.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth, scores = checked_scores(labels, probabilities)
    codes, count = patient_codes(patients, truth.size)
    positives = np.unique(codes[truth == 1]).size
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
            roc_point,
            roc_rows,
            config.level,
            np.full(GRID_POINTS, float(positives)),
            fixed_end=True,
        ),
        _banded(
            pr_point, pr_rows, config.level, np.maximum(positives * grid, 1.0), fixed_end=False
        ),
    )


def reliability(labels: ArrayLike, probabilities: ArrayLike, level: float) -> Reliability:
    """The reliability diagram: bins of near-equal mass with Wilson intervals at `level`.

    Raises:
        DataError: shapes differ or values are out of range.
    """
    bins = equal_mass_bins(RankedScores.of(*checked_scores(labels, probabilities)).counts_once())
    used = np.flatnonzero(bins.mass[0])[::-1]  # from decreasing to increasing scores
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


def _on_grid(counts: RankedCounts) -> tuple[Float64Array, Float64Array]:
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
    tp: Float64Array, fp: Float64Array, positives: float, negatives: float
) -> Float64Array:
    # Compare counts, not rates: a rate may miss its grid point by rounding.
    wanted = np.linspace(0.0, negatives, GRID_POINTS)
    x, y = np.concatenate([[0.0], fp]), np.concatenate([[0.0], tp])
    after = np.searchsorted(x, wanted + _ROUNDING, side="right")
    before = after - 1
    after = np.minimum(after, x.size - 1)
    run = np.maximum(x[after] - x[before], 1.0)
    way = np.clip((wanted - x[before]) / run, 0.0, 1.0)
    risen: Float64Array = y[before] + way * (y[after] - y[before])
    return risen / positives


def _precision_at(tp: Float64Array, fp: Float64Array, positives: float) -> Float64Array:
    wanted = np.linspace(0.0, positives, GRID_POINTS) - _ROUNDING
    # At recall 0, the precision of the first threshold with a true positive.
    first = np.searchsorted(tp, np.maximum(wanted, 0.5), side="left")
    precision: Float64Array = tp[first] / (tp[first] + fp[first])
    return precision


def _banded(
    point: Float64Array,
    rows: list[Float64Array],
    level: float,
    patients: Float64Array,
    *,
    fixed_end: bool,
) -> Curve | None:
    """A curve with its band: percentiles, or Wilson's limits where all resamples agree.

    Args:
        point: (1, 101), the curve.
        rows: resampled curves, blocks (b, 101).
        level: confidence level of the band.
        patients: (101,), the number of patients behind each value.
        fixed_end: whether the curve's end is fixed by definition, like that of ROC at (1, 1).
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
