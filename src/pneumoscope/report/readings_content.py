"""The content of the page of a pilot study: frozen records that the workflow fills in."""

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
    """Counts from joining scores and readings.

    Attributes:
        scores: rows in the table of scores.
        cases: cases in the table of scores.
        images_of_several: cases with more than one image.
        keyless: rows without a case identifier.
        unread: cases without a reading.
        divided: cases on which readers disagree or are undecided.
        unscored: cases with a reading that are not in the table of scores.
        refused: cases with a reading, but without a score.
        matched: cases with a score and a reading.
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
    """The cases of a class that are still required to demonstrate a rate.

    Attributes:
        needed: the required sample size.
        have: cases of the class with a score and a reading.
        weeks: weeks until the rest is collected at the current rate; `None` if unknown.
    """

    needed: Verification
    have: int
    weeks: float | None

    @property
    def missing(self) -> int | None:
        """Remaining cases; `None` if no sample size is sufficient."""
        return None if self.needed.patients is None else max(self.needed.patients - self.have, 0)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """Performance of a threshold on the cases so far.

    Attributes:
        row: its rates; predictive values are at the prevalence among the cases with a reading.
        called: cases with a score at or above the threshold.
        scored: cases with a score.
        in_use: whether it is the threshold in use.
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
        by: the key by which they were joined.
        missing: counts from joining them.
        evaluation: of the cases with score and reading; `None` unless both classes are present.
        agreement: between system and reference.
        readers: agreement of each pair of readers, by their names.
        weeks: in order.
        undated: cases without a date, which are in no week.
        thresholds: performance at other thresholds.
        needed: remaining cases, by `sensitivity` and `specificity`.
        models: fingerprints of the models that produced the scores, in order of appearance.
        level: confidence level of the intervals.
        command: the command that produced the page.
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
