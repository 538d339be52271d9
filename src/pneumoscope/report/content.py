"""The content of a report: frozen records that the workflows fill in.

A field that is empty or `None` has no section in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pneumoscope.errors import Reason
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.metrics import ConfusionMatrix
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
        warnings: from reading the data, one sentence each.
    """

    name: str
    counts: tuple[SplitCount, ...]
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()


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
    """All epochs in order, and the number of the epoch whose weights were kept."""

    epochs: tuple[EpochPoint, ...]
    best_epoch: int


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
        elsewhere: the splits that are not evaluated here, each with its purpose.
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
