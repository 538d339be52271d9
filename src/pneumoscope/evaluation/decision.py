"""Decision curves (net benefit) and the expected cost of errors.

Someone who treats at a probability of pneumonia of p or more weighs a missed case as (1 - p) / p
false alarms. The net benefit per patient is sensitivity × π - (1 - specificity) × (1 - π) ×
p / (1 - p), where π is the prevalence (Vickers & Elkin 2006, doi:10.1177/0272989X06295361). It is
compared with treating all patients and with treating none (net benefit 0).

The expected cost per patient is `missed × π (1 - sensitivity) + false alarm × (1 - π) (1 -
specificity)` (Zweig & Campbell, Clin Chem 1993;39:561). The threshold with the lowest cost depends
only on the ratio of the two costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.calibration import logit, sigmoid
from pneumoscope.evaluation.intervals import expanded_tail, fewest_patients, resampled_counts
from pneumoscope.evaluation.plan import PER, column_limits
from pneumoscope.evaluation.proportions import Patients, clustered_interval, patient_codes
from pneumoscope.evaluation.ranked_metrics import (
    RankedCounts,
    RankedScores,
    checked_scores,
    ratio,
)
from pneumoscope.records import Estimate

GRID = tuple(float(k) / 100 for k in range(1, 100))


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit per patient against the threshold probability for treatment.

    Attributes:
        prevalence: of pneumonia.
        probability: threshold probabilities 0.01, …, 0.99.
        model: net benefit of treating according to the model.
        low: lower limit of its expanded percentile interval; empty without one.
        high: upper limit, likewise.
        treat_all: net benefit of treating all patients. That of treating none is 0.
    """

    prevalence: float
    probability: tuple[float, ...]
    model: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    treat_all: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """Lists, for JSON."""
        return {
            "prevalence": self.prevalence,
            "probability": [*self.probability],
            "model": [*self.model],
            "low": [*self.low],
            "high": [*self.high],
            "treat_all": [*self.treat_all],
            "treat_none": 0.0,
        }

    def useful(self) -> tuple[float, float] | None:
        """The widest range in which the model's lower limit exceeds treating all and none."""
        if not self.low:
            return None
        best, start = (0, 0), None
        alternatives = np.maximum(self.treat_all, 0.0)
        wins = [*(np.asarray(self.low) > alternatives), False]
        for k, win in enumerate(wins):
            if win and start is None:
                start = k
            if not win and start is not None:
                best = max(best, (start, k), key=lambda run: run[1] - run[0])
                start = None
        if best[0] == best[1]:
            return None
        return self.probability[best[0]], self.probability[best[1] - 1]


def decision_curve(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    prevalence: float,
    config: IntervalConfig,
) -> DecisionCurve:
    """Net benefit at `prevalence`, with pointwise intervals over resampled patients.

    If `prevalence` differs from that of the images, the probabilities are first adjusted by Bayes'
    rule: their odds are multiplied by the ratio of the prevalences' odds. Each resample is adjusted
    from its own prevalence, because that of the images is uncertain.

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids; with one patient there is no interval.
        prevalence: above 0 and below 1.
        config: level, resamples and seed.
    """
    truth, scores = checked_scores(labels, probabilities)
    grid = np.array(GRID)
    odds = grid / (1.0 - grid)
    own = float(truth.mean())

    def rates(counts: RankedCounts) -> tuple[Float64Array, Float64Array]:
        """Sensitivity and false positive rate at every threshold probability, each (b, 99)."""
        cuts = np.broadcast_to(grid, (len(counts.positives), grid.size))
        if prevalence != own:  # adjust the thresholds inversely instead of the scores
            images = counts.all_positives + counts.all_negatives
            cuts = shifted(grid, prevalence, (counts.all_positives / images)[:, None])
        found = np.searchsorted(-counts.scores, -cuts, side="right")
        none = np.zeros((len(counts.positives), 1))
        sums = (counts.true_positives, counts.false_positives)
        true, false = (
            np.take_along_axis(np.concatenate([none, one], axis=1), found, 1) for one in sums
        )
        return true / counts.all_positives[:, None], false / counts.all_negatives[:, None]

    def benefit(counts: RankedCounts) -> Float64Array:
        with np.errstate(invalid="ignore"):  # NaN in a resample with one class
            sensitivity, alarms = rates(counts)
        return sensitivity * prevalence - alarms * (1.0 - prevalence) * odds

    once = RankedScores.of(truth, scores).counts_once()
    point = benefit(once)[0]
    low = high = np.empty(0)
    codes, count = patient_codes(patients, truth.size)
    if count > 1:
        blocks = [benefit(counts) for counts in resampled_counts(truth, scores, patients, config)]
        fewest = fewest_patients(truth, codes)
        low, high = column_limits(np.concatenate(blocks), config.level, fewest)
        cuts = grid if prevalence == own else shifted(grid, prevalence, own)
        _hold_at_edges(
            (low, high),
            point,
            scores >= cuts[:, None],
            (truth, codes),
            (prevalence, (1.0 - prevalence) * odds),
            config.level,
        )
    treat_all = prevalence - (1.0 - prevalence) * odds
    columns = (point, low, high, treat_all)
    return DecisionCurve(
        prevalence, GRID, *(tuple(float(value) for value in column) for column in columns)
    )


