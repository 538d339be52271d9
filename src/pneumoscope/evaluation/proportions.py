"""Intervals of proportions, clustered by patient, and intervals that are valid at 0 and 1.

A bootstrap interval collapses if every image is a hit, and Wilson's interval assumes independent
images. The binomial limits here are computed at the effective number of images: the number of
independent images with the same information (Korn & Graubard 1998, Survey Methodology 24:193-201).
Intervals are Wilson's, which have the stated coverage on average. One-sided limits for guarantees
are exact (Clopper & Pearson 1934) and have at least the stated coverage.

If all images are hits, or none, all resamples agree and the bootstrap interval is a point, whether
there are two images or two thousand. Each metric has an interval that does not collapse
(`edge_metrics`):

- Proportions: Wilson's interval at the effective number of images, here one per patient.
- Balanced accuracy: the mean of two proportions, by the square-and-add method (Newcombe 1998).
- F1: 2 J / (1 + J), where J is the share of images labelled and predicted PNEUMONIA among those
  labelled or predicted PNEUMONIA.
- AUC: the score interval of Newcombe 2006, see `auc_interval`.
- Average precision is a mean over PNEUMONIA images, and the Brier score and the calibration error
  are means over all images, of values in [0, 1]. Such a mean varies at most as a proportion, so
  Wilson's interval is conservative (for average precision see Boyd, Eng & Page 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import DataError
from pneumoscope.records import Estimate

Patients: TypeAlias = Sequence[str] | NDArray[Any]

EDGE_METHOD = (
    "Wilson's interval with one image per patient (Newcombe's for areas under a curve) where a "
    "rate is 0 or 1 or all resamples agree"
)
"""The method where the bootstrap collapses, in words, for `interval.method`."""

OF_SHARES: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("accuracy",),
    "balanced_accuracy": ("sensitivity", "specificity"),
    "sensitivity": ("sensitivity",),
    "specificity": ("specificity",),
    "ppv": ("ppv",),
    "npv": ("npv",),
    "f1": ("f1",),
    "auc": ("auc",),
    "average_precision": ("average_precision",),
    "brier": ("brier",),
    "ece": (),
}
"""Per metric, the proportions it is made of; the bootstrap is replaced if one is 0 or 1."""

_HALVINGS = 60
_SAME = 1e-12


def patient_codes(patients: Patients, images: int) -> tuple[Int64Array, int]:
    """Number the patients from 0: codes, int64 (n,), and the number of patients.

    Numbers follow the sorted ids, so resamples do not depend on the order of the images.

    Raises:
        DataError: there is not one patient id per image.
    """
    ids = np.asarray(patients)
    if ids.shape != (images,):
        raise DataError(f"patients: found shape {ids.shape}, wanted ({images},), one per image.")
    distinct, codes = np.unique(ids, return_inverse=True)
    return codes.astype(np.int64), len(distinct)


def wilson_interval(successes: int, trials: int, level: float) -> Estimate:
    """A proportion of independent trials with its score interval (Wilson 1927).

    Returns:
        All `None` without trials. The interval never collapses.

    Example:
        `wilson_interval(20, 20, 0.95)` is 0.839 to 1.
    """
    return Estimate(None) if trials == 0 else score_interval(successes / trials, trials, level)


def score_interval(share: float, trials: float, level: float) -> Estimate:
    """Wilson's interval of a proportion; `trials` is above 0 and need not be an integer."""
    z = NormalDist().inv_cdf((1.0 + level) / 2)
    shrink = 1.0 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1.0 - share) / trials + z * z / (4 * trials * trials))
    # Avoid rounding errors of 1e-17 where a limit is exactly 0 or 1.
    low = 0.0 if share == 0.0 else middle - half
    high = 1.0 if share == 1.0 else middle + half
    return Estimate(share, low, high)


