"""What the page of a plan is made from: a frozen record that the workflow fills in.

Comes in: what was measured and chosen. Goes out: nothing; this is the input of `plan_page`. Knows
nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pneumoscope.evaluation.abstention import RiskCoverage, Uncertain
from pneumoscope.evaluation.cost import CostTable
from pneumoscope.evaluation.decision import DecisionCurve
from pneumoscope.evaluation.plan import ConfidentThreshold, PlanRow, ThresholdTable
from pneumoscope.evaluation.sample_size import Verification
from pneumoscope.inference.bundle import OperatingPoint


@dataclass(frozen=True, slots=True)
class PlanContent:
    """Everything on the page.

    Attributes:
        name: of the evaluation.
        images: with an answer.
        patients: how many they are of.
        positives: PNEUMONIA images among them.
        prevalence: at which predictive values hold.
        given: whether the user gave it.
        table: every threshold.
        at: index of the chosen threshold in it, or of the one in use.
        current: the threshold in use.
        chosen: the new threshold, if one was asked for.
        confident: how sure it is that the wanted rate holds.
        verify: patients needed, by `sensitivity` and `specificity`.
        curve: net benefit; `None` where the score is no probability.
        risk: risk against coverage, likewise.
        abstention: where the answer is to be `uncertain`, if asked for.
        recalibration: as in `plan.json`.
        level: of the intervals.
        notes: what the reader must know first.
        command: that made the page.
        costs: what errors cost at each threshold, if asked for.
    """

    name: str
    images: int
    patients: int
    positives: int
    prevalence: float
    given: bool
    table: ThresholdTable
    at: int
    current: PlanRow
    chosen: OperatingPoint | None
    confident: ConfidentThreshold | None
    verify: Mapping[str, Verification]
    curve: DecisionCurve | None
    risk: RiskCoverage | None
    abstention: Uncertain | None
    recalibration: Mapping[str, Any] | None
    level: float
    notes: tuple[str, ...]
    command: str
    costs: CostTable | None = None

    @property
    def row(self) -> PlanRow:
        """The chosen threshold, or the one in use, at the prevalence."""
        return self.table.row(self.at, self.prevalence)
