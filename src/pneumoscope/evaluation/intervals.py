"""Confidence intervals of metrics: bootstrap over patients, Wilson, DeLong.

Each method has its limits:

- The bootstrap resamples patients, so it accounts for several images per patient. Its interval
  collapses to a point if all predictions are correct (accuracy 1, AUC 1); it is then replaced by
  that of `proportions.edge_metrics`.
- Wilson's interval never collapses, but assumes independent images. It is too narrow if patients
  have many images each.
- DeLong's interval needs no resampling and can be clustered by patient. Its variance is 0 at an AUC
  of 0 or 1; it is then replaced by Newcombe's interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.calibration import GapResamples
from pneumoscope.evaluation.proportions import (
    EDGE_METHOD,
    OF_SHARES,
    Patients,
    at_edge,
    auc_interval,
    collapsed,
    edge_metrics,
    patient_codes,
    reported_limits,
    score_interval,
)
from pneumoscope.evaluation.ranked_metrics import (
    RankedCounts,
    RankedScores,
    checked_scores,
    metric_values,
    win_shares,
)
from pneumoscope.records import Estimate

BOOTSTRAP_METHOD = f"expanded percentile bootstrap over patients; {EDGE_METHOD}"
METRICS_METHOD = (
    f"{BOOTSTRAP_METHOD}; areas under a curve: bootstrap standard deviation on the logit scale; "
    "calibration error: corrected for sampling noise"
)
"""The method of `bootstrap_metrics`, in words."""

BY_DEVIATION = ("auc", "average_precision")
"""Metrics whose interval uses the bootstrap's deviation on the logit scale (`logit_interval`)."""

_NO_VARIANCE = 1e-18

_BLOCK_ELEMENTS = 1 << 18
"""Weights in memory at a time; small enough for a processor's cache."""


@dataclass(frozen=True, slots=True)
class BootstrapMetrics:
    """Metrics with intervals from one bootstrap.

    Attributes:
        estimates: one per metric, in the order of `metrics.json`.
        dropped: per metric, the number of resamples in which it is undefined; they are left out.
    """

    estimates: Mapping[str, Estimate]
    dropped: Mapping[str, int]


def resampled_weights(
    codes: Int64Array, patients: int, config: IntervalConfig
) -> Iterator[Float64Array]:
    """Draw patients with replacement, and yield how often each image is in each resample.

    Args:
        codes: int64, (n,), the patient of each image, 0 to `patients` - 1.
        patients: number of patients, and of draws per resample.
        config: number of resamples and seed.

    Yields:
        Integer weights, float64, (b, n); the blocks have `config.resamples` rows in total. The
        patients drawn depend only on the seed and the number of patients.
    """
    rng = np.random.default_rng(config.seed)
    block = max(1, _BLOCK_ELEMENTS // max(codes.size, patients, 1))
    for start in range(0, config.resamples, block):
        rows = min(block, config.resamples - start)
        drawn = rng.integers(0, patients, size=(rows, patients))
        drawn += patients * np.arange(rows)[:, np.newaxis]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield np.take(times.astype(np.float64), codes, axis=1)


def resampled_counts(
    labels: Int64Array, probabilities: Float64Array, patients: Patients, config: IntervalConfig
) -> Iterator[RankedCounts]:
    """Yield the bootstrap resamples as ranked counts, in blocks; the scores are sorted once."""
    codes, count = patient_codes(patients, labels.size)
    ranked = RankedScores.of(labels, probabilities)
    for weights in resampled_weights(codes[ranked.order], count, checked_interval(config)):
        yield ranked.counts(weights)


def checked_interval(config: IntervalConfig) -> IntervalConfig:
    """Return the configuration after checking it.

    Raises:
        UsageError: the level is not between 0 and 1, or there is no resample.
    """
    if not 0.0 < config.level < 1.0:
        raise UsageError(
            f"interval.level: found {config.level}, wanted a number between 0 and 1, such as 0.95."
        )
    if config.resamples < 1:
        raise UsageError(f"interval.resamples: found {config.resamples}, wanted 1 or more.")
    return config


def expanded_tail(level: float, patients: int) -> float:
    """Share of resamples beyond each limit of an interval at `level`, in [0, 0.5].

    Resampling n patients underestimates variances by the factor (n - 1) / n, and implies normal
    instead of Student quantiles. Both are corrected by using percentiles further in the tails:
    Φ(-√(n / (n - 1)) × t(n - 1)), the expanded percentile interval of Hesterberg 2015
    (doi:10.1080/00031305.2015.1089789). For many patients it approaches (1 - level) / 2.
    """
    return NormalDist().cdf(-normal_reach(level, patients))


def normal_reach(level: float, patients: int) -> float:
    """√(n / (n - 1)) × t(n - 1): standard deviations from centre to limit, such as 1.96."""
    from scipy.special import stdtrit

    n = max(patients, 2)
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, (1.0 + level) / 2))


