"""Every operating point that a set of scores allows, and the one that holds what is wanted.

Comes in: labels (int, (n,)), probabilities (float64, (n,)), patient ids, a prevalence. Goes out: a
`ThresholdTable`, a `ConfidentThreshold`. Does not know of models, pages or files.

Predictive values follow from sensitivity and specificity by Bayes' rule at the prevalence of the
place where the model is to be used, not that of the images. Each is a rising function of itself
at prevalence 1/2 (`even_ppv`, `even_npv`), whatever the prevalence; so percentile limits taken
there once are, carried over, those at any other (but for interpolation between two resamples), and
hold the uncertainty of sensitivity and specificity together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    FloatArray,
    IntArray,
    RankedCounts,
    RankedScores,
    checked_scores,
    ratio,
)
from pneumoscope.records import Estimate

MOST_ROWS = 1000
"""Of more distinct scores, as many thresholds at even steps of the ranking are shown."""

PER = 1000
"""Missed cases and false alarms are counted among so many patients."""

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
    """Every threshold with its rates; columns are value, low, high, NaN where undefined.

    Attributes:
        thresholds: (c,), rising; PNEUMONIA from there up.
        sensitivity: (c, 3).
        specificity: (c, 3).
        even_ppv: (c, 3), the positive predictive value where half of all are ill.
        even_npv: (c, 3), the negative one likewise.
    """

    thresholds: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray
    even_ppv: FloatArray
    even_npv: FloatArray

    def row(self, index: int, prevalence: float) -> PlanRow:
        """One threshold at a prevalence, in [0, 1]."""
        sensitivity, specificity = self.sensitivity[index], self.specificity[index]
        # What is missed falls where sensitivity rises, so its limits change places.
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
        """The index whose threshold gives the same answers as `threshold`, or nearly so."""
        return int(np.abs(self.thresholds - threshold).argmin())


@dataclass(frozen=True, slots=True)
class ConfidentThreshold:
    """A threshold for a wanted rate, and how sure it is that it holds.

    Attributes:
        value: PNEUMONIA from there up.
        rule: how it was chosen, in words.
        kind: which rate was wanted.
        wanted: at least that much.
        confidence: of the limit, one-sided.
        limit: lower confidence limit of the wanted rate, at least `wanted`.
        chance: share of the bootstrap's resamples in which the wanted rate is reached.
    """

    value: float
    rule: str
    kind: Kind
    wanted: float
    confidence: float
    limit: float
    chance: float


def at_prevalence(even: FloatArray, share: float) -> FloatArray:
    """A predictive value at another prevalence by Bayes' rule, in the shape of `even`.

    Args:
        even: the value where both classes are equally frequent, in [0, 1] or NaN.
        share: how frequent the class that it is about is, in [0, 1].
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

    A threshold lies midway between two neighbouring scores, or between the outermost and 0 or 1.

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids; with one patient there is no interval.
        config: level, resamples, seed.
        keep: a threshold in use, which takes the place of the one that gives the same answers.

    Raises:
        DataError: one class only, shapes differ or values are out of range.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth, scores = _both_classes(labels, probabilities)
    ranked = RankedScores.of(truth, scores)
    cuts, thresholds = _cuts(ranked.scores, keep)
    points = _rates(ranked.counts_once(), cuts)
    blocks: list[tuple[FloatArray, ...]] = []
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


def _kept(truth: IntArray, scores: FloatArray, cuts: IntArray) -> tuple[IntArray, IntArray]:
    """How many PNEUMONIA images each cut calls so, and NORMAL ones likewise, (c,) each."""
    counts = RankedScores.of(truth, scores).counts_once()
    ill, well = (
        np.concatenate([[0.0], sums[0]])[cuts].astype(np.int64)
        for sums in (counts.true_positives, counts.false_positives)
    )
    return ill, int((truth == 0).sum()) - well


def _hold_at_edges(
    columns: list[FloatArray],
    kept: tuple[IntArray, IntArray],
    codes: IntArray,
    truth: IntArray,
    level: float,
) -> None:
    """Limits that hold where all images of a class are called alike; columns (c, 3) are changed.

    Rates have Wilson's interval with a patient as one image (`shares`); a predictive value that
    rests on such a rate has the limits of the quotient of the two rates (`edges.ratio_limits`).
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
    """The threshold that keeps a wanted rate with confidence, and costs the other rate least.

    For a sensitivity thresholds are walked upwards, for a specificity downwards, as long as the
    one-sided lower limit of the rate (`shares`, at `config.confidence`) is at least `wanted`; the
    last one is taken. The rate only falls on the way, so stopping at the first failure keeps the
    stated confidence although many thresholds are looked at (fixed-sequence testing, Maurer,
    Hothorn & Lehmacher 1995).

    Raises:
        DataError: one class only, a single patient in the class, or no threshold keeps it.
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
            f"--min-{kind}: found {count} patient in that class, wanted at least two to tell "
            "how sure the rate is. Evaluate on more images."
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


