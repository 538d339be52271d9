"""Shares of images (sensitivity, specificity) whose limits hold at 0 and 1 and for repeats.

Comes in: which images of a class count as hits, one patient id per image. Goes out: `Estimate`s,
or one-sided limits. Does not know of scores, models or files.

The bootstrap's interval collapses where every image is a hit, and Wilson's takes the images of one
patient for independent. Here binomial limits are taken at the effective number of images: as many
independent ones as tell as much (Korn & Graubard 1998, Survey Methodology 24:193-201). Intervals
are Wilson's, which hold at their level on average; one-sided limits for a promise are the exact
ones (Clopper & Pearson 1934), which hold at least at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