def fewest_patients(truth: Int64Array, codes: Int64Array) -> int:
    """Number of patients of the rarer class among the classes that are present.

    Args:
        truth: int64, (n,), 0 or 1.
        codes: int64, (n,), the patient of each image.
    """
    found = (np.unique(codes[truth == label]).size for label in (0, 1))
    return min((size for size in found if size), default=0)


def percentile_interval(
    values: Float64Array, level: float, patients: int
) -> tuple[float | None, float | None, int]:
    """Expanded percentile interval of resampled values (b,), and the number of NaN dropped.

    The limits are the values of rank tail × (b + 1) and its mirror image, interpolated (Davison &
    Hinkley 1997, section 5.3), so that few resamples do not give narrower intervals than many. For
    `patients` see `expanded_tail`. NaN marks resamples in which the metric is undefined.
    """
    kept = values[~np.isnan(values)]
    dropped = values.size - kept.size
    if not kept.size:
        return None, None, dropped
    tail = expanded_tail(level, patients)
    low, high = np.quantile(kept, [tail, 1.0 - tail], method="weibull")
    return float(low), float(high), dropped


def logit_interval(
    point: float, values: Float64Array, level: float, patients: int
) -> tuple[float | None, float | None, int]:
    """Student's interval on the logit scale with the standard deviation of resampled values (b,).

    For areas under a curve: near 1 their resamples are skewed, and percentile intervals cover the
    true value less often than stated. The standard deviation is transformed to the logit scale to
    first order, as Boyd, Eng & Page 2013 (doi:10.1007/978-3-642-40994-3_29) do for the
    precision–recall curve and DeLong's interval does for the ROC curve. Percentiles are used if the
    point is 0 or 1, or if the resamples do not vary.
    """
    kept = values[~np.isnan(values)]
    spread = float(kept.std()) if kept.size else 0.0
    if not 0.0 < point < 1.0 or spread == 0.0:
        return percentile_interval(values, level, patients)
    reach = normal_reach(level, patients)
    middle, half = math.log(point / (1.0 - point)), reach * spread / (point * (1.0 - point))
    return _expit(middle - half), _expit(middle + half), values.size - kept.size


