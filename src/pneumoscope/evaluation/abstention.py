"""When to say `uncertain`: a band around the threshold, or conformal prediction sets.

Comes in: labels (int, (n,)), probabilities (float64, (n,)), patients, a threshold. Goes out: the
risk–coverage curve, a `Band` or `PredictionSets`: both are two probabilities between which there
is no answer. Does not know of models, pages or files.

An image is the surer the further its probability lies from the threshold on the logit scale. Risk
is the share of wrong answers among those given, coverage the share of images that get one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray, checked_scores
from pneumoscope.records import Estimate

_CURVE_POINTS = 101
_COVERAGES = tuple(k / 40 for k in range(20, 41))
"""Tried for a band: half of the images to all."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """What is gained by leaving the least sure images unanswered (El-Yaniv & Wiener 2010).

    Attributes:
        coverage: rising shares of images answered, the surest first; at most 101 points.
        risk: share of wrong answers among them.
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
    """From where to where there is no answer, and what that was worth on the images given.

    `uncertain` is the answer where low <= probability < high.

    Attributes:
        method: `band` or `conformal`.
        low: NORMAL is answered below it.
        high: PNEUMONIA is answered from there up.
        rule: how it was chosen, in words.
        coverage: share of images that get an answer.
        risk: share of wrong ones among these; both with intervals as `shares` makes them.
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
    """The curve, and its area with an expanded percentile interval over resampled patients.

    Equally sure images enter together. Shapes as everywhere; no interval with one patient.

    Raises:
        DataError: there is no image, shapes differ or values are out of range.
    """
    truth, scores = _some(labels, probabilities)
    order, ends, wrong = _surest_first(truth, scores, threshold)
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
    if at_edge(found.value) or collapsed(found):  # a mean of risks: it varies no more than a share
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
    """The narrowest band outside of which the risk is at most `risk` with `confidence`.

    The band reaches equally far to both sides of the threshold on the logit scale. Tried are
    coverages of all images, 97.5 %, …, 50 %; the first is taken at which the upper confidence
    limit of the risk (exact, at the effective number of images) is small enough, 1 - confidence
    being shared evenly among the tries (selection with guaranteed risk, Geifman & El-Yaniv 2017,
    arXiv:1705.08500, with a fixed grid instead of their halving, which stops too early where the
    surest half is too few to tell).

    Raises:
        DataError: no band does, or fewer than two patients.
        UsageError: `risk` is not above 0 and below 1, or the threshold is 0 or 1.
    """
    if not 0.0 < risk < 1.0:
        raise UsageError(f"--band: found {risk}, wanted a share of wrong answers as 0.02")
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"--band: the threshold is {threshold}; wanted one above 0 and below 1")
    truth, scores = _some(labels, probabilities)
    codes, count = patient_codes(patients, truth.size)
    if count < 2:
        raise DataError(f"--band: found {count} patient, wanted many. Evaluate on more images.")
    order, ends, wrong = _surest_first(truth, scores, threshold)
    sure = np.abs(logit(scores) - logit(threshold))[order]
    wanted = np.unique(np.searchsorted(ends + 1, np.array(_COVERAGES) * truth.size))
    tail = (1.0 - confidence) / wanted.size
    chosen = next(
        (k for k in wanted[::-1] if _upper_risk(codes[order], wrong, int(ends[k]), tail) <= risk),
        None,
    )
    if chosen is None:
        raise DataError(
            f"--band {risk:g}: at {confidence:.0%} confidence no band that answers for half of the "
            f"images keeps the risk outside of it that low with {truth.size} images of {count} "
            "patients. Evaluate on more, or allow more risk."
        )
    last = float(sure[ends[chosen]])
    beyond = float(sure[ends[chosen] + 1]) if chosen + 1 < ends.size else 0.0
    width = beyond + (last - beyond) / 2
    centre = float(logit(threshold))
    low, high = sigmoid(np.array([centre - width, centre + width]))
    rule = f"at most {risk:g} wrong outside of it with {confidence:.0%} confidence"
    return _measured("band", (float(low), float(high)), rule, truth, scores, patients)


def choose_sets(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    threshold: float,
    coverage: float,
) -> Uncertain:
    """Class-conditional split-conformal prediction sets (Vovk 2012), told as two probabilities.

    A class stands in the set of an image unless its probability is lower than that of all but
    a share of about `coverage` of the images of that class seen here. So the set of a new image,
    if exchangeable with these, holds its true class with a chance of at least `coverage`, for
    each class. A set of both classes or of none is `uncertain`; so is everything between it and
    the threshold, which can only make sets larger. Patients with many images weigh as much as
    those with one (Dunn, Wasserman & Ramdas 2022, doi:10.1080/01621459.2022.2060112).

    Raises:
        DataError: a class has too few patients for that coverage.
        UsageError: `coverage` is not above 0 and below 1.
    """
    if not 0.0 < coverage < 1.0:
        raise UsageError(f"--sets: found {coverage}, wanted a coverage above 0 and below 1")
    truth, scores = _some(labels, probabilities)
    ids = np.asarray(patients)
    worst = {}
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        inside = truth == label
        strangeness = scores[inside] if label == 0 else 1.0 - scores[inside]
        worst[label] = conformal_quantile(strangeness, ids[inside], coverage)
        if math.isinf(worst[label]):
            needed = math.ceil(coverage / (1 - coverage))
            raise DataError(
                f"--sets {coverage:g}: found {np.unique(ids[inside]).size} patients with {name}, "
                f"wanted at least {needed}. Evaluate on more, or ask for less."
            )
    ends = (worst[0], 1.0 - worst[1], threshold)
    # NORMAL is possible up to and with worst[0]: the next number above begins the sure ones.
    high = max(float(np.nextafter(worst[0], 2.0)), *ends[1:])
    low = min(float(np.nextafter(worst[0], 2.0)), *ends[1:])
    rule = f"prediction sets that hold the true class in {coverage:g} of images of either class"
    return _measured("conformal", (low, min(high, 1.0)), rule, truth, scores, patients)


def conformal_quantile(strangeness: FloatArray, patients: Patients, coverage: float) -> float:
    """The ⌈(k + 1) × coverage⌉-th smallest of k patients' scores; infinite where k is too small.

    With several images per patient each counts as its share of the patient.

    Args:
        strangeness: float64, (n,).
        patients: (n,), ids.
        coverage: above 0 and below 1.
    """
    codes, count = patient_codes(patients, strangeness.size)
    if not count:
        return math.inf
    order = np.argsort(strangeness, kind="stable")
    weights = 1.0 / np.bincount(codes, minlength=count)[codes]
    mass = np.cumsum(weights[order])
    wanted = coverage * (count + 1)
    if np.array_equal(weights, np.ones(weights.size)):
        wanted = math.ceil(wanted - 1e-9)
    place = int(np.searchsorted(mass, wanted - 1e-9))
    return float(strangeness[order[place]]) if place < order.size else math.inf


def prediction_sets(probabilities: ArrayLike, bounds: Mapping[str, float]) -> NDArray[np.bool_]:
    """Which classes stand in the set of each image, bool (n, 2): NORMAL, PNEUMONIA.

    Args:
        probabilities: float64, (n,).
        bounds: `low` and `high` of an `Uncertain`.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    sets: NDArray[np.bool_] = np.column_stack([scores < bounds["high"], scores >= bounds["low"]])
    return sets


