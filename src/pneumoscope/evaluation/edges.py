"""Intervals that hold where resampling shows nothing: counts of 0 or all, areas of 0 or 1.

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
from collections.abc import Iterable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.proportions import (
    Patients,
    clustered_interval,
    difference,
    score_interval,
)
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray
from pneumoscope.records import Estimate

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


def held(
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


def held_difference(gap: Estimate, after: Estimate, before: Estimate) -> Estimate:
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
