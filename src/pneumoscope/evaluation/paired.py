"""Two models on the same images: differences, and whether they are more than chance.

Comes in: labels (int, (n,)), both models' probabilities (float64, (n,)), patients. Goes out:
frozen records of `Estimate`s and p-values. Does not know of models, margins or files.

All differences are new minus old.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import (
    auc_components,
    checked_interval,
    components_covariance,
    delong_interval,
    fewest_patients,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.proportions import (
    Patients,
    collapsed,
    degrees_factor,
    difference,
    edge_metrics,
    patient_codes,
)
from pneumoscope.evaluation.ranked_metrics import (
    METRIC_NAMES,
    FloatArray,
    IntArray,
    RankedScores,
    checked_scores,
    metric_values,
)
from pneumoscope.records import Estimate

SHARES = {"accuracy": (0, 1), "sensitivity": (1,), "specificity": (0,)}
"""Metrics that are shares of images, with the labels of these."""

_HALVINGS = 60
"""Of an interval of at most 2: what is left is below any double's rounding."""


@dataclass(frozen=True, slots=True)
class PairedAuc:
    """Two AUCs on the same images, compared by DeLong, DeLong & Clarke-Pearson 1988.

    Attributes:
        old: AUC of the old model; `None` without images of both classes.
        new: of the new one.
        difference: with a normal interval, where the variance is 0 one of the two AUCs' own
            intervals, none if the scores are the same.
        p: two-sided, of no difference; `None` where the variance is 0 or undefined.
        error: standard error of the difference, likewise.

    Example:
        >>> labels, old, new = [0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], [0.1, 0.3, 0.8, 0.9]
        >>> found = paired_auc(labels, old, new, 0.95, patients=range(4))
        >>> found.old, found.new
        (0.75, 1.0)
    """

    old: float | None
    new: float | None
    difference: Estimate
    p: float | None
    error: float | None


@dataclass(frozen=True, slots=True)
class McNemar:
    """Who was right where the two disagree (McNemar 1947).

    Attributes:
        only_old: images that the old model alone answers rightly.
        only_new: images that the new model alone answers rightly.
        exact: two-sided p of the exact conditional test; 1 without disagreement.
        mid: mid-p (Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91), which keeps
            its level nearly as well and is less cautious. Both take images for independent.

    Example:
        >>> found = mcnemar([True, True, False, True], [True, True, True, True])
        >>> found.only_old, found.only_new
        (0, 1)
    """

    only_old: int
    only_new: int
    exact: float
    mid: float


@dataclass(frozen=True, slots=True)
class PairedDifferences:
    """Differences of every metric with limits.

    Attributes:
        two_sided: interval at the configuration's level: of shares of images (`SHARES`) that of
            `paired_share_interval`, else expanded percentiles of one bootstrap over patients.
        lower: the bootstrap's one-sided lower limit per metric, at `confidence`; `None` where
            undefined.
        upper: one-sided upper limit likewise.
    """

    two_sided: Mapping[str, Estimate]
    lower: Mapping[str, float | None]
    upper: Mapping[str, float | None]


