"""Abstention: a band around the threshold, conformal prediction sets, the risk–coverage curve.

Both methods define two probabilities between which the result is `uncertain`. The certainty of a
prediction is the distance of its probability from the threshold on the logit scale. Coverage is
the share of images with a definite result, risk the error rate among them; both are at the
prevalence of the given images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.calibration import logit, sigmoid
from pneumoscope.evaluation.intervals import percentile_interval, resampled_weights
from pneumoscope.evaluation.proportions import (
    Patients,
    at_edge,
    clustered_interval,
    collapsed,
    effective_images,
    exact_limits,
    patient_codes,
    score_interval,
)
from pneumoscope.evaluation.ranked_metrics import checked_scores
from pneumoscope.records import Estimate

_CURVE_POINTS = 101
_COVERAGES = tuple(k / 40 for k in range(20, 41))
"""Coverages tried for a band: from half of the images to all."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Error rate against coverage, most certain images first (El-Yaniv & Wiener 2010).

    Attributes:
        coverage: increasing shares of the images, most certain first; at most 101 points.
        risk: error rate among these images.
        area: mean risk over all coverages (AURC, Geifman & El-Yaniv 2017); 0 is best.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Lists, for JSON."""
        area = {"value": self.area.value, "low": self.area.low, "high": self.area.high}
        return {"coverage": [*self.coverage], "risk": [*self.risk], "area": area}


@dataclass(frozen=True, slots=True)
class Uncertain:
    """An abstention band and its performance on the images it was chosen on.

    The result is `uncertain` if low <= probability < high.

    Attributes:
        method: `band` or `conformal`.
        low: NORMAL is predicted below it.
        high: PNEUMONIA is predicted at or above it.
        rule: how it was chosen, in words.
        coverage: share of images with a definite result, with its `clustered_interval`.
        risk: error rate among these, with its `clustered_interval`.
    """

    method: str
    low: float
    high: float
    rule: str
    coverage: Estimate
    risk: Estimate


def risk_coverage(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    threshold: float,
    config: IntervalConfig,
) -> RiskCoverage:
    """The risk–coverage curve, and its area with an expanded percentile interval over patients.

    Images of equal certainty enter together. There is no interval with one patient.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        config: level, resamples and seed of the interval.

    Raises:
        DataError: there is no image, shapes differ or values are out of range.
    """
    truth, scores = _checked_nonempty(labels, probabilities)
    order, ends, wrong = _most_certain_first(truth, scores, threshold)
    codes, count = patient_codes(patients, truth.size)
    risk, area = _areas(np.ones((1, truth.size)), ends, wrong)
    low = high = None
    if count > 1:
        blocks = [
            _areas(weights[:, order], ends, wrong)[1]
            for weights in resampled_weights(codes, count, config)
        ]
        low, high, _ = percentile_interval(np.concatenate(blocks), config.level, count)
    found = Estimate(float(area[0]), low, high)
    if at_edge(found.value) or collapsed(found):  # a mean of risks varies at most as a proportion
        found = score_interval(float(area[0]), count, config.level)
    shown = np.unique(np.linspace(0, ends.size - 1, _CURVE_POINTS).round().astype(np.int64))
    return RiskCoverage(
        tuple(float(value) for value in (ends[shown] + 1) / truth.size),
        tuple(float(value) for value in risk[0, shown]),
        found,
    )


def choose_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    threshold: float,
    risk: float,
    confidence: float,
) -> Uncertain:
    """The narrowest band outside which the risk is at most `risk` with `confidence`.

    The band is symmetric around the threshold on the logit scale. Coverages of 100 %, 97.5 %, …,
    50 % are tried; the first is chosen at which the upper confidence limit of the risk (exact, at
    the effective number of images) is at most `risk`. 1 - confidence is divided evenly among the
    coverages tried. This is selection with guaranteed risk (Geifman & El-Yaniv 2017,
    arXiv:1705.08500) with a fixed grid instead of a binary search, which stops too early if the
    most certain half contains too few images.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: in (0, 1).
        risk: largest error rate, in (0, 1).
        confidence: in (0, 1).

    Raises:
        DataError: no band reaches the risk, or there are fewer than two patients.
        UsageError: `risk` or the threshold is not above 0 and below 1.
    """
    if not 0.0 < risk < 1.0:
        raise UsageError(f"--band: found {risk}, wanted an error rate above 0 and below 1, as 0.02")
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"--band: the threshold is {threshold}; wanted one above 0 and below 1")
    truth, scores = _checked_nonempty(labels, probabilities)
    codes, count = patient_codes(patients, truth.size)
    if count < 2:
        raise DataError(f"--band: found {count} patient, wanted many. Evaluate on more images.")
    order, ends, wrong = _most_certain_first(truth, scores, threshold)
    certainty = np.abs(logit(scores) - logit(threshold))[order]
    wanted = np.unique(np.searchsorted(ends + 1, np.array(_COVERAGES) * truth.size))
    tail = (1.0 - confidence) / wanted.size
    chosen = next(
        (k for k in wanted[::-1] if _upper_risk(codes[order], wrong, int(ends[k]), tail) <= risk),
        None,
    )
    if chosen is None:
        raise DataError(
            f"--band {risk:g}: with {truth.size} images of {count} patients, no band with a "
            f"coverage of at least half of the images keeps the risk that low at {confidence:.0%} "
            "confidence. Evaluate on more images, or allow more risk."
        )
    last = float(certainty[ends[chosen]])
    beyond = float(certainty[ends[chosen] + 1]) if chosen + 1 < ends.size else 0.0
    width = beyond + (last - beyond) / 2
    centre = float(logit(threshold))
    low, high = sigmoid(np.array([centre - width, centre + width]))
    rule = (
        f"error rate outside the band at most {risk:g} with {confidence:.0%} confidence, where "
        f"{truth.mean():.0%} of the images show pneumonia, as in these"
    )
    return _measured("band", (float(low), float(high)), rule, truth, scores, patients)


def choose_sets(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    threshold: float,
    coverage: float,
) -> Uncertain:
    """Class-conditional split-conformal prediction sets (Vovk 2012), as two probabilities.

    A class is excluded from an image's set if its probability is lower than for about a share
    `coverage` of the calibration images of that class. The set of a new image that is exchangeable
    with these contains the true class with a probability of at least `coverage`, for each class. A
    set with both classes or none is `uncertain`, and so is every probability between such a set and
    the threshold, which can only enlarge sets. Each patient has the same weight, whatever the
    number of images (Dunn, Wasserman & Ramdas 2022, doi:10.1080/01621459.2022.2060112).

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: in [0, 1].
        coverage: in (0, 1).

    Raises:
        DataError: a class has too few patients for this coverage.
        UsageError: `coverage` is not above 0 and below 1.
    """
    if not 0.0 < coverage < 1.0:
        raise UsageError(f"--sets: found {coverage}, wanted a coverage above 0 and below 1")
    truth, scores = _checked_nonempty(labels, probabilities)
    ids = np.asarray(patients)
    worst = {}
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        inside = truth == label
        nonconformity = scores[inside] if label == 0 else 1.0 - scores[inside]
        worst[label] = conformal_quantile(nonconformity, ids[inside], coverage)
        if math.isinf(worst[label]):
            needed = math.ceil(coverage / (1 - coverage))
            raise DataError(
                f"--sets {coverage:g}: found {np.unique(ids[inside]).size} patients with {name}, "
                f"wanted at least {needed}. Evaluate on more patients, or request a lower coverage."
            )
    ends = (worst[0], 1.0 - worst[1], threshold)
    # NORMAL is in the set up to and including worst[0], so use the next larger number.
    high = max(float(np.nextafter(worst[0], 2.0)), *ends[1:])
    low = min(float(np.nextafter(worst[0], 2.0)), *ends[1:])
    rule = (
        "conformal prediction sets that contain the true class for at least "
        f"{coverage:g} of the images of each class"
    )
    return _measured("conformal", (low, min(high, 1.0)), rule, truth, scores, patients)


def conformal_quantile(nonconformity: Float64Array, patients: Patients, coverage: float) -> float:
    """The ⌈(k + 1) × coverage⌉-th smallest of k patients' scores; infinite if k is too small.

    The images of a patient share the weight of one patient.

    Args:
        nonconformity: float64, (n,), nonconformity scores.
        patients: (n,), patient ids.
        coverage: above 0 and below 1.
    """
    codes, count = patient_codes(patients, nonconformity.size)
    if not count:
        return math.inf
    order = np.argsort(nonconformity, kind="stable")
    weights = 1.0 / np.bincount(codes, minlength=count)[codes]
    mass = np.cumsum(weights[order])
    wanted = coverage * (count + 1)
    if np.array_equal(weights, np.ones(weights.size)):
        wanted = math.ceil(wanted - 1e-9)
    place = int(np.searchsorted(mass, wanted - 1e-9))
    return float(nonconformity[order[place]]) if place < order.size else math.inf


def _checked_nonempty(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[Int64Array, Float64Array]:
    truth, scores = checked_scores(labels, probabilities)
    if not truth.size:
        raise DataError(
            "abstention: found no image with a probability, wanted many. Evaluate on more images."
        )
    return truth, scores


def _most_certain_first(
    truth: Int64Array, scores: Float64Array, threshold: float
) -> tuple[Int64Array, Int64Array, Float64Array]:
    """Order by decreasing certainty, the last index of each run of ties, and errors in order."""
    certainty = np.abs(logit(scores) - logit(threshold))
    order = np.argsort(-certainty, kind="stable")
    new = np.diff(certainty[order]) != 0
    ends = np.append(np.flatnonzero(new), truth.size - 1)
    wrong = ((scores >= threshold) != (truth == 1))[order].astype(np.float64)
    return order, ends, wrong


def _areas(
    weights: Float64Array, ends: Int64Array, wrong: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Risk at the end of every run of ties (b, g), and the mean risk (b,)."""
    covered = np.cumsum(weights, axis=1)[:, ends]
    errors = np.cumsum(weights * wrong, axis=1)[:, ends]
    risk: Float64Array = np.divide(errors, covered, out=np.zeros_like(errors), where=covered > 0)
    steps = np.diff(covered, axis=1, prepend=0.0)
    return risk, (risk * steps).sum(axis=1) / covered[:, -1]


def _upper_risk(codes: Int64Array, wrong: Float64Array, last: int, tail: float) -> float:
    """Upper confidence limit of the risk among the first images, up to and including `last`."""
    shown = wrong[: last + 1]
    first = np.argsort(-shown, kind="stable")
    distinct, numbers = np.unique(codes[: last + 1], return_inverse=True)
    if distinct.size < 2:
        return 1.0
    errors = int(shown.sum())
    effective = effective_images(numbers[first], distinct.size)[errors]
    _, high = exact_limits(np.array([errors / shown.size]), np.array([effective]), tail)
    return float(high[0])


def _measured(
    method: str,
    ends: tuple[float, float],
    rule: str,
    truth: Int64Array,
    scores: Float64Array,
    patients: Patients,
) -> Uncertain:
    low, high = ends
    covered = (scores < low) | (scores >= high)
    wrong = (scores >= high)[covered] != (truth == 1)[covered]
    ids = np.asarray(patients)
    return Uncertain(
        method,
        low,
        high,
        rule,
        clustered_interval(covered, ids, 0.95),
        clustered_interval(wrong, ids[covered], 0.95),
    )
