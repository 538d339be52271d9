"""A pilot study by week: volume, refusals, score drift and cumulative performance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from pneumoscope.evaluation.proportions import clustered_interval
from pneumoscope.evaluation.ranked_metrics import FloatArray
from pneumoscope.records import Estimate

FEWEST_FOR_DRIFT = 20
"""Minimum number of scores in each of two distributions to compare them."""


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


def _known(cases: Sequence[WeekCase], label: int) -> list[WeekCase]:
    return [case for case in cases if case.called is not None and case.reference == label]


def _scores(cases: Sequence[WeekCase]) -> FloatArray:
    found: FloatArray = np.array(
        [case.score for case in cases if case.score is not None], np.float64
    )
    return found


def _drift(scores: FloatArray, before: FloatArray) -> tuple[float | None, float | None]:
    if min(scores.size, before.size) < FEWEST_FOR_DRIFT:
        return None, None
    from scipy.stats import ks_2samp

    found = ks_2samp(scores, before)
    return float(found.statistic), float(found.pvalue)
