"""Compare metrics on changed images with those on the unchanged images; shortcut baselines.

Sensitivity, specificity and AUC are computed on the images with a result in both versions. Each
resample of patients is applied to both versions, so the interval is that of the paired difference,
which is much narrower than two separate intervals suggest.

A shortcut baseline is a logistic regression on information other than the lungs (thumbnails, file
properties, lung outlines), cross-validated by patient. It is weak on purpose, and its
regularisation is fixed, not tuned. A network can use whatever the baseline can use. If the
baseline's AUC is close to the model's, a high AUC does not prove that the model uses the lungs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.data.thumbnails import cross_validated
from pneumoscope.errors import DataError
from pneumoscope.evaluation.calibration import sigmoid
from pneumoscope.evaluation.intervals import (
    bootstrap_metrics,
    checked_interval,
    delong_interval,
    fewest_patients,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.paired import paired_share_interval
from pneumoscope.evaluation.proportions import (
    Patients,
    at_edge,
    clustered_interval,
    collapsed,
    patient_codes,
    reported_difference,
    reported_limits,
)
from pneumoscope.evaluation.ranked_metrics import (
    RankedScores,
    auc_values,
    checked_labels,
    ratio,
)
from pneumoscope.records import Estimate

Metric = Literal["sensitivity", "specificity", "auc"]
METRICS: tuple[Metric, ...] = ("sensitivity", "specificity", "auc")

Judgement = Literal["holds", "unsure", "fails", "shown"]
"""`unsure`: within the limit, but the interval reaches beyond it. `shown`: not judged."""

_ROUNDING = 1e-9

_PENALTY = 10.0
"""Weight of the squared coefficients in the logistic regression (1 / C in scikit-learn)."""

_MOST_ITERATIONS = 5000


@dataclass(frozen=True, slots=True)
class Paired:
    """Metrics on changed images, compared with the same images unchanged.

    Attributes:
        images: number of images with a result in both versions; all metrics are on these.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        refused: number of images with a result when unchanged, but none when changed.
        plain: each metric on the unchanged images, with its interval.
        changed: each metric on the changed images, with its interval.
        difference: changed minus plain; below 0 is worse.
    """

    images: int
    patients: int
    positives: int
    refused: int
    plain: dict[Metric, Estimate]
    changed: dict[Metric, Estimate]
    difference: dict[Metric, Estimate]

    @property
    def fall(self) -> float:
        """The larger decrease of sensitivity and specificity; below 0 if both increase."""
        return -(self._worst.value or 0.0)

    @property
    def fall_is_shown(self) -> bool:
        """Whether the interval of the larger decrease excludes 0."""
        high = self._worst.high
        return high is not None and high < 0.0

    @property
    def _worst(self) -> Estimate:
        changes = (self.difference["sensitivity"], self.difference["specificity"])
        return min(changes, key=lambda change: change.value or 0.0)


def compare_paired(
    labels: ArrayLike,
    patients: Patients,
    plain: ArrayLike,
    changed: ArrayLike,
    threshold: float,
    config: IntervalConfig,
) -> Paired:
    """Metrics in both versions and their difference, with expanded percentile intervals.

    The intervals come from a paired cluster bootstrap: patients are drawn with replacement (Davison
    & Hinkley 1997, section 3.8), and each resample weights the images of both versions equally. If
    a rate is 0 or 1 in either version, or if all resamples agree, the limits are replaced by those
    of `clustered_interval` and `delong_interval`; for a difference of proportions, by Tango's
    (`paired.paired_share_interval`).

    Args:
        labels: int, (n,), 0 or 1.
        patients: (n,), patient ids.
        plain: float64, (n,), probabilities of the unchanged images; NaN: no result.
        changed: float64, (n,), probabilities of the changed copies; NaN: no result.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        config: level, resamples and seed.

    Returns:
        The comparison; values are `None` if undefined (a class is missing, or no image is left).

    Raises:
        DataError: shapes differ, or a label is neither 0 nor 1.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth = checked_labels(labels)
    before, after = np.asarray(plain, np.float64), np.asarray(changed, np.float64)
    if before.shape != truth.shape or after.shape != truth.shape:
        raise DataError(
            f"probabilities: found shapes {before.shape} and {after.shape}, wanted {truth.shape}, "
            "one per label."
        )
    scored = ~np.isnan(before)
    both = scored & ~np.isnan(after)
    ids = np.asarray(patients)[both]
    columns = (_Column(truth[both], before[both], threshold),
               _Column(truth[both], after[both], threshold))  # fmt: skip
    points = [column.values(np.ones((1, column.labels.size))) for column in columns]
    drawn: list[dict[Metric, list[Float64Array]]] = [{m: [] for m in METRICS} for _ in columns]
    for weights in _resamples(ids, checked_interval(config)):
        for column, collected in zip(columns, drawn, strict=True):
            for metric, values in column.values(weights).items():
                collected[metric].append(values)
    plain_rows, changed_rows = (
        {m: np.concatenate([*collected[m], np.empty(0)]) for m in METRICS} for collected in drawn
    )
    fewest = fewest_patients(truth[both], patient_codes(ids, ids.size)[0])

    def estimate(point: float, resampled: Float64Array) -> Estimate:
        return _estimate(point, resampled, config.level, fewest)

    found: list[dict[Metric, Estimate]] = []
    for column, point, rows in zip(columns, points, (plain_rows, changed_rows), strict=True):
        edges = _edges(column, ids, config.level)
        own = {m: estimate(point[m][0], rows[m]) for m in METRICS}
        found.append(
            {
                m: Estimate(own[m].value, *reported_limits(own[m], edges[m], [own[m].value]))
                for m in METRICS
            }
        )
    pair = (columns[0], columns[1])
    gaps = {
        m: estimate(points[1][m][0] - points[0][m][0], changed_rows[m] - plain_rows[m])
        for m in METRICS
    }

    return Paired(
        images=int(both.sum()),
        patients=len(set(ids.tolist())),
        positives=int(truth[both].sum()),
        refused=int((scored & ~both).sum()),
        plain=found[0],
        changed=found[1],
        difference={
            m: _reported_gap(m, gaps[m], pair, ids, (found[0][m], found[1][m]), config)
            for m in METRICS
        },
    )


