"""Shares of images (sensitivity, specificity) whose limits hold at 0 and 1 and for repeats.

Comes in: which images of a class count as hits, one patient id per image. Goes out: `Estimate`s,
or one-sided limits. Does not know of scores, models or files.

The bootstrap's interval collapses where every image is a hit, and Wilson's takes the images of one
patient for independent. Here binomial limits are taken at the effective number of images: as many
independent ones as tell as much (Korn & Graubard 1998, Survey Methodology 24:193-201). Intervals
are Wilson's, which hold at their level on average; one-sided limits for a promise are the exact
ones (Clopper & Pearson 1934), which hold at least at it.

Intervals that hold where resampling shows nothing: counts of 0 or all, areas of 0 or 1.

Where every image is a hit, or none, every resample agrees and a bootstrap's interval is a point. A
point would claim certainty from two images as from two thousand. Here each metric has an interval
that does not collapse there:

- Shares have Wilson's, at the effective number of images (`shares`): each patient counts as one.
- The balanced accuracy is a mean of two shares, whose limits are squared and added (Newcombe 1998).
- F1 is 2 J / (1 + J) of the share J of images called or labelled PNEUMONIA that are both.
- AUC has the score interval of Newcombe 2006, see `auc_interval`.
- Average precision is a mean over images with pneumonia, the Brier score and the calibration error
  are means over all images, of values in [0, 1]: nothing in there varies more than a share, so that
  Wilson's interval is on the safe side (for average precision Boyd, Eng & Page 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray
from pneumoscope.records import Estimate

Patients: TypeAlias = Sequence[str] | NDArray[Any]


def patient_codes(patients: Patients, images: int) -> tuple[IntArray, int]:
    """Patients as numbers from 0, shape (n,), and how many there are.

    The numbering follows the sorted ids, so resamples don't depend on the order of the images.

    Raises:
        DataError: there is not one patient id per image.
    """
    ids = np.asarray(patients)
    if ids.shape != (images,):
        raise DataError(f"patients: found shape {ids.shape}, wanted ({images},), one per image.")
    distinct, codes = np.unique(ids, return_inverse=True)
    return codes.astype(np.int64), len(distinct)


def wilson_interval(successes: int, trials: int, level: float) -> Estimate:
    """A proportion with its score interval (Wilson 1927), for independent trials.

    Returns:
        All `None` without a trial. Never collapses: 20 of 20 at 0.95 is 0.839 to 1.
    """
    return Estimate(None) if trials == 0 else score_interval(successes / trials, trials, level)


def score_interval(share: float, trials: float, level: float) -> Estimate:
    """Wilson's interval of a share of `trials`, above 0, which need not be whole."""
    z = NormalDist().inv_cdf((1.0 + level) / 2)
    shrink = 1.0 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1.0 - share) / trials + z * z / (4 * trials * trials))
    # Rounding would leave 1e-17 where the interval ends exactly at 0 or 1.
    low = 0.0 if share == 0.0 else middle - half
    high = 1.0 if share == 1.0 else middle + half
    return Estimate(share, low, high)


