"""Plan an operating point: rates at every threshold, and a threshold that guarantees a rate.

Predictive values follow from sensitivity and specificity by Bayes' rule, at the prevalence of the
intended population, not that of the images. At any prevalence, a predictive value is an increasing
function of its value at a prevalence of 1/2 (`even_ppv`, `even_npv`). Percentile limits computed
once at 1/2 can therefore be transformed to any other prevalence (apart from interpolation between
two resamples), and they reflect the joint uncertainty of sensitivity and specificity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig, PlanConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.intervals import expanded_tail, fewest_patients, resampled_counts
from pneumoscope.evaluation.proportions import (
    Patients,
    clustered_interval,
    effective_images,
    exact_limits,
    patient_codes,
    ratio_limits,
)
from pneumoscope.evaluation.ranked_metrics import (
    RankedCounts,
    RankedScores,
    checked_scores,
    ratio,
)
from pneumoscope.records import Estimate

MOST_ROWS = 1000
"""If there are more distinct scores, this many thresholds at equal steps of rank are used."""

PER = 1000
"""Missed cases and false alarms are given per this many patients."""

Kind: TypeAlias = Literal["sensitivity", "specificity"]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One threshold at one prevalence."""

    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    missed: Estimate
    false_alarms: Estimate


@dataclass(frozen=True, slots=True)
class ThresholdTable:
    """Rates at every threshold; columns are value, lower and upper limit, NaN where undefined.

    Attributes:
        thresholds: float64, (c,), increasing; PNEUMONIA is predicted at or above a threshold.
        sensitivity: float64, (c, 3).
        specificity: float64, (c, 3).
        even_ppv: float64, (c, 3), positive predictive value at a prevalence of 1/2.
        even_npv: float64, (c, 3), negative predictive value at a prevalence of 1/2.
    """

    thresholds: Float64Array
    sensitivity: Float64Array
    specificity: Float64Array
    even_ppv: Float64Array
    even_npv: Float64Array

    def row(self, index: int, prevalence: float) -> PlanRow:
        """The rates at one threshold and a prevalence in [0, 1]."""
        sensitivity, specificity = self.sensitivity[index], self.specificity[index]
        # Missed cases decrease with sensitivity, so the limits swap places.
        missed = PER * prevalence * (1.0 - sensitivity[[0, 2, 1]])
        alarms = PER * (1.0 - prevalence) * (1.0 - specificity[[0, 2, 1]])
        return PlanRow(
            float(self.thresholds[index]),
            _estimate(sensitivity),
            _estimate(specificity),
            _estimate(at_prevalence(self.even_ppv[index], prevalence)),
            _estimate(at_prevalence(self.even_npv[index], 1.0 - prevalence)),
            _estimate(missed),
            _estimate(alarms),
        )

    def nearest(self, threshold: float) -> int:
        """Index of the threshold closest to `threshold`."""
        return int(np.abs(self.thresholds - threshold).argmin())


@dataclass(frozen=True, slots=True)
class ConfidentThreshold:
    """A threshold that guarantees a rate with a stated confidence.

    Attributes:
        value: PNEUMONIA is predicted at or above it.
        rule: how it was chosen, in words.
        kind: the guaranteed rate.
        wanted: the minimum of the rate.
        confidence: of the one-sided limit.
        limit: lower confidence limit of the rate, at least `wanted`.
        chance: share of bootstrap resamples in which the rate reaches `wanted`.
    """

    value: float
    rule: str
    kind: Kind
    wanted: float
    confidence: float
    limit: float
    chance: float


def at_prevalence(even: Float64Array, share: float) -> Float64Array:
    """A predictive value at another prevalence by Bayes' rule, in the shape of `even`.

    Args:
        even: float64, the value at a prevalence of 1/2, in [0, 1] or NaN.
        share: share of the predicted class in the population, in [0, 1].
    """
    return ratio(even * share, even * share + (1.0 - even) * (1.0 - share))


def threshold_table(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    config: IntervalConfig,
    keep: float | None = None,
) -> ThresholdTable:
    """Rates at every threshold, with expanded percentile intervals over resampled patients.

    Thresholds are midway between two adjacent scores, or between an outermost score and 0 or 1.

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids; with one patient there is no interval.
        config: level, resamples and seed.
        keep: the threshold in use; it replaces the threshold with the same predictions.

    Raises:
        DataError: one class only, shapes differ or values are out of range.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth, scores = _both_classes(labels, probabilities)
    ranked = RankedScores.of(truth, scores)
    cuts, thresholds = _cuts(ranked.scores, keep)
    points = _rates(ranked.counts_once(), cuts)
    blocks: list[tuple[Float64Array, ...]] = []
    codes, count = patient_codes(patients, truth.size)
    fewest = fewest_patients(truth, codes)
    if count > 1:
        blocks = [
            _rates(counts, cuts) for counts in resampled_counts(truth, scores, patients, config)
        ]
    columns = []
    for k, point in enumerate(points):
        values = np.concatenate([block[k] for block in blocks]) if blocks else None
        low = high = np.full(cuts.size, np.nan)
        if values is not None:
            low, high = column_limits(values, config.level, fewest)
        columns.append(np.column_stack([point[0], low, high]))
    _hold_at_edges(columns, _kept(truth, scores, cuts), codes, truth, config.level)
    return ThresholdTable(thresholds, *columns)


def _kept(
    truth: Int64Array, scores: Float64Array, cuts: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Numbers of true positives and of true negatives at each cut, each int64 (c,)."""
    counts = RankedScores.of(truth, scores).counts_once()
    true_positives, false_positives = (
        np.concatenate([[0.0], sums[0]])[cuts].astype(np.int64)
        for sums in (counts.true_positives, counts.false_positives)
    )
    return true_positives, int((truth == 0).sum()) - false_positives


