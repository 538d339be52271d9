"""What a report is made from: frozen records that the workflow fills in.

Comes in: what the stages measured. Goes out: nothing; these are the inputs of `page` and
`model_card`. Whatever is empty or `None` has no section in the report.
Knows nothing of HTML, and of no model.
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
    """How many images and patients a split holds; `name` is `train`, `val`, `test` or `all`."""

    name: str
    normal: int
    pneumonia: int
    patients: int


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The data set that was used.

    Attributes:
        name: what the reader knows it by (a folder's or a CSV's name).
        counts: one row per split.
        fingerprint: hex digest of the images and labels, `""` if it was not taken.
        warnings: what the index found odd, one sentence each.
    """

    name: str
    counts: tuple[SplitCount, ...]
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """How the result came about.

    Attributes:
        command: the command line, ready for a shell.
        seconds: wall time per stage, in order (`features`, `head`, `evaluation`).
        versions: software and its version, in order.
        started: ISO 8601 date and time, `""` to leave it out (then equal inputs give equal bytes).
        config: the configuration dataclass that was used, `None` if there was none.
    """

    command: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    config: Any | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that was evaluated: its name, and what the bundle says of it, in order."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EpochPoint:
    """What one epoch of training gave; epochs count from 1."""

    epoch: int
    loss: float
    val_loss: float
    val_auc: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class LearningCurves:
    """All epochs in order, and the number of the one whose weights were kept."""

    epochs: tuple[EpochPoint, ...]
    best_epoch: int


@dataclass(frozen=True, slots=True)
class WorstError:
    """A wrong answer, shown as pictures.

    Attributes:
        file: the image's name or path.
        label: 0 for NORMAL, 1 for PNEUMONIA: the truth, according to the data set.
        probability: of pneumonia, in [0, 1].
        thumbnail: the X-ray as PNG bytes.
        overlay: the X-ray under its heatmap as PNG bytes, `None` without heatmaps.
    """

    file: str
    label: int
    probability: float
    thumbnail: bytes
    overlay: bytes | None = None


@dataclass(frozen=True, slots=True)
class Refusals:
    """How many inputs have no score for one reason (ours, or another system's); a few names."""

    reason: Reason | str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """Images and patients under one name."""

    name: str
    images: int
    patients: int


@dataclass(frozen=True, slots=True)
class Flow:
    """What became of the images.

    Attributes:
        found: all images of the data set, the unreadable ones included.
        elsewhere: the splits that are not evaluated here, each with what it was for.
        evaluated: the images that the model was asked for.
        refused: (reason in words, images) without an answer.
        scored: the images with a probability.
        matrix: of those with an answer.
        threshold: PNEUMONIA is the answer from here up.
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
        evaluation: numbers, curves and bins on the evaluated split.
        split: which split that is.
        run: command, times, versions, configuration.
        data: the data set.
        model: what was evaluated.
        learning: learning curves, after training only.
        worst_errors: the most confident wrong answers, worst first; the page then holds X-rays.
        refused: inputs without an answer, by reason.
        commands: how to run this again: what it does, and the command, in order.
        flow: of participants, drawn as a diagram.
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
