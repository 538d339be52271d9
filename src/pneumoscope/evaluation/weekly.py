"""A pilot week by week: volume, refusals, how scores moved, how well it did so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.proportions import clustered_interval
from pneumoscope.evaluation.ranked_metrics import FloatArray
from pneumoscope.records import Estimate

FEWEST_FOR_DRIFT = 20
"""Scores on either side below which two distributions are not compared."""


@dataclass(frozen=True, slots=True)
class WeekCase:
    """What the weekly figures need of one case.

    Attributes:
        week: Monday of its week.
        score: `None` where the system gave none.
        called: whether it was called PNEUMONIA; `None` without a score.
        reason: why there is no score, `""` if there is one.
        reference: what the readers said, `None` if that is not known.
        patient: id.
    """

    week: date
    score: float | None
    called: bool | None
    reason: str
    reference: int | None
    patient: str


@dataclass(frozen=True, slots=True)
class Week:
    """One week.

    Attributes:
        monday: its first day.
        cases: that came.
        refused: how many of them have no score, by code.
        read: how many have a score and a reference.
        quartiles: 25th, 50th and 75th percentile of its scores; empty without scores.
        called: share of its scores that were called PNEUMONIA.
        drift: largest distance between the distribution of its scores and that of all weeks
            before (Kolmogorov–Smirnov); `None` with too few.
        drift_p: two-sided p of no difference, likewise.
        sensitivity: of all cases up to the end of the week, with its interval.
        specificity: likewise.
        positives: cases with pneumonia behind `sensitivity`.
        negatives: cases behind `specificity`.
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
    """The weeks in order, those in which nothing came left out."""
    mondays = sorted({case.week for case in cases})
    return tuple(_week(monday, cases, level) for monday in mondays)


def _week(monday: date, cases: Sequence[WeekCase], level: float) -> Week:
    mine = [case for case in cases if case.week == monday]
    so_far = [case for case in cases if case.week <= monday]
    scores = _scores(mine)
    before = _scores([case for case in cases if case.week < monday])
    distance, p = _drift(scores, before)
    scored = [case for case in mine if case.called is not None]
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
        cases=len(mine),
        refused=dict(Counter(case.reason for case in mine if case.called is None).most_common()),
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


def _known(cases: Sequence[WeekCase], label: int) -> list[WeekCase]:
    return [case for case in cases if case.called is not None and case.reference == label]


def _scores(cases: Sequence[WeekCase]) -> FloatArray:
    found: NDArray[np.float64] = np.array(
        [case.score for case in cases if case.score is not None], np.float64
    )
    return found


def _drift(scores: FloatArray, before: FloatArray) -> tuple[float | None, float | None]:
    if min(scores.size, before.size) < FEWEST_FOR_DRIFT:
        return None, None
    from scipy.stats import ks_2samp

    found = ks_2samp(scores, before)
    return float(found.statistic), float(found.pvalue)