def _some(labels: ArrayLike, probabilities: ArrayLike) -> tuple[IntArray, FloatArray]:
    truth, scores = checked_scores(labels, probabilities)
    if not truth.size:
        raise DataError("abstention: found no image with an answer, wanted many.")
    return truth, scores


def _surest_first(
    truth: IntArray, scores: FloatArray, threshold: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """Order by falling sureness, the last place of each run of equals, and errors in order."""
    sure = np.abs(logit(scores) - logit(threshold))
    order = np.argsort(-sure, kind="stable")
    new = np.diff(sure[order]) != 0
    ends = np.append(np.flatnonzero(new), truth.size - 1)
    wrong = ((scores >= threshold) != (truth == 1))[order].astype(np.float64)
    return order, ends, wrong


def _areas(weights: FloatArray, ends: IntArray, wrong: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Risk at every run's end (b, g), and the mean risk (b,)."""
    answered = np.cumsum(weights, axis=1)[:, ends]
    errors = np.cumsum(weights * wrong, axis=1)[:, ends]
    risk: FloatArray = np.divide(errors, answered, out=np.zeros_like(errors), where=answered > 0)
    steps = np.diff(answered, axis=1, prepend=0.0)
    return risk, (risk * steps).sum(axis=1) / answered[:, -1]


def _upper_risk(codes: IntArray, wrong: FloatArray, last: int, tail: float) -> float:
    """Upper confidence limit of the risk among the first images, up to and with `last`."""
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
    truth: IntArray,
    scores: FloatArray,
    patients: Patients,
) -> Uncertain:
    low, high = ends
    answered = (scores < low) | (scores >= high)
    wrong = (scores >= high)[answered] != (truth == 1)[answered]
    ids = np.asarray(patients)
    return Uncertain(
        method,
        low,
        high,
        rule,
        clustered_interval(answered, ids, 0.95),
        clustered_interval(wrong, ids[answered], 0.95),
    )