def clustered_interval(hits: ArrayLike, patients: Patients, level: float) -> Estimate:
    """A share of images with Wilson's interval at their effective number.

    Args:
        hits: bool, (n,), whether each image counts.
        patients: (n,), ids.
        level: confidence level, as 0.95.

    Returns:
        All `None` without images. With one patient, that of a single image where all or none of
        his are hits, else no interval: nothing tells how alike his images are.
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


def effective_images(codes: IntArray, patients: int) -> FloatArray:
    """How many independent images tell as much as the first k being hits, for every k from 0 to n.

    The variance of the share is that of a ratio of patients' sums (Cochran 1977, section 6.3),
    the effective number the one at which a binomial share varies as much, but never more than n,
    and shrunk by Student's quantiles, since the variance is estimated from the patients alone.
    Where all or none are hits nothing is seen of how alike a patient's images are: each patient
    then counts as one image.

    Args:
        codes: (n,), the patient of each image from 0 to `patients` - 1, hits first; with k hits
            the first k images are meant.
        patients: how many there are, at least 2.

    Returns:
        (n + 1,), in (0, n].
    """
    n = codes.size
    held = np.bincount(codes, minlength=patients).astype(np.float64)
    order = np.argsort(codes, kind="stable")
    starts = np.repeat(np.cumsum(held) - held, held.astype(np.int64))
    earlier = np.empty(n)  # images of the same patient that stand before
    earlier[order] = np.arange(n) - starts
    # Sums over patients of hits², hits × images and images², as images become hits one by one.
    squares = np.concatenate([[0.0], np.cumsum(2.0 * earlier + 1.0)])
    products = np.concatenate([[0.0], np.cumsum(held[codes])])
    sizes = float(held @ held)
    share = np.arange(n + 1) / n
    spread = np.maximum(squares - 2.0 * share * products + share**2 * sizes, 0.0)
    variance = spread * patients / (patients - 1) / n**2
    effective = np.full(n + 1, float(np.count_nonzero(held)))
    inside = slice(1, n)
    binomial = share[inside] * (1.0 - share[inside]) * n / max(n - 1, 1)  # unbiased, as `spread`
    seen = np.divide(
        binomial, variance[inside], out=np.full(n - 1, np.inf), where=variance[inside] > 0
    )
    effective[inside] = np.minimum(seen, n)
    return np.maximum(effective * degrees_factor(n, patients), 1.0)


def exact_limits(
    share: FloatArray, effective: FloatArray, tail: float
) -> tuple[FloatArray, FloatArray]:
    """Clopper & Pearson's lower and upper limits, each (c,), with `tail` of chance beyond each.

    Args:
        share: (c,), in [0, 1].
        effective: (c,), effective images, above 0; need not be whole.
        tail: as 0.025 for an interval at 0.95, or 0.05 for a one-sided limit at 0.95.
    """
    from scipy.special import betaincinv

    hits, misses = share * effective, (1.0 - share) * effective
    low = np.where(share > 0.0, betaincinv(np.maximum(hits, 1e-9), misses + 1.0, tail), 0.0)
    high = np.where(share < 1.0, betaincinv(hits + 1.0, np.maximum(misses, 1e-9), 1.0 - tail), 1.0)
    return low.astype(np.float64), high.astype(np.float64)


def degrees_factor(n: int, patients: int) -> float:
    """What n images of so many patients are worth, at most 1: (t(n - 1) / t(patients - 1))²."""
    from scipy.special import stdtrit

    if n <= patients:
        return 1.0
    few = float(stdtrit(patients - 1, 0.975))
    return math.pow(float(stdtrit(n - 1, 0.975)) / few, 2)


def difference(
    first: Estimate, second: Estimate, *, bounds: tuple[float, float] = (-1.0, 1.0)
) -> Estimate:
    """First minus second, of different images, with an interval made of the two intervals.

    The square-and-add method (Newcombe 1998, method 10, for Wilson's; Zou & Donner 2008 for any
    limits). If some patients have images on both sides it errs to the wide side. `bounds` are the
    least and the most it can be. All `None` if a value is missing, no interval if one is.
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


EDGE_METHOD = (
    "where a count is 0 or all, or no resample differs, Wilson's interval with a patient as one "
    "image, Newcombe's for areas"
)
"""What is done where the bootstrap shows nothing, in words, for `interval.method`."""

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
"""Per metric, the values that put it at an edge where they are 0 or 1."""

_HALVINGS = 60
_SAME = 1e-12