def _hold_at_edges(
    limits: tuple[Float64Array, Float64Array],
    point: Float64Array,
    called: Iterable[NDArray[np.bool_]],
    images: tuple[Int64Array, Int64Array],
    weights: tuple[float, Float64Array],
    level: float,
) -> None:
    """Replace the limits (c,) where a rate is 0 or 1, by square-and-add of the rates' limits.

    Args:
        limits: lower and upper limits, (c,) each; changed in place.
        point: the benefit at each of c thresholds, (c,).
        called: which images are called PNEUMONIA at each threshold, c times (n,).
        images: label and patient code of each, (n,).
        weights: what sensitivity gains, and what false positives cost at each threshold.
        level: of the intervals.
    """
    low, high = limits
    truth, codes = images
    for k, calls in enumerate(called):
        classes = [(calls[truth == label], codes[truth == label]) for label in (1, 0)]
        rates = [float(hits.mean()) for hits, _ in classes]
        if not any(rate in (0.0, 1.0) for rate in rates):
            continue
        reach = []
        for rate, (hits, patients) in zip(rates, classes, strict=True):
            found = clustered_interval(hits, patients, level)
            if found.low is None or found.high is None:
                break
            reach.append((rate - found.low, found.high - rate))
        else:
            gained, lost = weights[0], float(weights[1][k])
            low[k] = point[k] - np.hypot(gained * reach[0][0], lost * reach[1][1])
            high[k] = point[k] + np.hypot(gained * reach[0][1], lost * reach[1][0])