def _hold_at_edges(
    columns: list[Float64Array],
    kept: tuple[Int64Array, Int64Array],
    codes: Int64Array,
    truth: Int64Array,
    level: float,
) -> None:
    """Replace limits where all images of a class have the same prediction; changes (c, 3) in place.

    Rates get Wilson's interval with one image per patient (`clustered_interval`); a predictive
    value that depends on such a rate gets the limits of the ratio of the two rates
    (`ratio_limits`).
    """
    edge = np.zeros(len(columns[0]), bool)
    for column, label, hits in zip(columns[:2], (1, 0), kept, strict=True):
        inside = truth == label
        ids, n = codes[inside], int(inside.sum())
        for count in (0, n):
            rows = hits == count
            found = clustered_interval(np.full(n, count > 0), ids, level)
            column[rows, 1:] = found.low, found.high
            edge |= rows
    sensitivity, specificity = columns[0], columns[1]
    alarms, missed = (1.0 - each[:, [0, 2, 1]] for each in (specificity, sensitivity))
    pairs = ((columns[2], sensitivity, alarms), (columns[3], specificity, missed))
    for column, right, wrong in pairs:
        rows = edge & ~np.isnan(column[:, 0])
        if not rows.any():
            continue
        low, high = ratio_limits(tuple(wrong[rows].T), tuple(right[rows].T))
        column[rows, 1:] = np.column_stack([1.0 / (1.0 + high), 1.0 / (1.0 + low)])


def confident_threshold(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    kind: Kind,
    wanted: float,
    config: PlanConfig,
) -> ConfidentThreshold:
    """The threshold that guarantees a rate with confidence, with the highest other rate.

    Thresholds are tested in increasing order for a sensitivity and in decreasing order for a
    specificity, while the one-sided lower limit of the rate (at `config.confidence`, clustered by
    patient) is at least `wanted`; the last one is chosen. The rate decreases monotonically, so
    stopping at the first failure keeps the stated confidence although several thresholds are
    tested (fixed-sequence testing, Maurer, Hothorn & Lehmacher 1995).

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        kind: the rate to guarantee.
        wanted: its minimum, in (0, 1).
        config: confidence, resamples and seed.

    Raises:
        DataError: a class is missing, it has a single patient, or no threshold reaches the rate.
        UsageError: `wanted` is not above 0 and below 1.
    """
    if not 0.0 < wanted < 1.0:
        raise UsageError(f"--min-{kind}: found {wanted}, wanted a share above 0 and below 1")
    truth, scores = _both_classes(labels, probabilities)
    side, sign = (1, 1.0) if kind == "sensitivity" else (0, -1.0)
    inside = truth == side
    codes, count = patient_codes(np.asarray(patients)[inside], int(inside.sum()))
    if count < 2:
        raise DataError(
            f"--min-{kind}: found {count} patient in that class, wanted at least two to compute a "
            "confidence limit. Evaluate on more images."
        )
    order = np.argsort(-sign * scores[inside], kind="stable")
    n = order.size
    hits = np.arange(n + 1)
    effective = effective_images(codes[order], count)
    lower, _ = exact_limits(hits / n, effective, 1.0 - config.confidence)
    cuts, thresholds = _cuts(RankedScores.of(truth, scores).scores, None, most=None)
    rising = np.sort(scores[inside])
    below = np.searchsorted(rising, thresholds, side="left")
    kept = n - below if kind == "sensitivity" else below
    walk = range(cuts.size) if kind == "sensitivity" else range(cuts.size - 1, -1, -1)
    last = None
    for index in walk:
        if lower[kept[index]] < wanted:
            break
        last = index
    if last is None or not _useful(truth, scores, kind, thresholds[last]):
        raise _too_few(kind, wanted, config.confidence, float(lower[n]), count)
    value = float(thresholds[last])
    return ConfidentThreshold(
        value,
        f"{kind} at least {wanted:g} with {config.confidence:.0%} confidence, "
        f"then highest {'specificity' if kind == 'sensitivity' else 'sensitivity'}",
        kind,
        wanted,
        config.confidence,
        float(lower[kept[last]]),
        _chance(truth, scores, patients, kind, wanted, value, config.intervals()),
    )


