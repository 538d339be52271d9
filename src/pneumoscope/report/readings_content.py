"""What the page of a pilot is made from: frozen records that the workflow fills in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.kappa import Agreement
from pneumoscope.evaluation.plan import PlanRow
from pneumoscope.evaluation.sample_size import Verification
from pneumoscope.evaluation.weekly import Week


@dataclass(frozen=True, slots=True)
class Missing:
    """What stands on one side only.

    Attributes:
        scores: rows of the scores.
        cases: cases that they make.
        images_of_several: cases of more than one image.
        keyless: rows that name no case.
        unread: cases without a reading.
        divided: cases whose readers are divided or could not say.
        unscored: read, and not in the scores.
        refused: read, and without a score.
        matched: with a score and a reference.
    """

    scores: int
    cases: int
    images_of_several: int
    keyless: int
    unread: int
    divided: int
    unscored: int
    refused: int
    matched: int


@dataclass(frozen=True, slots=True)
class StillNeeded:
    """How many more cases of a class a rate needs to be shown.

    Attributes:
        needed: what it takes in all.
        have: cases of the class that have a score and a reference.
        weeks: weeks of further cases at the pace so far; `None` where that can't be said.
    """

    needed: Verification
    have: int
    weeks: float | None

    @property
    def missing(self) -> int | None:
        """Cases still to come; `None` where no number would do."""
        return None if self.needed.patients is None else max(self.needed.patients - self.have, 0)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """What another threshold would have done with the cases so far.

    Attributes:
        row: its rates; predictive values at the share of pneumonia among the cases read.
        called: cases that it would have called, of all with a score.
        scored: of how many.
        in_use: whether it is the one in use.
    """

    row: PlanRow
    called: int
    scored: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class ReadingsContent:
    """Everything on the page.

    Attributes:
        scores: name of the table of scores.
        readings: name of the table of readings.
        by: what they were joined by.
        missing: what could not be joined.
        evaluation: of the cases with score and reference; `None` with cases of one class or none.
        agreement: of system and reference.
        readers: of each pair of readers, by their names.
        weeks: in order.
        undated: cases without a date, which stand in no week.
        thresholds: what others would have done.
        needed: by `sensitivity` and `specificity`.
        models: fingerprints of the models that answered, in order of appearance.
        level: of the intervals.
        command: that made the page.
    """

    scores: str
    readings: str
    by: str
    missing: Missing
    evaluation: Evaluation | None
    agreement: Agreement | None
    readers: Mapping[str, Agreement]
    weeks: tuple[Week, ...]
    undated: int
    thresholds: tuple[ThresholdRow, ...]
    needed: Mapping[str, StillNeeded]
    models: tuple[str, ...]
    level: float
    command: str