def shifted(
    probabilities: ArrayLike, prevalence: float, wanted: float | Float64Array
) -> Float64Array:
    """Adjust probabilities from one prevalence to another (prior shift).

    Saerens, Latinne & Decaestecker 2002, doi:10.1162/089976602753284446.

    Args:
        probabilities: float64, any shape, in [0, 1], at `prevalence`.
        prevalence: above 0 and below 1.
        wanted: the other prevalence, or an array of them that broadcasts with `probabilities`.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    if isinstance(wanted, float) and prevalence == wanted:
        return scores
    moved = sigmoid(logit(scores) + (logit(wanted) - logit(prevalence)))
    return np.where(scores <= 0.0, 0.0, np.where(scores >= 1.0, 1.0, moved))


@dataclass(frozen=True, slots=True)
class CostTable:
    """Expected cost per 1,000 patients at each threshold.

    Attributes:
        missed: cost of one missed case.
        false_alarm: cost of one false alarm, in the same unit.
        cost: float64, (c, 3): value, lower and upper limit per threshold; NaN where undefined.
        cheapest: index of the threshold with the lowest cost.
        low: lower limit of the cheapest threshold over resamples; `None` with a single patient.
        high: upper limit, likewise.
        call_all: cost if PNEUMONIA is predicted for all images.
        call_none: cost if NORMAL is predicted for all images.
    """

    missed: float
    false_alarm: float
    cost: Float64Array
    cheapest: int
    low: float | None
    high: float | None
    call_all: float
    call_none: float

    def at(self, index: int) -> Estimate:
        """The cost at a threshold."""
        return Estimate(*(None if np.isnan(n) else float(n) for n in self.cost[index]))

    def to_dict(self, thresholds: Float64Array) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = self.at(self.cheapest)
        return {
            "missed": self.missed,
            "false_alarm": self.false_alarm,
            "cheapest": {
                "threshold": float(thresholds[self.cheapest]),
                "low": self.low,
                "high": self.high,
                "cost_per_1000": {"value": found.value, "low": found.low, "high": found.high},
            },
            "call_all_per_1000": self.call_all,
            "call_none_per_1000": self.call_none,
        }


def cost_table(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients,
    thresholds: Float64Array,
    prevalence: float,
    costs: tuple[float, float],
    config: IntervalConfig,
) -> CostTable:
    """Expected cost at each threshold, with expanded percentile intervals over patients.

    Where sensitivity or specificity is 0 or 1, the intervals come from those of both rates.

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids; with one patient there is no interval.
        thresholds: float64, (c,), increasing.
        prevalence: above 0 and below 1.
        costs: of a missed case and of a false alarm, in the same unit.
        config: level, resamples and seed.

    Raises:
        UsageError: a cost is negative or not finite, or both are 0.
    """
    missed, alarm = costs
    if not (np.isfinite(costs).all() and min(costs) >= 0.0 and max(costs) > 0.0):
        raise UsageError(
            f"--cost {missed:g}:{alarm:g}: wanted two costs of 0 or more, not both 0, such as 20:1"
        )
    truth, scores = checked_scores(labels, probabilities)

    def priced(counts: RankedCounts) -> Float64Array:
        called = np.searchsorted(-counts.scores, -thresholds, side="right")
        none = np.zeros((len(counts.positives), 1))
        found, raised = (
            np.concatenate([none, sums], axis=1)[:, called]
            for sums in (counts.true_positives, counts.false_positives)
        )
        sensitivity = ratio(found, counts.all_positives[:, None])
        alarms = ratio(raised, counts.all_negatives[:, None])
        return PER * (
            missed * prevalence * (1.0 - sensitivity) + alarm * (1.0 - prevalence) * alarms
        )

    point = priced(RankedScores.of(truth, scores).counts_once())[0]
    low = high = np.full(point.size, np.nan)
    ends: tuple[float | None, float | None] = (None, None)
    codes, count = patient_codes(patients, truth.size)
    if count > 1:
        blocks = [priced(counts) for counts in resampled_counts(truth, scores, patients, config)]
        resampled = np.concatenate(blocks)
        fewest = fewest_patients(truth, codes)
        low, high = column_limits(resampled, config.level, fewest)
        benefit = (-high, -low)  # a cost is a benefit with the opposite sign
        _hold_at_edges(
            benefit,
            -point,
            (scores >= threshold for threshold in thresholds),
            (truth, codes),
            (
                PER * missed * prevalence,
                np.full(point.size, PER * alarm * (1.0 - prevalence)),
            ),
            config.level,
        )
        low, high = 0.0 - benefit[1], 0.0 - benefit[0]
        whole = resampled[~np.isnan(resampled).any(axis=1)]
        if len(whole):
            tail = expanded_tail(config.level, fewest)
            found = thresholds[whole.argmin(axis=1)]
            ends = (
                float(np.quantile(found, tail, method="lower")),
                float(np.quantile(found, 1 - tail, method="higher")),
            )
    return CostTable(
        missed,
        alarm,
        np.column_stack([point, low, high]),
        int(point.argmin()),
        *ends,
        PER * alarm * (1.0 - prevalence),
        PER * missed * prevalence,
    )
