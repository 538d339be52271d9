"""Paired comparison of two models on the same images: differences, intervals and tests.

All differences are new minus old.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError
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
    RankedScores,
    checked_scores,
    metric_values,
)
from pneumoscope.records import Estimate

SHARES = {"accuracy": (0, 1), "sensitivity": (1,), "specificity": (0,)}
"""Metrics that are proportions of images, with the labels of the images they count."""

_HALVINGS = 60
"""Bisection steps; they reduce an interval of length 2 to below the precision of a double."""


@dataclass(frozen=True, slots=True)
class PairedAuc:
    """Two AUCs on the same images, compared by DeLong, DeLong & Clarke-Pearson 1988.

    Attributes:
        old: AUC of the old model; `None` if a class is missing.
        new: AUC of the new model, likewise.
        difference: with a normal interval; if the variance is 0, with an interval from the two
            AUCs' own intervals; without an interval if the scores are identical.
        p: two-sided p of no difference; `None` if the variance is 0 or undefined.
        error: standard error of the difference, likewise.

    Examples:
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
    """Discordant predictions of two models, with McNemar's tests (1947).

    Both tests assume independent images.

    Attributes:
        only_old: number of images that only the old model predicts correctly.
        only_new: number of images that only the new model predicts correctly.
        exact: two-sided p of the exact conditional test; 1 without discordant images.
        mid: mid-p (Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91), which is less
            conservative and nearly keeps the level.

    Examples:
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
    """Differences of all metrics with their limits.

    Attributes:
        two_sided: with intervals at the configured level: those of `paired_share_interval` for
            proportions (`SHARES`), otherwise expanded percentiles of one bootstrap over patients.
        lower: the bootstrap's one-sided lower limit per metric; `None` if undefined.
        upper: the bootstrap's one-sided upper limit per metric, likewise.
    """

    two_sided: Mapping[str, Estimate]
    lower: Mapping[str, float | None]
    upper: Mapping[str, float | None]


def paired_auc(
    labels: ArrayLike, old: ArrayLike, new: ArrayLike, level: float, patients: Patients
) -> PairedAuc:
    """Both AUCs and their difference, clustered by patient (Obuchowski 1997).

    Args:
        labels: int, (n,), 0 or 1.
        old: float64, (n,), probabilities of the old model.
        new: float64, (n,), probabilities of the new model.
        level: confidence level, such as 0.95.
        patients: (n,), patient ids.

    Examples:
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
        estimate = Estimate(gap)
        if not np.array_equal(before, after):  # identical scores have no difference to estimate
            estimate = difference(
                delong_interval(truth, after, level, patients),
                delong_interval(truth, before, level, patients),
            )
        return PairedAuc(first.auc, second.auc, estimate, None, None)
    error = math.sqrt(variance)
    half = NormalDist().inv_cdf((1.0 + level) / 2) * error
    p = math.erfc(abs(gap) / error / math.sqrt(2))
    return PairedAuc(first.auc, second.auc, Estimate(gap, gap - half, gap + half), p, error)


def mcnemar(old_right: ArrayLike, new_right: ArrayLike) -> McNemar:
    """Exact and mid-p McNemar tests of two models on the same images.

    Args:
        old_right: bool, (n,), whether the old model's prediction is correct.
        new_right: bool, (n,), whether the new model's prediction is correct.

    Raises:
        DataError: they differ in length.

    Examples:
        >>> mcnemar([True] * 8 + [False] * 8, [True] * 16).exact < 0.05
        True
    """
    before = np.asarray(old_right, dtype=bool)
    after = np.asarray(new_right, dtype=bool)
    if before.shape != after.shape:
        raise DataError(
            f"found {before.size} results of the old model and {after.size} of the new one; wanted "
            "both for the same images"
        )
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
    """P(X = k) of a binomial distribution with `total` trials and probability 1/2."""
    log = math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
    return math.exp(log - total * math.log(2.0))


