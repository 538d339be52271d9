"""The statistics of a pilot study: its weeks, agreement with readers, and the patients it needs.

`by_week` follows a study by volume, refusals, score drift and cumulative performance.

`cohen_kappa` is Cohen's kappa of two binary raters, with an interval clustered by patient. The
standard error is that of the delta method (Fleiss, Cohen & Everitt 1969, doi:10.1037/h0028106),
with the images of a patient summed first. A Wald interval can exceed 1 and collapses at full
agreement. The interval here is the score interval of the observed agreement, at the number of
independent images that would give kappa the same standard error, transformed to the scale of kappa.

`patients_to_verify` is the sample size of an exact binomial test that a proportion is above a
minimum. The exact one-sided binomial test rejects "the proportion is at most `least`" if at least c
of n patients are hits, where c is the smallest number with P(X ≥ c | n, least) ≤ 1 - confidence.
Its power is P(X ≥ c | n, expected). Because c changes in steps, the power is not monotonic in n;
the sample size is the smallest n for which it and all larger n have the power (Chernick & Liu 2002,
doi:10.1198/000313002317572835). One image per patient is assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.proportions import (
    Patients,
    clustered_interval,
    patient_codes,
    score_interval,
)
from pneumoscope.evaluation.ranked_metrics import checked_labels
from pneumoscope.records import Estimate

FEWEST_FOR_DRIFT = 20
"""Minimum number of scores in each of two distributions to compare them."""

_MOST = 200_000
"""Largest sample size considered; if more are needed, the result is `None`."""

FORMULA = (
    "exact one-sided binomial test: smallest n, with c the smallest count for which "
    "P(X >= c | n, least) <= 1 - confidence, such that P(X >= c | n, expected) >= power for it "
    "and every larger n"
)


@dataclass(frozen=True, slots=True)
class WeekCase:
    """One case, as far as the weekly statistics need it.

    Attributes:
        week: Monday of its week.
        score: `None` if the system gave none.
        called: whether PNEUMONIA was predicted; `None` without a score.
        reason: why there is no score; `""` if there is one.
        reference: the readers' label, 0 or 1; `None` if unknown.
        patient: patient id.
    """

    week: date
    score: float | None
    called: bool | None
    reason: str
    reference: int | None
    patient: str


@dataclass(frozen=True, slots=True)
class Week:
    """Statistics of one week.

    Attributes:
        monday: its first day.
        cases: number of cases.
        refused: number of cases without a score, by reason.
        read: number of cases with a score and a reference.
        quartiles: 25th, 50th and 75th percentile of the scores; empty without scores.
        called: share of the scored cases predicted PNEUMONIA.
        drift: Kolmogorov–Smirnov distance between the scores of the week and those of all previous
            weeks; `None` with too few scores.
        drift_p: two-sided p of no difference, likewise.
        sensitivity: of all cases up to the end of the week, with its interval.
        specificity: of all cases up to the end of the week, with its interval.
        positives: number of cases behind `sensitivity`.
        negatives: number of cases behind `specificity`.
    """

    monday: date
    cases: int
    refused: Mapping[str, int]
    read: int
    quartiles: tuple[float, ...]
    called: Estimate
    drift: float | None
    drift_p: float | None
    sensitivity: Estimate
    specificity: Estimate
    positives: int
    negatives: int


def by_week(cases: Sequence[WeekCase], level: float) -> tuple[Week, ...]:
    """Statistics of the weeks, in order; weeks without cases are left out."""
    mondays = sorted({case.week for case in cases})
    return tuple(_week(monday, cases, level) for monday in mondays)


def _week(monday: date, cases: Sequence[WeekCase], level: float) -> Week:
    own = [case for case in cases if case.week == monday]
    so_far = [case for case in cases if case.week <= monday]
    scores = _scores(own)
    before = _scores([case for case in cases if case.week < monday])
    distance, p = _drift(scores, before)
    scored = [case for case in own if case.called is not None]
    known = {label: _known(so_far, label) for label in (0, 1)}
    rates = [
        clustered_interval(
            [case.called == bool(label) for case in known[label]],
            [case.patient for case in known[label]],
            level,
        )
        for label in (0, 1)
    ]
    return Week(
        monday=monday,
        cases=len(own),
        refused=dict(Counter(case.reason for case in own if case.called is None).most_common()),
        read=len([case for case in scored if case.reference is not None]),
        quartiles=tuple(float(q) for q in np.quantile(scores, (0.25, 0.5, 0.75)))
        if scores.size
        else (),
        called=clustered_interval(
            [bool(case.called) for case in scored], [case.patient for case in scored], level
        ),
        drift=distance,
        drift_p=p,
        sensitivity=rates[1],
        specificity=rates[0],
        positives=len(known[1]),
        negatives=len(known[0]),
    )


def weeks_spanned(weeks: Sequence[Week]) -> int:
    """Number of weeks from the first to the last, those without cases included."""
    return (weeks[-1].monday - weeks[0].monday).days // 7 + 1 if weeks else 0


def _known(cases: Sequence[WeekCase], label: int) -> list[WeekCase]:
    return [case for case in cases if case.called is not None and case.reference == label]


def _scores(cases: Sequence[WeekCase]) -> Float64Array:
    found: Float64Array = np.array(
        [case.score for case in cases if case.score is not None], np.float64
    )
    return found


def _drift(scores: Float64Array, before: Float64Array) -> tuple[float | None, float | None]:
    if min(scores.size, before.size) < FEWEST_FOR_DRIFT:
        return None, None
    from scipy.stats import ks_2samp

    found = ks_2samp(scores, before)
    return float(found.statistic), float(found.pvalue)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two raters.

    Attributes:
        images: number of images rated by both.
        counts: images rated positive by both, by the first only, by the second only, by neither.
        observed: share of images on which they agree.
        expected: share expected by chance, from the raters' marginal frequencies.
        kappa: `None` if both raters give the same rating to all images.
        error: standard error of kappa, likewise.
    """

    images: int
    counts: tuple[int, int, int, int]
    observed: float
    expected: float
    kappa: Estimate
    error: float | None