def bootstrap_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    threshold: float,
    config: IntervalConfig,
) -> BootstrapMetrics:
    """All metrics of `metrics.json` with intervals from a bootstrap over patients.

    Patients are drawn with replacement without stratification (the cluster bootstrap of Davison &
    Hinkley 1997, section 3.8). With a single patient nothing can be resampled, so values other than
    0 and 1 have no interval. Undefined values are `None`. If all resamples agree (accuracy or AUC
    of 1), the limits are those of `edge_metrics`. Intervals are those of `percentile_interval`,
    except `logit_interval` for `BY_DEVIATION` and `GapResamples.interval` for `ece`.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        config: level, resamples and seed.

    Raises:
        DataError: shapes differ or values are out of range.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth, scores = checked_scores(labels, probabilities)
    codes, count = patient_codes(patients, truth.size)
    ranked = RankedScores.of(truth, scores)
    points = metric_values(ranked.counts_once(), threshold)
    fewest = fewest_patients(truth, codes)
    errors = GapResamples.of(ranked)
    collected: dict[str, list[Float64Array]] = {name: [] for name in points}
    if count > 1:
        for weights in resampled_weights(codes[ranked.order], count, checked_interval(config)):
            errors.add(weights)
            for name, values in metric_values(ranked.counts(weights), threshold, None).items():
                collected[name].append(values)
    estimates, dropped = {}, {}
    for name, column in points.items():
        point, values = float(column[0]), np.concatenate([*collected[name], np.empty(0)])
        if name in BY_DEVIATION:
            low, high, dropped[name] = logit_interval(point, values, config.level, fewest)
        else:
            low, high, dropped[name] = percentile_interval(values, config.level, fewest)
        if name == "ece" and count > 1 and truth.size:
            low, high = errors.interval(point, normal_reach(config.level, fewest))
        estimates[name] = Estimate(None) if math.isnan(point) else Estimate(point, low, high)
    values_once = {name: float(column[0]) for name, column in points.items()}
    edges = edge_metrics(truth, scores, patients, threshold, values_once, config.level)
    shown = {}
    for name, found in estimates.items():
        made_of = [estimates[part].value for part in OF_SHARES[name]]
        shown[name] = Estimate(found.value, *reported_limits(found, edges[name], made_of))
    return BootstrapMetrics(shown, dropped)


def bootstrap_share(hits: ArrayLike, patients: Patients, config: IntervalConfig) -> Estimate:
    """A proportion, or a mean of proportions, with its expanded percentile interval over patients.

    Args:
        hits: (n,), bool or float in [0, 1]: whether, or to what extent, each image counts.
        patients: (n,), patient ids.
        config: level, resamples and seed.

    Returns:
        The mean; no interval with fewer than two patients, all `None` without images.
    """
    found = np.asarray(hits, dtype=np.float64)
    codes, count = patient_codes(patients, found.size)
    if not found.size:
        return Estimate(None)
    if count < 2:
        share = float(found.mean())
        return score_interval(share, 1, config.level) if at_edge(share) else Estimate(share)
    blocks = resampled_weights(codes, count, checked_interval(config))
    shares = np.concatenate([weights @ found / weights.sum(axis=1) for weights in blocks])
    share = float(found.mean())
    low, high, _ = percentile_interval(shares, config.level, count)
    if at_edge(share) or collapsed(Estimate(share, low, high)):
        return score_interval(share, count, config.level)
    return Estimate(share, low, high)


def delong_auc(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients | None = None
) -> tuple[float, float]:
    """AUC and its variance (DeLong, DeLong & Clarke-Pearson 1988).

    The structural components are computed in O(n log n) (Sun & Xu 2014). With `patients`, they are
    summed per patient, and the covariance of a patient's PNEUMONIA and NORMAL images is added
    (Obuchowski 1997); with one image per patient, this is DeLong's variance.

    Returns:
        `(auc, variance)`. The AUC is NaN if a class is missing; the variance is NaN with fewer than
        two patients in either class.
    """
    truth, scores = checked_scores(labels, probabilities)
    ids: Patients = np.arange(truth.size) if patients is None else patients
    codes, count = patient_codes(ids, truth.size)
    if not 0 < truth.sum() < truth.size:
        return math.nan, math.nan
    found = auc_components(truth, scores)
    variance = float(components_covariance(truth, codes, count, (found,))[0, 0])
    return found.auc, variance if math.isnan(variance) else max(variance, 0.0)


@dataclass(frozen=True, slots=True)
class AucComponents:
    """An AUC and DeLong's structural components.

    Attributes:
        auc: in [0, 1].
        gain: float64, (m,), per PNEUMONIA image: share of NORMAL images with a lower score (ties
            count half), minus `auc`.
        loss: float64, (n,), per NORMAL image: share of PNEUMONIA images with a higher score (ties
            count half), minus `auc`.
    """

    auc: float
    gain: Float64Array
    loss: Float64Array


def auc_components(truth: Int64Array, scores: Float64Array) -> AucComponents:
    """The AUC and its structural components, from checked labels and scores of both classes."""
    ranked = RankedScores.of(truth, scores)
    gain, loss = win_shares(ranked.counts_once())
    group = np.empty(truth.size, np.int64)  # of each image, the index of its distinct score
    group[ranked.order] = np.repeat(
        np.arange(ranked.scores.size), np.diff(np.append(ranked.starts, truth.size))
    )
    above, below = gain[0, group[truth == 1]], loss[0, group[truth == 0]]
    auc = float(above.mean())
    return AucComponents(auc, above - auc, below - auc)


def components_covariance(
    truth: Int64Array, codes: Int64Array, patients: int, found: Sequence[AucComponents]
) -> Float64Array:
    """Covariance matrix (k, k) of k AUCs on the same images, clustered by patient.

    All NaN with fewer than two patients in either class.
    """
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    images = [np.bincount(codes[side], minlength=patients) for side in (positive, ~positive)]
    with_positive, with_negative = (int(np.count_nonzero(each)) for each in images)
    if min(with_positive, with_negative) < 2:
        return np.full((len(found), len(found)), np.nan)
    gain = np.array([np.bincount(codes[positive], one.gain, patients) for one in found]) / m
    loss = np.array([np.bincount(codes[~positive], one.loss, patients) for one in found]) / n
    covariance: Float64Array = gain @ gain.T * with_positive / (with_positive - 1)
    covariance = covariance + loss @ loss.T * with_negative / (with_negative - 1)
    covariance += (gain @ loss.T + loss @ gain.T) * patients / (patients - 1)
    return covariance


def delong_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    level: float,
    patients: Patients | None = None,
) -> Estimate:
    """AUC with DeLong's interval on the logit scale, which keeps the limits in (0, 1).

    If the variance is 0, as at an AUC of 0 or 1, the interval is Newcombe's
    (`proportions.auc_interval`). There is no interval with fewer than two patients in a class. All
    `None` if a class is missing. See `delong_auc`.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,).
        level: confidence level, such as 0.95.
        patients: (n,), patient ids; by default, images are independent.
    """
    auc, variance = delong_auc(labels, probabilities, patients)
    if math.isnan(auc):
        return Estimate(None)
    if at_edge(auc) or variance <= _NO_VARIANCE:
        truth = np.asarray(labels)
        ids = np.arange(truth.size) if patients is None else np.asarray(patients)
        positives, negatives = (np.unique(ids[truth == label]).size for label in (1, 0))
        return auc_interval(auc, positives, negatives, level)
    if math.isnan(variance):
        return Estimate(auc)
    logit = math.log(auc / (1.0 - auc))
    half = NormalDist().inv_cdf((1.0 + level) / 2) * math.sqrt(variance) / (auc * (1.0 - auc))
    return Estimate(auc, _expit(logit - half), _expit(logit + half))


def _expit(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2))
