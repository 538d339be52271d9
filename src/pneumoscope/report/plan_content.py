"""The content of the page of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pneumoscope.evaluation.abstention import RiskCoverage, Uncertain
from pneumoscope.evaluation.decision import CostTable, DecisionCurve
from pneumoscope.evaluation.plan import ConfidentThreshold, PlanRow, ThresholdTable
from pneumoscope.evaluation.sample_size import Verification
from pneumoscope.inference.bundle import OperatingPoint


@dataclass(frozen=True, slots=True)
class PlanContent:
    """Everything on the page.

    Attributes:
        name: of the evaluation.
        images: number of images with a result.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        prevalence: of pneumonia, for predictive values and counts per 1,000 patients.
        given: whether the user specified the prevalence.
        table: rates at every threshold.
        at: index in `table` of the chosen threshold, or else of the threshold in use.
        current: the threshold in use.
        chosen: the new threshold, if requested.
        confident: the confidence that the requested rate is reached, if requested.
        verify: patients needed for a local test, by `sensitivity` and `specificity`.
        curve: the decision curve; `None` if the score is not a probability.
        risk: the risk–coverage curve; `None` if the score is not a probability.
        abstention: the abstention band or prediction sets, if requested.
        recalibration: as in `plan.json`.
        level: confidence level of the intervals.
        notes: sentences to show first.
        command: the command that produced the page.
        costs: cost of errors at each threshold, if requested.
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
        """The rates at the chosen threshold, or else at the threshold in use."""
        return self.table.row(self.at, self.prevalence)