def clustered_interval(hits: ArrayLike, patients: Patients, level: float) -> Estimate:
    """A proportion of images with Wilson's interval at the effective number of images.

    Args:
        hits: bool, (n,), whether each image counts.
        patients: (n,), patient ids.
        level: confidence level, such as 0.95.

    Returns:
        All `None` without images. With one patient, the interval of a single image if all or none
        of the images are hits, otherwise no interval, because the correlation within a patient
        can't be estimated.
    """
    found = np.asarray(hits, dtype=np.float64)
    codes, count = patient_codes(patients, found.size)
    if not found.size:
        return Estimate(None)
    share = float(found.mean())
    if count < 2:
        return score_interval(share, 1, level) if share in (0.0, 1.0) else Estimate(share)
    rank = np.argsort(-found, kind="stable")
    effective = effective_images(codes[rank], count)[int(found.sum())]
    return score_interval(share, float(effective), level)


def effective_images(codes: Int64Array, patients: int) -> Float64Array:
    """The effective number of images if the first k images are hits, for every k from 0 to n.

    The variance of the proportion is that of a ratio of patients' sums (Cochran 1977, section 6.3).
    The effective number is the number of independent images at which a binomial proportion has the
    same variance, at most n, and reduced by Student's quantiles because the variance is estimated
    from the patients. If all or none of the images are hits, the correlation within patients can't
    be estimated, and each patient counts as one image.

    Args:
        codes: int64, (n,), the patient of each image from 0 to `patients` - 1, hits first.
        patients: number of patients, at least 2.

    Returns:
        (n + 1,), in (0, n].
    """
    n = codes.size
    images = np.bincount(codes, minlength=patients).astype(np.float64)
    order = np.argsort(codes, kind="stable")
    starts = np.repeat(np.cumsum(images) - images, images.astype(np.int64))
    earlier = np.empty(n)  # number of earlier images of the same patient
    earlier[order] = np.arange(n) - starts
    # Sums over patients of hits², hits × images and images², as images become hits one by one.
    squares = np.concatenate([[0.0], np.cumsum(2.0 * earlier + 1.0)])
    products = np.concatenate([[0.0], np.cumsum(images[codes])])
    sizes = float(images @ images)
    share = np.arange(n + 1) / n
    spread = np.maximum(squares - 2.0 * share * products + share**2 * sizes, 0.0)
    variance = spread * patients / (patients - 1) / n**2
    effective = np.full(n + 1, float(np.count_nonzero(images)))
    inside = slice(1, n)
    binomial = share[inside] * (1.0 - share[inside]) * n / max(n - 1, 1)  # unbiased, as `spread`
    seen = np.divide(
        binomial, variance[inside], out=np.full(n - 1, np.inf), where=variance[inside] > 0
    )
    effective[inside] = np.minimum(seen, n)
    return np.maximum(effective * degrees_factor(n, patients), 1.0)


def exact_limits(
    share: Float64Array, effective: Float64Array, tail: float
) -> tuple[Float64Array, Float64Array]:
    """Clopper & Pearson's limits, lower and upper, each float64 (c,).

    Args:
        share: float64, (c,), in [0, 1].
        effective: float64, (c,), effective images, above 0; they need not be integers.
        tail: probability beyond each limit, such as 0.025 for an interval at 0.95, or 0.05 for a
            one-sided limit at 0.95.
    """
    from scipy.special import betaincinv

    hits, misses = share * effective, (1.0 - share) * effective
    low = np.where(share > 0.0, betaincinv(np.maximum(hits, 1e-9), misses + 1.0, tail), 0.0)
    high = np.where(share < 1.0, betaincinv(hits + 1.0, np.maximum(misses, 1e-9), 1.0 - tail), 1.0)
    return low.astype(np.float64), high.astype(np.float64)