def cohen_kappa(first: ArrayLike, second: ArrayLike, patients: Patients, level: float) -> Agreement:
    """Agreement of two raters beyond chance.

    Args:
        first: int, (n,), 0 or 1.
        second: int, (n,), 0 or 1.
        patients: (n,), patient ids.
        level: confidence level, such as 0.95.

    Raises:
        DataError: there is no image, shapes differ, or a rating is not 0 or 1.
    """
    one, other = checked_labels(first), checked_labels(second)
    if one.shape != other.shape or not one.size:
        raise DataError(
            f"kappa: found ratings of shapes {one.shape} and {other.shape}, wanted two for each of "
            "one or more images."
        )
    n = one.size
    a, b = one.astype(np.float64), other.astype(np.float64)
    agree = (one == other).astype(np.float64)
    observed = float(agree.mean())
    yes = (float(a.mean()), float(b.mean()))
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    counts = _cells(one, other)
    if expected >= 1.0:
        return Agreement(n, counts, observed, expected, Estimate(None), None)
    kappa = (observed - expected) / (1 - expected)
    moved = (2 * yes[1] - 1) * (a - yes[0]) + (2 * yes[0] - 1) * (b - yes[1])
    influence = (agree - observed) / (1 - expected) - (1 - kappa) / (1 - expected) * moved
    codes, patient_count = patient_codes(patients, n)
    if patient_count < 2:
        return Agreement(n, counts, observed, expected, Estimate(kappa), None)
    error = _error(influence, codes, patient_count)
    spread = observed * (1 - observed)
    # Where all or none agree, the spread says nothing: one image per patient.
    independent = float(patient_count)
    if error > 0 and spread > 0:
        independent = spread / ((1 - expected) ** 2 * error**2)
    ends = score_interval(observed, min(independent, float(n)), level)
    low, high = (
        None if end is None else (end - expected) / (1 - expected) for end in (ends.low, ends.high)
    )
    return Agreement(n, counts, observed, expected, Estimate(kappa, low, high), error)


def _cells(one: Int64Array, other: Int64Array) -> tuple[int, int, int, int]:
    both, first, second = one & other, one & (1 - other), (1 - one) & other
    found = [int(cell.sum()) for cell in (both, first, second)]
    return found[0], found[1], found[2], one.size - sum(found)


def _error(influence: Float64Array, codes: ArrayLike, patients: int) -> float:
    """Standard error of a mean over images, clustered by patient."""
    sums = np.bincount(np.asarray(codes), influence, patients)
    return float(np.sqrt(sums @ sums * patients / (patients - 1)) / influence.size)


@dataclass(frozen=True, slots=True)
class Verification:
    """The sample size of a test on local patients.

    Attributes:
        expected: the assumed true proportion.
        least: the minimum to be demonstrated.
        confidence: of the one-sided test.
        power: probability that the test succeeds if `expected` is true.
        patients: required patients of the class; `None` if 200,000 are not enough.
        hits: the minimum number of correct predictions among them.
    """

    expected: float
    least: float
    confidence: float
    power: float
    patients: int | None
    hits: int | None


def patients_to_verify(
    expected: float, least: float, confidence: float, power: float
) -> Verification:
    """Patients of a class required to show, with `power`, that a proportion is above `least`.

    Args:
        expected: the assumed true proportion, in [0, 1].
        least: the minimum to be demonstrated, in (0, 1).
        confidence: in (0, 1), such as 0.95.
        power: in (0, 1), such as 0.9.

    Raises:
        UsageError: a number is out of its range.
    """
    for name, value in (("least", least), ("confidence", confidence), ("power", power)):
        if not 0.0 < value < 1.0:
            raise UsageError(f"{name}: found {value}, wanted a share above 0 and below 1")
    if not 0.0 <= expected <= 1.0:
        raise UsageError(f"expected: found {expected}, wanted a share from 0 to 1")
    if expected <= least:
        return Verification(expected, least, confidence, power, None, None)
    # An upper bound: twice the normal approximation (Fleiss 1981, section 2.2) plus a margin.
    z1, z2 = (NormalDist().inv_cdf(level) for level in (confidence, power))
    spread = z1 * math.sqrt(least * (1 - least)) + abs(z2) * math.sqrt(expected * (1 - expected))
    reach = 2 * (spread / (expected - least)) ** 2 + 10 * math.log(1 - confidence) / math.log(least)
    if reach > _MOST:
        return Verification(expected, least, confidence, power, None, None)
    sizes = np.arange(1, math.ceil(reach) + 50)
    counts, powers = critical_counts(sizes, expected, least, confidence)
    short = np.flatnonzero(powers < power)
    first = int(short[-1]) + 1 if short.size else 0
    return Verification(expected, least, confidence, power, int(sizes[first]), int(counts[first]))


def critical_counts(
    sizes: Int64Array, expected: float, least: float, confidence: float
) -> tuple[Int64Array, Float64Array]:
    """For each sample size, int64 (c,): the smallest count that rejects, and the power."""
    from scipy.stats import binom

    # The smallest count whose probability of being reached is at most 1 - confidence.
    counts = np.asarray(binom.isf(1.0 - confidence, sizes, least), np.int64) + 1
    powers = np.where(counts <= sizes, binom.sf(counts - 1, sizes, expected), 0.0)
    return counts, powers
