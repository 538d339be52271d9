"""What errors cost at every threshold, and the threshold at which they cost least.

The expected cost per patient is `missed × π (1 - sensitivity) + false alarm × (1 - π) (1 -
specificity)`, π being the prevalence (Zweig & Campbell, Clin Chem 1993;39:561). Only the ratio of
the two costs moves the cheapest threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals import (
    expanded_tail,
    fewest_patients,
    resampled_counts,
)
from pneumoscope.evaluation.plan import PER, column_limits
from pneumoscope.evaluation.proportions import Patients, patient_codes
from pneumoscope.evaluation.ranked_metrics import (
    FloatArray,
    RankedCounts,
    RankedScores,
    checked_scores,
    ratio,
)
from pneumoscope.records import Estimate


@dataclass(frozen=True, slots=True)
class CostTable:
    """Expected cost per 1,000 patients at each threshold.

    Attributes:
        missed: cost of one missed case.
        false_alarm: cost of one false alarm, in the same unit.
        cost: (c, 3): value, low, high per threshold; NaN where undefined.
        cheapest: index of the threshold with the least cost.
        low: threshold that the cheapest one is at least, in the given share of resamples;
            `None` with a single patient.
        high: the one that it is at most, likewise.
        call_all: cost if every image were called PNEUMONIA.
        call_none: cost if none were.
    """

    missed: float
    false_alarm: float
    cost: FloatArray
    cheapest: int
    low: float | None
    high: float | None
    call_all: float
    call_none: float

    def at(self, index: int) -> Estimate:
        """The cost at a threshold."""
        return Estimate(*(None if np.isnan(n) else float(n) for n in self.cost[index]))

    def to_dict(self, thresholds: FloatArray) -> dict[str, Any]:
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
    thresholds: FloatArray,
    prevalence: float,
    costs: tuple[float, float],
    config: IntervalConfig,
) -> CostTable:
    """Expected cost at each threshold, with expanded percentile intervals over patients.

    Args:
        labels: int, (n,), 0 or 1, both present.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids; with one patient there is no interval.
        thresholds: (c,), rising.
        prevalence: above 0 and below 1.
        costs: of a missed case and of a false alarm.
        config: level, resamples, seed.

    Raises:
        UsageError: a cost is negative or not finite, or both are 0.
    """
    missed, alarm = costs
    if not (np.isfinite(costs).all() and min(costs) >= 0.0 and max(costs) > 0.0):
        raise UsageError(
            f"--cost {missed:g}:{alarm:g}: wanted two costs of 0 or more, not both 0, as in 20:1"
        )
    truth, scores = checked_scores(labels, probabilities)

    def priced(counts: RankedCounts) -> FloatArray:
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