def judge(found: Paired, largest_fall: float, *, plausible: bool) -> Judgement:
    """Judge whether sensitivity and specificity decrease by at most `largest_fall` (0 to 1)."""
    if not plausible or not found.images:
        return "shown"
    if found.fall > largest_fall + _ROUNDING:
        return "fails"
    lows = [found.difference[m].low for m in ("sensitivity", "specificity")]
    reaches = any(low is None or -low > largest_fall + _ROUNDING for low in lows)
    return "unsure" if reaches else "holds"


class _Column:
    """The probabilities of one version, sorted once, and its metrics under image weights."""

    def __init__(self, labels: Int64Array, probabilities: Float64Array, threshold: float) -> None:
        self.labels = labels
        self._ranked = RankedScores.of(labels, probabilities)
        predicted = probabilities >= threshold
        self.scores = probabilities
        self.predicted = predicted
        self._positive = (labels == 1).astype(np.float64)
        self._true_positive = self._positive * predicted
        self._true_negative = (1 - self._positive) * ~predicted

    def values(self, weights: Float64Array) -> dict[Metric, Float64Array]:
        """Metrics (b,) for weights (b, n); NaN where undefined."""
        positives, negatives = weights @ self._positive, weights @ (1 - self._positive)
        counts = self._ranked.counts(weights[:, self._ranked.order])
        return {
            "sensitivity": ratio(weights @ self._true_positive, positives),
            "specificity": ratio(weights @ self._true_negative, negatives),
            "auc": auc_values(counts) if self.labels.size else np.full(len(weights), np.nan),
        }