def collapsed(estimate: Estimate) -> bool:
    """Whether an interval is there and has no width."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.high - estimate.low <= _SAME


def at_edge(value: float | None) -> bool:
    """Whether a share or an area is 0 or 1, but for rounding."""
    return value is not None and min(abs(value), abs(1.0 - value)) <= _SAME


def auc_interval(auc: float, ill: int, well: int, level: float) -> Estimate:
    """An AUC with the score interval of Newcombe 2006, method 5, which holds at 0 and 1.

    Hanley & McNeil's variance, with both class sizes in it replaced by their mean, is taken at the
    limit instead of at the estimate: the limits are where (AUC - limit)² is z² times it
    (doi:10.1002/sim.2324).

    Args:
        auc: in [0, 1].
        ill: patients with pneumonia, at least 1.
        well: patients with normal images, at least 1.
        level: confidence level, as 0.95.

    Example:
        `auc_interval(1.0, 20, 20, 0.95)` is 0.899 to 1.
    """
    z = NormalDist().inv_cdf((1.0 + level) / 2)
    more = (ill + well) / 2 - 1

    def inside(limit: float) -> bool:
        q = (1.0 - limit) / (2.0 - limit) + limit / (1.0 + limit)
        return (auc - limit) ** 2 <= z**2 * limit * (1.0 - limit) * (1.0 + more * q) / (ill * well)

    limits = []
    for end in (0.0, 1.0):
        kept, out = auc, end
        for _ in range(_HALVINGS):
            middle = (kept + out) / 2
            kept, out = (middle, out) if inside(middle) else (kept, middle)
        limits.append(end if auc == end else kept)
    return Estimate(auc, *limits)


def edge_metrics(
    truth: IntArray,
    scores: FloatArray,
    patients: Patients,
    threshold: float,
    values: Mapping[str, float],
    level: float,
) -> dict[str, Estimate]:
    """For every metric, an interval that holds at its edges.

    Args:
        truth: (n,), 0 or 1.
        scores: (n,), in [0, 1].
        patients: (n,), ids.
        threshold: PNEUMONIA from here up.
        values: the metrics' values, NaN where undefined.
        level: of the intervals.
    """
    ids = np.asarray(patients)
    called, positive = scores >= threshold, truth == 1

    def share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> Estimate:
        return clustered_interval(hits[of], ids[of], level)

    def mean(name: str, of: NDArray[np.bool_]) -> Estimate:
        count = np.unique(ids[of]).size
        value = values[name]
        return Estimate(None) if math.isnan(value) else score_interval(value, count, level)

    everything = np.ones(truth.size, bool)
    sensitivity, specificity = share(called, positive), share(~called, ~positive)
    both = share(called & positive, called | positive)
    ill, well = (np.unique(ids[of]).size for of in (positive, ~positive))
    return {
        "accuracy": share(called == positive, everything),
        "balanced_accuracy": _mean_of_two(sensitivity, specificity),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": share(positive, called),
        "npv": share(~positive, ~called),
        "f1": Estimate(*(None if j is None else 2 * j / (1 + j) for j in _numbers(both))),
        "auc": auc_interval(values["auc"], ill, well, level) if ill and well else Estimate(None),
        "average_precision": mean("average_precision", positive),
        "brier": mean("brier", everything),
        "ece": mean("ece", everything),
    }


def reported_limits(
    own: Estimate, edge: Estimate, values: Iterable[float | None]
) -> tuple[float | None, float | None]:
    """The limits to show of a metric: the bootstrap's, or those of `edge_metrics` at an edge.

    Args:
        own: the metric with the bootstrap's limits.
        edge: as `edge_metrics` has it.
        values: of the shares that it is made of (`OF_SHARES`).
    """
    if own.value is None:
        return None, None
    if collapsed(own) or any(at_edge(value) for value in values):
        return edge.low, edge.high
    return own.low, own.high


def reported_difference(gap: Estimate, after: Estimate, before: Estimate) -> Estimate:
    """A paired difference, with limits from the two intervals where its own have collapsed.

    On the safe side, since that both are of the same images is not made use of.
    """
    if gap.value is None or not (collapsed(gap) or at_edge(after.value) or at_edge(before.value)):
        return gap
    apart = difference(after, before)
    return Estimate(gap.value, apart.low, apart.high)


def ratio_limits(
    above: tuple[FloatArray, FloatArray, FloatArray],
    below: tuple[FloatArray, FloatArray, FloatArray],
) -> tuple[FloatArray, FloatArray]:
    """Limits of the quotient of two independent shares from their own limits.

    Donner & Zou 2012 (doi:10.1177/0962280210383082): they hold where a share is 0 or 1.

    Args:
        above: value, low and high of the numerator, each (c,), low above 0 where value is.
        below: the same of the denominator.

    Returns:
        Low and high, each (c,); high is infinite where the denominator may be 0.
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
    """Half the sum of two shares of different images, their limits squared and added."""
    if first.value is None or second.value is None:
        return Estimate(None)
    opposite = Estimate(
        -second.value,
        None if second.high is None else -second.high,
        None if second.low is None else -second.low,
    )
    value = (first.value + second.value) / 2
    apart = difference(first, opposite, bounds=(0.0, 2.0))
    if apart.low is None or apart.high is None:
        return Estimate(value)
    return Estimate(value, apart.low / 2, apart.high / 2)


def _numbers(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high
