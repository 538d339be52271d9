"""How far a metric would move with other patients: bootstrap, Wilson and DeLong intervals.

Comes in: labels (int, (n,)), probabilities (float64, (n,)), one patient id per image, a seed.
Goes out: `Estimate`s, NaN-free. Does not know of models, splits or files.

Each fails where another holds:
- The bootstrap resamples patients, so repeats of one child don't count as news. Its interval
  collapses to a point where every image is answered rightly (accuracy 1, AUC 1): there the one of
  `edges` takes its place.
- Wilson's interval never collapses, but takes images for independent: too narrow if patients
  have many images each.
- DeLong's needs no resampling and, with patients given, allows for repeats; its variance is 0 at
  AUC 0 or 1, where Newcombe's interval takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

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
    FloatArray,
    IntArray,
    RankedCounts,
    RankedScores,
    checked_scores,
    metric_values,
)
from pneumoscope.records import Estimate

BOOTSTRAP_METHOD = f"expanded percentile bootstrap over patients; {EDGE_METHOD}"
METRICS_METHOD = (
    f"{BOOTSTRAP_METHOD}; areas by the bootstrap's deviation on the logit scale, calibration error "
    "corrected for what noise adds"
)
"""Of `bootstrap_metrics`, in words."""

BY_DEVIATION = ("auc", "average_precision")
"""Metrics whose interval is the bootstrap's deviation on the logit scale, see `logit_interval`."""

_NO_VARIANCE = 1e-18

_BLOCK_ELEMENTS = 1 << 18
"""Weights held at a time: small enough to stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class BootstrapMetrics:
    """Metrics with intervals from one bootstrap.

    Attributes:
        estimates: one per metric, in the contract's order.
        dropped: per metric, the resamples in which it was undefined (left out of the interval).
    """

    estimates: Mapping[str, Estimate]
    dropped: Mapping[str, int]


def resampled_weights(
    codes: IntArray, patients: int, config: IntervalConfig
) -> Iterator[FloatArray]:
    """Draw patients with replacement; yield how often each image is in each resample.

    Args:
        codes: (n,), the patient of each image, 0 to `patients` - 1.
        patients: how many there are, and how many are drawn for each resample.
        config: number of resamples and the seed.

    Yields:
        Whole numbers of shape (b, n); all b add up to `config.resamples`. Which patients are
        drawn depends on the seed and on the number of patients alone.
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
    labels: IntArray, probabilities: FloatArray, patients: Patients, config: IntervalConfig
) -> Iterator[RankedCounts]:
    """The bootstrap's resamples as ranked counts, block by block; the scores are sorted once."""
    codes, count = patient_codes(patients, labels.size)
    ranked = RankedScores.of(labels, probabilities)
    for weights in resampled_weights(codes[ranked.order], count, checked_interval(config)):
        yield ranked.counts(weights)


def checked_interval(config: IntervalConfig) -> IntervalConfig:
    """The same configuration.

    Raises:
        UsageError: the level is not between 0 and 1, or there is no resample.
    """
    if not 0.0 < config.level < 1.0:
        raise UsageError(f"interval.level: found {config.level}, wanted between 0 and 1, as 0.95.")
    if config.resamples < 1:
        raise UsageError(f"interval.resamples: found {config.resamples}, wanted 1 or more.")
    return config


def expanded_tail(level: float, patients: int) -> float:
    """Share of resamples to leave beyond each end of an interval at `level`, in [0, 0.5].

    Resampling n patients gives variances that are too small by (n - 1) / n and normal quantiles
    where Student's are called for. Both are made up for by reaching further into the tails:
    Φ(-√(n / (n - 1)) × t(n - 1)), the expanded percentile interval of Hesterberg 2015
    (doi:10.1080/00031305.2015.1089789). It needs no computing: (1 - level) / 2 for many patients.
    """
    return NormalDist().cdf(-normal_reach(level, patients))


def normal_reach(level: float, patients: int) -> float:
    """√(n / (n - 1)) × t(n - 1): deviations that an interval reaches either way, as 1.96."""
    from scipy.special import stdtrit

    n = max(patients, 2)
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, (1.0 + level) / 2))


def fewest_patients(truth: IntArray, codes: IntArray) -> int:
    """Patients with images of the rarer class, of those classes that are there: on these hangs all.

    Args:
        truth: (n,), 0 or 1.
        codes: (n,), the patient of each image.
    """
    found = (np.unique(codes[truth == label]).size for label in (0, 1))
    return min((size for size in found if size), default=0)


def percentile_interval(
    values: FloatArray, level: float, patients: int
) -> tuple[float | None, float | None, int]:
    """Expanded percentile interval of resampled values (b,), and how many were dropped.

    The ends are the resamples of rank tail × (b + 1) and its mirror image, between two of them by
    interpolation (Davison & Hinkley 1997, section 5.3): with few resamples no narrower than with
    many. For `patients` see `expanded_tail`. NaN, the mark of a resample in which the metric is
    undefined, is left out and counted.
    """
    kept = values[~np.isnan(values)]
    dropped = values.size - kept.size
    if not kept.size:
        return None, None, dropped
    tail = expanded_tail(level, patients)
    low, high = np.quantile(kept, [tail, 1.0 - tail], method="weibull")
    return float(low), float(high), dropped


