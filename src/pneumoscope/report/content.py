"""The content of reports, plans and pilot studies: frozen records that the workflows fill in.

A field that is empty or `None` has no section on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.errors import Reason
from pneumoscope.evaluation.abstention import RiskCoverage, Uncertain
from pneumoscope.evaluation.decision import CostTable, DecisionCurve
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.metrics import ConfusionMatrix
from pneumoscope.evaluation.pilot import Agreement, Verification, Week
from pneumoscope.evaluation.plan import ConfidentThreshold, PlanRow, ThresholdTable
from pneumoscope.inference.bundle import OperatingPoint
from pneumoscope.records import Split

EvaluatedSplit = Split | Literal["all"]


@dataclass(frozen=True, slots=True)
class SplitCount:
    """Numbers of images and patients in a split: `train`, `val`, `test` or `all`."""

    name: str
    normal: int
    pneumonia: int
    patients: int


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The data set that was used.

    Attributes:
        name: of the folder or CSV file.
        counts: one row per split.
        fingerprint: hex digest of the images and labels, `""` if it was not computed.
        warnings: about the data and the results on them, one sentence each.
        disjoint: whether it was checked that no patient is in more than one split.
    """

    name: str
    counts: tuple[SplitCount, ...]
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()
    disjoint: bool = True


@dataclass(frozen=True, slots=True)
class RunFacts:
    """How a result was produced.

    Attributes:
        command: the command line, ready for a shell.
        seconds: wall time per stage, in order (`features`, `head`, `evaluation`).
        versions: software and its version, in order.
        started: ISO 8601 date and time; `""` omits it, so that equal inputs give equal bytes.
        config: the configuration dataclass, or `None`.
    """

    command: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    config: Any | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that was evaluated: its name, and facts from its bundle, in order."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EpochPoint:
    """Losses, AUC and learning rate of one epoch; epochs count from 1."""

    epoch: int
    loss: float
    val_loss: float
    val_auc: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class LearningCurves:
    """The epochs of a training.

    Attributes:
        epochs: all, in order.
        kept_epoch: number of the epoch whose weights were kept.
        keep: why: the `last`, or the `best`, whose AUC need not be the highest of all.
        networks: number of networks that were trained; the curves are those of the first.
    """

    epochs: tuple[EpochPoint, ...]
    kept_epoch: int
    keep: Literal["best", "last"] = "best"
    networks: int = 1

    @property
    def kept(self) -> EpochPoint:
        """The epoch whose weights were kept."""
        return next(epoch for epoch in self.epochs if epoch.epoch == self.kept_epoch)

    @property
    def highest(self) -> EpochPoint:
        """The epoch with the highest validation AUC; the kept one if several share it."""
        return max(self.epochs, key=lambda e: (e.val_auc, e.epoch == self.kept_epoch))


@dataclass(frozen=True, slots=True)
class WorstError:
    """A wrong prediction, shown with the X-ray.

    Attributes:
        file: the image's name or path.
        label: the data set's label, 0 for NORMAL or 1 for PNEUMONIA.
        probability: of pneumonia, in [0, 1].
        thumbnail: the X-ray as PNG bytes.
        overlay: the X-ray with its heatmap as PNG bytes, or `None`.
    """

    file: str
    label: int
    probability: float
    thumbnail: bytes
    overlay: bytes | None = None


@dataclass(frozen=True, slots=True)
class Refusals:
    """The inputs without a score for one reason: their number and a few file names.

    `reason` is a code of pneumoscope, or the text of another system.
    """

    reason: Reason | str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """Numbers of images and patients of a named set."""

    name: str
    images: int
    patients: int


@dataclass(frozen=True, slots=True)
class Flow:
    """The flow of participants (STARD).

    Attributes:
        found: all images of the data set, including unreadable ones.
        elsewhere: the splits that are not evaluated here, and the images without a label.
        evaluated: the images on which inference was run.
        refused: (reason in words, number of images) of the images without a result.
        scored: the images with a probability.
        matrix: confusion matrix of the scored images.
        threshold: PNEUMONIA is predicted if the probability is at least this.
    """

    found: Counted
    elsewhere: tuple[Counted, ...]
    evaluated: Counted
    refused: tuple[tuple[str, int], ...]
    scored: Counted
    matrix: ConfusionMatrix
    threshold: float


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Everything in one report.

    Attributes:
        title: the page's heading (`Training report`, `Evaluation report`).
        evaluation: metrics, curves and calibration on the evaluated split.
        split: the evaluated split.
        run: command, times, versions, configuration.
        data: the data set.
        model: the model that was evaluated.
        learning: learning curves; only after training.
        worst_errors: the most confident wrong predictions, worst first; the page then shows X-rays.
        refused: inputs without a result, by reason.
        commands: title and command line of each command that reproduces the run, in order.
        flow: the flow of participants, drawn as a diagram.
        seen: how many of the images the model was trained on; `None` if that was not counted.
    """

    title: str
    evaluation: Evaluation
    split: EvaluatedSplit
    run: RunFacts
    data: DataFacts
    model: ModelFacts
    learning: LearningCurves | None = None
    worst_errors: tuple[WorstError, ...] = ()
    refused: tuple[Refusals, ...] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    flow: Flow | None = None
    seen: TrainingOverlap | None = None


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
        uncertain: those of `matched` for which the system abstained.
        nameless: cases whose score names no patient; each counts as its own patient.
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
    uncertain: int = 0
    nameless: int = 0


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
        evaluation: of the cases with score and reading; `None` if there are none.
        agreement: between system and reference.
        readers: agreement of each pair of readers, by their names.
        further_readers: readers that were not compared with others, because they are too many.
        weeks: in order.
        undated: cases without a date, which are in no week.
        thresholds: performance at other thresholds.
        needed: remaining cases, by `sensitivity` and `specificity`.
        models: fingerprints of the models that produced the scores, in order of appearance.
        level: confidence level of the intervals.
        command: the command that produced the page.
        notes: cautions about the evaluation, to show first.
    """

    scores: str
    readings: str
    by: str
    missing: Missing
    evaluation: Evaluation | None
    agreement: Agreement | None
    readers: Mapping[str, Agreement]
    further_readers: tuple[str, ...]
    weeks: tuple[Week, ...]
    undated: int
    thresholds: tuple[ThresholdRow, ...]
    needed: Mapping[str, StillNeeded]
    models: tuple[str, ...]
    level: float
    command: str
    notes: tuple[str, ...] = ()