def degrees_factor(n: int, patients: int) -> float:
    """Reduction of the effective number for few patients: (t(n - 1) / t(patients - 1))², ≤ 1."""
    from scipy.special import stdtrit

    if n <= patients:
        return 1.0
    few = float(stdtrit(patients - 1, 0.975))
    return math.pow(float(stdtrit(n - 1, 0.975)) / few, 2)


def difference(
    first: Estimate, second: Estimate, *, bounds: tuple[float, float] = (-1.0, 1.0)
) -> Estimate:
    """First minus second, of different images, with an interval from the two intervals.

    The square-and-add method (Newcombe 1998, method 10, for Wilson's interval; Zou & Donner 2008
    for any limits). It is conservative if some patients have images on both sides.

    Args:
        first: a value with its limits.
        second: a value with its limits.
        bounds: smallest and largest possible difference.

    Returns:
        All `None` if a value is missing; no interval if a limit is missing.
    """
    if first.value is None or second.value is None:
        return Estimate(None)
    gap = first.value - second.value
    limits = (first.low, first.high, second.low, second.high)
    if any(limit is None for limit in limits):
        return Estimate(gap)
    low1, high1, low2, high2 = (float(limit) for limit in limits if limit is not None)
    below = math.hypot(first.value - low1, high2 - second.value)
    above = math.hypot(high1 - first.value, second.value - low2)
    return Estimate(gap, max(gap - below, bounds[0]), min(gap + above, bounds[1]))