def column_limits(values: FloatArray, level: float, patients: int) -> tuple[FloatArray, FloatArray]:
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


def _both_classes(labels: ArrayLike, probabilities: ArrayLike) -> tuple[IntArray, FloatArray]:
    truth, scores = checked_scores(labels, probabilities)
    positives = int(truth.sum())
    if not 0 < positives < truth.size:
        raise DataError(
            f"plan: found {positives} PNEUMONIA and {truth.size - positives} NORMAL images with an "
            "answer, wanted some of both. Evaluate on images of both classes."
        )
    return truth, scores


def _cuts(
    falling: FloatArray, keep: float | None, most: int | None = MOST_ROWS
) -> tuple[IntArray, FloatArray]:
    """How many of the highest distinct scores are called PNEUMONIA, and from which threshold.

    Thresholds rise, so the counts fall.
    """
    bounds = np.concatenate([[1.0], falling, [0.0]])
    middles = bounds[1:] + (bounds[:-1] - bounds[1:]) / 2
    middles = np.where(middles > bounds[1:], middles, bounds[:-1])
    first = 1 if falling[0] == 1.0 else 0  # no threshold up to 1 calls a probability of 1 NORMAL
    cuts = np.arange(first, falling.size + 1)
    if most is not None and cuts.size > most:
        cuts = np.unique(np.linspace(first, falling.size, most).round().astype(np.int64))
    if keep is not None:
        same = int(np.count_nonzero(falling >= keep))
        middles[same] = keep
        cuts = np.union1d(cuts, [same])
    cuts = cuts[::-1]
    return cuts, middles[cuts]


def _rates(counts: RankedCounts, cuts: IntArray) -> tuple[FloatArray, ...]:
    """Sensitivity, specificity and the predictive values at even prevalence, each (b, c)."""
    none = np.zeros((len(counts.positives), 1))
    called_ill = np.concatenate([none, counts.true_positives], axis=1)[:, cuts]
    called_well = np.concatenate([none, counts.false_positives], axis=1)[:, cuts]
    sensitivity = ratio(called_ill, counts.all_positives[:, None])
    alarms = ratio(called_well, counts.all_negatives[:, None])
    even_ppv = ratio(sensitivity, sensitivity + alarms)
    even_npv = ratio(1.0 - alarms, (1.0 - alarms) + (1.0 - sensitivity))
    return sensitivity, 1.0 - alarms, even_ppv, even_npv


def _useful(truth: IntArray, scores: FloatArray, kind: Kind, threshold: float) -> bool:
    """Whether the other rate is above 0."""
    if kind == "sensitivity":
        return bool((scores[truth == 0] < threshold).any())
    return bool((scores[truth == 1] >= threshold).any())


def _too_few(kind: Kind, wanted: float, confidence: float, best: float, patients: int) -> DataError:
    answer = "PNEUMONIA" if kind == "sensitivity" else "NORMAL"
    if best < wanted:
        why = (
            f"even answering {answer} for all, {patients} patients of that class show no more "
            f"than {best:.4g}. Evaluate on more patients, or ask for less"
        )
    else:
        why = f"only answering {answer} for all keeps it. Ask for less"
    return DataError(f"--min-{kind} {wanted:g} at {confidence:.0%} confidence: {why}.")


def _chance(
    truth: IntArray,
    scores: FloatArray,
    patients: Patients,
    kind: Kind,
    wanted: float,
    threshold: float,
    config: IntervalConfig,
) -> float:
    """Share of resamples in which the rate is at least as wanted."""
    ids: NDArray[np.str_] = np.asarray(patients)
    reached: list[FloatArray] = []
    for counts in resampled_counts(truth, scores, ids, config):
        called = np.array([np.count_nonzero(counts.scores >= threshold)])
        sensitivity, specificity, *_ = _rates(counts, called)
        reached.append((sensitivity if kind == "sensitivity" else specificity)[:, 0])
    rates = np.concatenate(reached)
    return float((rates[~np.isnan(rates)] >= wanted - 1e-12).mean())


def _estimate(column: FloatArray) -> Estimate:
    return Estimate(*(None if np.isnan(number) else float(number) for number in column))