def _edges(column: _Column, ids: NDArray[np.str_], level: float) -> dict[Metric, Estimate]:
    """Intervals that are valid at 0 and 1."""
    positive = column.labels == 1
    return {
        "sensitivity": clustered_interval(column.predicted[positive], ids[positive], level),
        "specificity": clustered_interval(~column.predicted[~positive], ids[~positive], level),
        "auc": delong_interval(column.labels, column.scores, level, ids),
    }


def _reported_gap(
    metric: Metric,
    gap: Estimate,
    columns: tuple[_Column, _Column],
    ids: NDArray[np.str_],
    values: tuple[Estimate, Estimate],
    config: IntervalConfig,
) -> Estimate:
    """A difference with limits that are valid if the bootstrap's collapse."""
    before, after = values
    if np.array_equal(columns[0].scores, columns[1].scores):
        return gap  # identical scores: the difference is exactly 0 for any patients
    if gap.value is None or not (collapsed(gap) or at_edge(before.value) or at_edge(after.value)):
        return gap
    if metric == "auc":
        return reported_difference(gap, after, before)
    inside = columns[0].labels == (1 if metric == "sensitivity" else 0)
    before_right, after_right = (
        column.predicted[inside] == (metric == "sensitivity") for column in columns
    )
    return paired_share_interval(before_right, after_right, ids[inside], config.level)


def _resamples(ids: NDArray[np.str_], config: IntervalConfig) -> Iterator[Float64Array]:
    codes, count = patient_codes(ids, ids.size)
    if count > 1:  # with one patient nothing can be resampled
        yield from resampled_weights(codes, count, config)


def _estimate(point: float, resampled: Float64Array, level: float, patients: int) -> Estimate:
    if np.isnan(point):
        return Estimate(None)
    low, high, _ = percentile_interval(resampled, level, patients)
    return Estimate(float(point), low, high)


@dataclass(frozen=True, slots=True)
class ShortcutBaseline:
    """The result of one shortcut baseline: numbers of images and patients, and AUC."""

    images: int
    patients: int
    auc: Estimate


def shortcut_baseline(
    numbers: ArrayLike, labels: ArrayLike, patients: Patients, folds: int, config: IntervalConfig
) -> ShortcutBaseline | None:
    """The cross-validated AUC of a shortcut baseline, with its bootstrap interval over patients.

    Args:
        numbers: float, (n, d), finite; the features of each image.
        labels: int, (n,), 0 or 1.
        patients: (n,), patient ids; all images of a patient are in the same fold.
        folds: number of folds; fewer if a class has fewer patients.
        config: level, resamples and seed (also of the folds).

    Returns:
        The result, or `None` if a class has fewer than two patients.
    """
    truth, ids = checked_labels(labels), np.asarray(patients)
    scores = held_out_probabilities(numbers, truth, ids, folds, config.seed)
    if scores is None:
        return None
    found = bootstrap_metrics(truth, scores, ids, 0.5, config).estimates["auc"]
    return ShortcutBaseline(truth.size, len(set(ids.tolist())), found)


def held_out_probabilities(
    numbers: ArrayLike, labels: ArrayLike, patients: Patients, folds: int, seed: int
) -> Float64Array | None:
    """Cross-validated probabilities, float64 (n,), from a model trained on other patients.

    Arguments as for `shortcut_baseline`. Returns `None` if a class has fewer than two patients, or
    if a training fold lacks a class.
    """
    rows, truth = np.asarray(numbers, np.float64), checked_labels(labels)
    ids = np.asarray(patients)
    fewest = min(len(set(ids[truth == label].tolist())) for label in (0, 1))
    parts = min(folds, fewest)
    if parts < 2:
        return None
    found = cross_validated(
        rows, truth, ids, seed, folds=parts, penalty=_PENALTY, iterations=_MOST_ITERATIONS
    )
    return None if found is None else sigmoid(found.logits)