def paired_share_interval(
    old_right: ArrayLike, new_right: ArrayLike, patients: Patients, level: float
) -> Estimate:
    """Difference, new minus old, of a proportion of the same images, with Tango's score interval.

    The difference rests on the few discordant images, for which percentile intervals are too
    narrow. Counts are scaled to the effective number of images: the number of independent images
    whose differences would vary as much as the observed ones, clustered by patient, and at most n.

    Args:
        old_right: bool, (n,), whether the old model's prediction is correct.
        new_right: bool, (n,), whether the new model's prediction is correct.
        patients: (n,), patient ids.
        level: confidence level, such as 0.95.

    Returns:
        All `None` without images; no interval with a single patient whose images differ.
    """
    change = np.asarray(new_right, np.float64) - np.asarray(old_right, np.float64)
    codes, count = patient_codes(patients, change.size)
    if not change.size:
        return Estimate(None)
    gap, n = float(change.mean()), change.size
    if count < 2 and np.ptp(change) > 0.0:
        return Estimate(gap)
    residual = change - gap
    sums = np.bincount(codes, residual, count)
    clustered = float(sums @ sums) * count / max(count - 1, 1)
    independent = float(residual @ residual) * n / max(n - 1, 1)
    # Without changes, the correlation within patients can't be estimated: one image per patient.
    effective = min(n * independent / clustered, n) if clustered > 0.0 else float(count)
    effective *= degrees_factor(n, count) if count > 1 else 1.0
    gained, lost = (float((change == way).sum()) * effective / n for way in (1.0, -1.0))
    confidence = (1.0 + level) / 2
    low = tango_lower(gained, lost, effective, confidence)
    high = -tango_lower(lost, gained, effective, confidence)
    return Estimate(gap, low, high)


def tango_lower(gained: float, lost: float, n: float, confidence: float) -> float:
    """One-sided lower limit of a difference of paired proportions; it never collapses.

    Tango's score limit (1998, Statistics in Medicine 17:891-908): the largest difference below
    the observed one that a score test at `confidence` rejects, by bisection. It assumes
    independent images.

    Args:
        gained: number of images that only the new model predicts correctly, not always an integer.
        lost: number that only the old model predicts correctly.
        n: number of all images, above 0.
        confidence: such as 0.95.
    """
    z = NormalDist().inv_cdf(confidence)

    def statistic(gap: float) -> float:
        # Maximum-likelihood probability of a loss under the difference `gap`.
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
    """Differences of all metrics of `metrics.json`, with both models on the same resamples.

    Args:
        labels: int, (n,), 0 or 1.
        scores: probabilities of the old and of the new model, each float64, (n,), in [0, 1].
        thresholds: of the old and the new model.
        patients: (n,), patient ids; with one patient there are no limits.
        config: level, resamples and seed.
        confidence: of the one-sided limits.
    """
    truth, before = checked_scores(labels, scores[0])
    _, after = checked_scores(labels, scores[1])
    ranked = [RankedScores.of(truth, values) for values in (before, after)]
    points = [
        metric_values(one.counts_once(), at) for one, at in zip(ranked, thresholds, strict=True)
    ]
    codes, count = patient_codes(patients, truth.size)
    collected: dict[str, list[Float64Array]] = {name: [] for name in METRIC_NAMES}
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
        # A one-sided limit at confidence c is a limit of the two-sided interval at 2c - 1.
        low, high, _ = percentile_interval(values, 2 * confidence - 1, fewest)
        if defined and collapsed(Estimate(gap, low, high)):
            low, high = edges[1][name].low, edges[1][name].high
            flat.add(name)
        lower[name], upper[name] = (low, high) if defined else (None, None)
    ids = np.asarray(patients)
    correct = [
        is_correct(truth, values, at)
        for values, at in zip((before, after), thresholds, strict=True)
    ]
    for name, labels_of in SHARES.items():
        inside = np.isin(truth, labels_of)
        pair = correct[0][inside], correct[1][inside], ids[inside]
        two_sided[name] = paired_share_interval(*pair, config.level)
        if name in flat:
            one_sided = paired_share_interval(*pair, 2 * confidence - 1)
            lower[name], upper[name] = one_sided.low, one_sided.high
    return PairedDifferences(two_sided, lower, upper)


def _edge_differences(
    truth: Int64Array,
    scores: tuple[Float64Array, Float64Array],
    thresholds: tuple[float, float],
    patients: Patients,
    points: Sequence[Mapping[str, Float64Array]],
    level: float,
) -> dict[str, Estimate]:
    """Differences from the two models' own intervals; exactly 0 if nothing differs."""
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


def is_correct(
    labels: Int64Array, probabilities: Float64Array, threshold: float
) -> NDArray[np.bool_]:
    """Whether the prediction for each image is correct, bool (n,)."""
    correct: NDArray[np.bool_] = (probabilities >= threshold) == (labels == 1)
    return correct