def column_limits(
    values: Float64Array, level: float, patients: int
) -> tuple[Float64Array, Float64Array]:
    """`percentile_interval` of each column of (b, c); each (c,), NaN where a column is all NaN."""
    ordered = np.sort(values, axis=0)  # NaN last
    counts = ordered.shape[0] - np.isnan(ordered).sum(axis=0)
    limits = []
    beyond = expanded_tail(level, patients)
    for tail in (beyond, 1.0 - beyond):
        place = np.clip(tail * (counts + 1) - 1, 0, np.maximum(counts - 1, 0))
        before = np.floor(place).astype(np.int64)
        after = np.minimum(before + 1, np.maximum(counts - 1, 0))
        first, second = (np.take_along_axis(ordered, k[None], 0)[0] for k in (before, after))
        limits.append(first + (place - before) * (second - first))
    return limits[0], limits[1]


def _both_classes(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Int64Array, Float64Array]:
    truth, scores = checked_scores(labels, probabilities)
    positives = int(truth.sum())
    if not 0 < positives < truth.size:
        raise DataError(
            f"plan: found {positives} PNEUMONIA and {truth.size - positives} NORMAL images with a "
            "probability, wanted some of both. Evaluate on images of both classes."
        )
    return truth, scores


def _cuts(
    falling: Float64Array, keep: float | None, most: int | None = MOST_ROWS
) -> tuple[Int64Array, Float64Array]:
    """Number of highest distinct scores predicted PNEUMONIA at each threshold, and the thresholds.

    Thresholds increase, so the numbers decrease.
    """
    bounds = np.concatenate([[1.0], falling, [0.0]])
    middles = bounds[1:] + (bounds[:-1] - bounds[1:]) / 2
    middles = np.where(middles > bounds[1:], middles, bounds[:-1])
    first = 1 if falling[0] == 1.0 else 0  # a probability of 1 is PNEUMONIA at every threshold
    cuts = np.arange(first, falling.size + 1)
    if most is not None and cuts.size > most:
        cuts = np.unique(np.linspace(first, falling.size, most).round().astype(np.int64))
    if keep is not None:
        same = int(np.count_nonzero(falling >= keep))
        middles[same] = keep
        cuts = np.union1d(cuts, [same])
    cuts = cuts[::-1]
    return cuts, middles[cuts]


def _rates(counts: RankedCounts, cuts: Int64Array) -> tuple[Float64Array, ...]:
    """Sensitivity, specificity and predictive values at a prevalence of 1/2, each (b, c)."""
    none = np.zeros((len(counts.positives), 1))
    true_positives = np.concatenate([none, counts.true_positives], axis=1)[:, cuts]
    false_positives = np.concatenate([none, counts.false_positives], axis=1)[:, cuts]
    sensitivity = ratio(true_positives, counts.all_positives[:, None])
    alarms = ratio(false_positives, counts.all_negatives[:, None])
    even_ppv = ratio(sensitivity, sensitivity + alarms)
    even_npv = ratio(1.0 - alarms, (1.0 - alarms) + (1.0 - sensitivity))
    return sensitivity, 1.0 - alarms, even_ppv, even_npv


def _useful(truth: Int64Array, scores: Float64Array, kind: Kind, threshold: float) -> bool:
    """Whether the other rate is above 0."""
    if kind == "sensitivity":
        return bool((scores[truth == 0] < threshold).any())
    return bool((scores[truth == 1] >= threshold).any())


def _too_few(kind: Kind, wanted: float, confidence: float, best: float, patients: int) -> DataError:
    label = "PNEUMONIA" if kind == "sensitivity" else "NORMAL"
    if best < wanted:
        why = (
            f"even if {label} is predicted for all, the lower limit with {patients} patients of "
            f"that class is {best:.4g}. Evaluate on more patients, or request a lower rate"
        )
    else:
        why = f"it is only reached by predicting {label} for all. Request a lower rate"
    return DataError(f"--min-{kind} {wanted:g} at {confidence:.0%} confidence: {why}.")


def _chance(
    truth: Int64Array,
    scores: Float64Array,
    patients: Patients,
    kind: Kind,
    wanted: float,
    threshold: float,
    config: IntervalConfig,
) -> float:
    """Share of resamples in which the rate is at least `wanted`."""
    ids: NDArray[np.str_] = np.asarray(patients)
    reached: list[Float64Array] = []
    for counts in resampled_counts(truth, scores, ids, config):
        called = np.array([np.count_nonzero(counts.scores >= threshold)])
        sensitivity, specificity, *_ = _rates(counts, called)
        reached.append((sensitivity if kind == "sensitivity" else specificity)[:, 0])
    rates = np.concatenate(reached)
    return float((rates[~np.isnan(rates)] >= wanted - 1e-12).mean())


def _estimate(column: Float64Array) -> Estimate:
    return Estimate(*(None if np.isnan(number) else float(number) for number in column))