def collapsed(estimate: Estimate) -> bool:
    """Whether there is an interval and its width is 0."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.high - estimate.low <= _SAME


def at_edge(value: float | None) -> bool:
    """Whether a proportion or an area is 0 or 1, apart from rounding."""
    return value is not None and min(abs(value), abs(1.0 - value)) <= _SAME


def auc_interval(auc: float, positives: int, negatives: int, level: float) -> Estimate:
    """An AUC with the score interval of Newcombe 2006, method 5, which is valid at 0 and 1.

    Hanley & McNeil's variance, with both class sizes replaced by their mean, is evaluated at the
    limit instead of the estimate: at the limits, (AUC - limit)² is z² times this variance
    (doi:10.1002/sim.2324).

    Args:
        auc: in [0, 1].
        positives: number of patients with pneumonia, at least 1.
        negatives: number of patients with normal images, at least 1.
        level: confidence level, such as 0.95.

    Example:
        `auc_interval(1.0, 20, 20, 0.95)` is 0.899 to 1.
    """
    z = NormalDist().inv_cdf((1.0 + level) / 2)
    more = (positives + negatives) / 2 - 1
    pairs = positives * negatives

    def inside(limit: float) -> bool:
        q = (1.0 - limit) / (2.0 - limit) + limit / (1.0 + limit)
        return (auc - limit) ** 2 <= z**2 * limit * (1.0 - limit) * (1.0 + more * q) / pairs

    limits = []
    for end in (0.0, 1.0):
        kept, out = auc, end
        for _ in range(_HALVINGS):
            middle = (kept + out) / 2
            kept, out = (middle, out) if inside(middle) else (kept, middle)
        limits.append(end if auc == end else kept)
    return Estimate(auc, *limits)


def edge_metrics(
    truth: Int64Array,
    scores: Float64Array,
    patients: Patients,
    threshold: float,
    values: Mapping[str, float],
    level: float,
) -> dict[str, Estimate]:
    """For every metric, an interval that is valid at 0 and 1.

    Args:
        truth: int64, (n,), 0 or 1.
        scores: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: PNEUMONIA is predicted if the score is at least this.
        values: the metrics' values, NaN where undefined.
        level: confidence level of the intervals.
    """
    ids = np.asarray(patients)
    predicted, positive = scores >= threshold, truth == 1

    def share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Estimate:
        return clustered_interval(hits[of], ids[of], level)

    def mean(name: str, of: NDArray[np.bool_]) -> Estimate:
        count = np.unique(ids[of]).size
        value = values[name]
        return Estimate(None) if math.isnan(value) else score_interval(value, count, level)

    everything = np.ones(truth.size, bool)
    sensitivity, specificity = share(predicted, positive), share(~predicted, ~positive)
    both = share(predicted & positive, predicted | positive)
    positives, negatives = (np.unique(ids[of]).size for of in (positive, ~positive))
    area = Estimate(None)
    if positives and negatives:
        area = auc_interval(values["auc"], positives, negatives, level)
    return {
        "accuracy": share(predicted == positive, everything),
        "balanced_accuracy": _mean_of_two(sensitivity, specificity),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": share(positive, predicted),
        "npv": share(~positive, ~predicted),
        "f1": Estimate(*(None if j is None else 2 * j / (1 + j) for j in _numbers(both))),
        "auc": area,
        "average_precision": mean("average_precision", positive),
        "brier": mean("brier", everything),
        "ece": mean("ece", everything),
    }


def reported_limits(
    own: Estimate, edge: Estimate, values: Iterable[float | None]
) -> tuple[float | None, float | None]:
    """The limits to report: the bootstrap's, or those of `edge_metrics` at 0 and 1.

    Args:
        own: the metric with the bootstrap's limits.
        edge: the metric with the limits of `edge_metrics`.
        values: the proportions that it is made of (`OF_SHARES`).
    """
    if own.value is None:
        return None, None
    if collapsed(own) or any(at_edge(value) for value in values):
        return edge.low, edge.high
    return own.low, own.high


def reported_difference(gap: Estimate, after: Estimate, before: Estimate) -> Estimate:
    """A paired difference, with limits from the two intervals if its own have collapsed.

    These limits are conservative, because they ignore that both values are from the same images.
    """
    if gap.value is None or not (collapsed(gap) or at_edge(after.value) or at_edge(before.value)):
        return gap
    unpaired = difference(after, before)
    return Estimate(gap.value, unpaired.low, unpaired.high)


def ratio_limits(
    above: tuple[Float64Array, Float64Array, Float64Array],
    below: tuple[Float64Array, Float64Array, Float64Array],
) -> tuple[Float64Array, Float64Array]:
    """Limits of the ratio of two independent proportions from their own limits.

    Donner & Zou 2012 (doi:10.1177/0962280210383082); valid if a proportion is 0 or 1.

    Args:
        above: value, lower and upper limit of the numerator, each float64 (c,); the lower limit is
            above 0 wherever the value is.
        below: value, lower and upper limit of the denominator, likewise.

    Returns:
        Lower and upper limits, each (c,); the upper limit is infinite where the denominator may
        be 0.
    """
    top, low1, high1 = above
    bottom, low2, high2 = below
    product = top * bottom
    with np.errstate(divide="ignore", invalid="ignore"):
        near = high2 * (2 * bottom - high2)
        far = low2 * (2 * bottom - low2)
        spread1 = np.maximum(product**2 - low1 * (2 * top - low1) * near, 0.0)
        spread2 = np.maximum(product**2 - high1 * (2 * top - high1) * far, 0.0)
        low = np.where(near > 0, (product - np.sqrt(spread1)) / near, low1 / high2)
        high = np.where(far > 0, (product + np.sqrt(spread2)) / far, np.inf)
    return np.maximum(np.nan_to_num(low, nan=0.0), 0.0), high


def _mean_of_two(first: Estimate, second: Estimate) -> Estimate:
    """The mean of two proportions of different images, with limits by the square-and-add method."""
    if first.value is None or second.value is None:
        return Estimate(None)
    opposite = Estimate(
        -second.value,
        None if second.high is None else -second.high,
        None if second.low is None else -second.low,
    )
    value = (first.value + second.value) / 2
    total = difference(first, opposite, bounds=(0.0, 2.0))
    if total.low is None or total.high is None:
        return Estimate(value)
    return Estimate(value, total.low / 2, total.high / 2)


def _numbers(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high