def paired_auc(
    labels: ArrayLike, old: ArrayLike, new: ArrayLike, level: float, patients: Patients
) -> PairedAuc:
    """Both AUCs and their difference; components are summed per patient (Obuchowski 1997).

    Example:
        >>> labels, old, new = [0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], [0.1, 0.3, 0.8, 0.9]
        >>> paired_auc(labels, old, new, 0.95, patients=range(4)).difference.value
        0.25
    """
    truth, before = checked_scores(labels, old)
    _, after = checked_scores(labels, new)
    if not 0 < truth.sum() < truth.size:
        return PairedAuc(None, None, Estimate(None), None, None)
    first, second = auc_components(truth, before), auc_components(truth, after)
    gap = second.auc - first.auc
    codes, count = patient_codes(patients, truth.size)
    spread = components_covariance(truth, codes, count, (first, second))
    variance = float(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    if math.isnan(variance) or variance <= 1e-18:
        apart = Estimate(gap)
        if not np.array_equal(before, after):  # of the same scores there is nothing to tell apart
            apart = difference(
                delong_interval(truth, after, level, patients),
                delong_interval(truth, before, level, patients),
            )
        return PairedAuc(first.auc, second.auc, apart, None, None)
    error = math.sqrt(variance)
    half = NormalDist().inv_cdf((1.0 + level) / 2) * error
    p = math.erfc(abs(gap) / error / math.sqrt(2))
    return PairedAuc(first.auc, second.auc, Estimate(gap, gap - half, gap + half), p, error)


def mcnemar(old_right: ArrayLike, new_right: ArrayLike) -> McNemar:
    """Exact and mid-p McNemar tests of two answers to the same images.

    Args:
        old_right: bool, (n,), whether the old model's answer is right.
        new_right: bool, (n,), whether the new model's is.

    Example:
        >>> mcnemar([True] * 8 + [False] * 8, [True] * 16).exact < 0.05
        True
    """
    before = np.asarray(old_right, dtype=bool)
    after = np.asarray(new_right, dtype=bool)
    only_old = int(np.count_nonzero(before & ~after))
    only_new = int(np.count_nonzero(~before & after))
    return McNemar(only_old, only_new, *mcnemar_p(only_old, only_new))


def mcnemar_p(only_old: int, only_new: int) -> tuple[float, float]:
    """Two-sided exact and mid-p values from the two discordant counts."""
    total, least = only_old + only_new, min(only_old, only_new)
    if not total:
        return 1.0, 1.0
    chances = [_half_binomial(total, k) for k in range(least + 1)]
    exact = min(2.0 * math.fsum(chances), 1.0)
    mid = 2.0 * (math.fsum(chances) - 0.5 * chances[-1]) if only_old != only_new else 1.0
    if only_old == only_new:
        mid = 1.0 - 0.5 * chances[-1]
    return exact, min(mid, 1.0)


def _half_binomial(total: int, k: int) -> float:
    """P(X = k) of `total` fair coins."""
    log = math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
    return math.exp(log - total * math.log(2.0))


def paired_share_lower(old_right: ArrayLike, new_right: ArrayLike, confidence: float) -> float:
    """One-sided lower limit of a difference of paired shares that does not collapse.

    Tango's score limit (1998, Statistics in Medicine 17:891-908): the largest difference below
    the one seen that a score test at `confidence` rejects. Takes images for independent. -1
    without images.
    """
    before = np.asarray(old_right, dtype=bool)
    after = np.asarray(new_right, dtype=bool)
    if not before.size:
        return -1.0
    gained = int(np.count_nonzero(~before & after))
    lost = int(np.count_nonzero(before & ~after))
    return tango_lower(gained, lost, before.size, confidence)


def paired_share_interval(
    old_right: ArrayLike, new_right: ArrayLike, patients: Patients, level: float
) -> Estimate:
    """New minus old of a share of the same images, with Tango's score interval.

    A difference rests on the few images that the two answer differently, of which percentiles of
    resamples make too little. Counts are taken at the effective number of images, as in `shares`:
    so many independent ones whose differences would vary as much as the patients' do, but no more
    than there are.

    Args:
        old_right: bool, (n,), whether the old model's answer is right.
        new_right: bool, (n,), whether the new model's is.
        patients: (n,), ids.
        level: confidence level, as 0.95.

    Returns:
        All `None` without images; no interval with one patient whose images change differently.
    """
    change = np.asarray(new_right, np.float64) - np.asarray(old_right, np.float64)
    codes, count = patient_codes(patients, change.size)
    if not change.size:
        return Estimate(None)
    gap, n = float(change.mean()), change.size
    if count < 2 and np.ptp(change) > 0.0:
        return Estimate(gap)
    apart = change - gap
    sums = np.bincount(codes, apart, count)
    clustered = float(sums @ sums) * count / max(count - 1, 1)
    independent = float(apart @ apart) * n / max(n - 1, 1)
    # Where nothing changed nothing is seen of how alike a patient's images are: each is one then.
    effective = min(n * independent / clustered, n) if clustered > 0.0 else float(count)
    effective *= degrees_factor(n, count) if count > 1 else 1.0
    gained, lost = (float((change == way).sum()) * effective / n for way in (1.0, -1.0))
    confidence = (1.0 + level) / 2
    low = tango_lower(gained, lost, effective, confidence)
    high = -tango_lower(lost, gained, effective, confidence)
    return Estimate(gap, low, high)


def tango_lower(gained: float, lost: float, n: float, confidence: float) -> float:
    """The limit of `paired_share_lower` from counts, which need not be whole: found by halving."""
    z = NormalDist().inv_cdf(confidence)

    def statistic(gap: float) -> float:
        # The chance of a loss that fits best where the difference is `gap`.
        middle = -gained - lost + (2 * n - gained + lost) * gap
        root = math.sqrt(max(middle**2 + 8 * n * lost * gap * (1 - gap), 0.0))
        loss = (root - middle) / (4 * n)
        spread = n * (2 * loss + gap * (1 - gap))
        return (gained - lost - n * gap) / math.sqrt(spread) if spread > 0 else math.inf

    low, high = -1.0, (gained - lost) / n
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > z else (low, middle)
    return low


def paired_differences(
    labels: ArrayLike,
    scores: tuple[ArrayLike, ArrayLike],
    thresholds: tuple[float, float],
    patients: Patients,
    config: IntervalConfig,
    confidence: float,
) -> PairedDifferences:
    """Differences of every metric of the contract, both models on the same resampled patients.

    Args:
        labels: int, (n,), 0 or 1.
        scores: the old and the new model's probabilities, float64, (n,) each.
        thresholds: of the old and the new model.
        patients: (n,), ids; with one patient there are no limits.
        config: level, resamples, seed.
        confidence: of the one-sided limits.
    """
    truth, before = checked_scores(labels, scores[0])
    _, after = checked_scores(labels, scores[1])
    ranked = [RankedScores.of(truth, values) for values in (before, after)]
    points = [
        metric_values(one.counts_once(), at) for one, at in zip(ranked, thresholds, strict=True)
    ]
    codes, count = patient_codes(patients, truth.size)
    collected: dict[str, list[FloatArray]] = {name: [] for name in METRIC_NAMES}
    if count > 1:
        for weights in resampled_weights(codes, count, checked_interval(config)):
            old, new = (
                metric_values(one.counts(weights[:, one.order]), at, noise_sources=2)
                for one, at in zip(ranked, thresholds, strict=True)
            )
            for name in METRIC_NAMES:
                collected[name].append(new[name] - old[name])
    fewest = fewest_patients(truth, codes)
    edges = [
        _edge_differences(truth, (before, after), thresholds, patients, points, at)
        for at in (config.level, 2 * confidence - 1)
    ]
    two_sided, lower, upper, flat = {}, {}, {}, set()
    for name in METRIC_NAMES:
        gap = float(points[1][name][0] - points[0][name][0])
        values = np.concatenate([*collected[name], np.empty(0)])
        low, high, _ = percentile_interval(values, config.level, fewest)
        defined = not math.isnan(gap)
        if defined and collapsed(Estimate(gap, low, high)):
            low, high = edges[0][name].low, edges[0][name].high
        two_sided[name] = Estimate(gap, low, high) if defined else Estimate(None)
        # A one-sided limit at c is an end of the two-sided interval at 2c - 1.
        low, high, _ = percentile_interval(values, 2 * confidence - 1, fewest)
        if defined and collapsed(Estimate(gap, low, high)):
            low, high = edges[1][name].low, edges[1][name].high
            flat.add(name)
        lower[name], upper[name] = (low, high) if defined else (None, None)
    ids = np.asarray(patients)
    right = [
        is_correct(truth, values, at)
        for values, at in zip((before, after), thresholds, strict=True)
    ]
    for name, labels_of in SHARES.items():
        inside = np.isin(truth, labels_of)
        pair = right[0][inside], right[1][inside], ids[inside]
        two_sided[name] = paired_share_interval(*pair, config.level)
        if name in flat:
            one_sided = paired_share_interval(*pair, 2 * confidence - 1)
            lower[name], upper[name] = one_sided.low, one_sided.high
    return PairedDifferences(two_sided, lower, upper)


def _edge_differences(
    truth: IntArray,
    scores: tuple[FloatArray, FloatArray],
    thresholds: tuple[float, float],
    patients: Patients,
    points: Sequence[Mapping[str, FloatArray]],
    level: float,
) -> dict[str, Estimate]:
    """New minus old of every metric from the two models' own intervals; 0 if nothing differs."""
    if np.array_equal(*scores) and thresholds[0] == thresholds[1]:
        return {name: Estimate(0.0, 0.0, 0.0) for name in METRIC_NAMES}
    old, new = (
        edge_metrics(
            truth,
            own,
            patients,
            at,
            {name: float(value[0]) for name, value in point.items()},
            level,
        )
        for own, at, point in zip(scores, thresholds, points, strict=True)
    )
    return {name: difference(new[name], old[name]) for name in METRIC_NAMES}


def is_correct(labels: IntArray, probabilities: FloatArray, threshold: float) -> NDArray[np.bool_]:
    """Whether each image's answer is right, bool (n,)."""
    right: NDArray[np.bool_] = (probabilities >= threshold) == (labels == 1)
    return right