def logit_interval(
    point: float, values: FloatArray, level: float, patients: int
) -> tuple[float | None, float | None, int]:
    """Student's interval on the logit scale with the deviation of resampled values (b,).

    For areas under a curve, whose resamples are skewed and, near 1, too close to it: percentiles
    hold the truth less often than they should. The deviation is carried to the logit scale to first
    order, as Boyd, Eng & Page 2013 (doi:10.1007/978-3-642-40994-3_29) do for the
    precision-recall curve and DeLong's interval for the other one. Percentiles where the point is 0
    or 1 or nothing varies.
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
    """Every metric of the contract with its interval over resampled patients.

    Patients are drawn without stratification, as many as there are (the cluster bootstrap of
    Davison & Hinkley 1997, section 3.8). With a single patient nothing can be resampled: values
    that are neither 0 nor 1 stand without an interval. Undefined values are `None`. Where nothing
    went wrong (accuracy or AUC of 1) every resample agrees: limits are those of `edges` there.
    Intervals are `percentile_interval`'s, but `BY_DEVIATION` have `logit_interval`'s and `ece` that
    of `ece_interval`, since percentiles of an average of absolute values hold nothing.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids.
        threshold: PNEUMONIA is the answer from here up.
        config: level, resamples, seed.

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
    collected: dict[str, list[FloatArray]] = {name: [] for name in points}
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
    """A share, or a mean of shares, with its expanded percentile interval over patients.

    Args:
        hits: (n,), bool, whether each image counts, or float, how much of it does.
        patients: (n,), ids.
        config: level, resamples, seed.

    Returns:
        The share of hits; no interval with fewer than two patients, all `None` without images.
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

    Structural components come from midranks, in O(n log n) (Sun & Xu 2014). With `patients`,
    components are summed per patient first, and the covariance of a patient's PNEUMONIA and
    NORMAL images is added (Obuchowski 1997); with one image each, that is DeLong's variance.

    Returns:
        `(auc, variance)`. AUC is NaN without images of both classes; the variance is NaN with
        fewer than two patients in either class.
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
    """An AUC and what each image contributes to it.

    Attributes:
        auc: in [0, 1].
        gain: (m,), of each PNEUMONIA image, the share of NORMAL ones that it beats, less `auc`.
        loss: (n,), of each NORMAL image, the share of PNEUMONIA ones that beat it, less `auc`.
    """

    auc: float
    gain: FloatArray
    loss: FloatArray


def auc_components(truth: IntArray, scores: FloatArray) -> AucComponents:
    """DeLong's structural components of checked labels and scores of both classes."""
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = _midranks(scores)
    above = (ranks[positive] - _midranks(scores[positive])) / n
    below = 1.0 - (ranks[~positive] - _midranks(scores[~positive])) / m
    auc = float(above.mean())
    return AucComponents(auc, above - auc, below - auc)


def components_covariance(
    truth: IntArray, codes: IntArray, patients: int, found: Sequence[AucComponents]
) -> FloatArray:
    """Covariance matrix (k, k) of k AUCs on the same images, clustered by patient.

    All NaN with fewer than two patients in either class.
    """
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    held = [np.bincount(codes[side], minlength=patients) for side in (positive, ~positive)]
    ill, well = (int(np.count_nonzero(images)) for images in held)
    if min(ill, well) < 2:
        return np.full((len(found), len(found)), np.nan)
    gain = np.array([np.bincount(codes[positive], one.gain, patients) for one in found]) / m
    loss = np.array([np.bincount(codes[~positive], one.loss, patients) for one in found]) / n
    covariance: FloatArray = gain @ gain.T * ill / (ill - 1) + loss @ loss.T * well / (well - 1)
    covariance += (gain @ loss.T + loss @ gain.T) * patients / (patients - 1)
    return covariance


def delong_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    level: float,
    patients: Patients | None = None,
) -> Estimate:
    """AUC with a normal interval on the logit scale, which keeps it inside (0, 1).

    Where the variance is 0, as at AUC 0 or 1, the interval is Newcombe's (`edges.auc_interval`). No
    interval where it is undefined, with fewer than two patients in a class. All `None` without
    images of both classes. See `delong_auc`.
    """
    auc, variance = delong_auc(labels, probabilities, patients)
    if math.isnan(auc):
        return Estimate(None)
    if at_edge(auc) or variance <= _NO_VARIANCE:
        truth = np.asarray(labels)
        ids = np.arange(truth.size) if patients is None else np.asarray(patients)
        ill, well = (np.unique(ids[truth == label]).size for label in (1, 0))
        return auc_interval(auc, ill, well, level)
    if math.isnan(variance):
        return Estimate(auc)
    logit = math.log(auc / (1.0 - auc))
    half = NormalDist().inv_cdf((1.0 + level) / 2) * math.sqrt(variance) / (auc * (1.0 - auc))
    return Estimate(auc, _expit(logit - half), _expit(logit + half))


def _expit(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2))


def _midranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, shape as `values`; ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
