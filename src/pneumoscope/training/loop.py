"""The training loop: any Keras model, any backend, killed and resumed at any moment.

Comes in: a curriculum (which model and which batches in which epoch), `FitConfig`, the labels of
validation. Goes out: the weights of the best or last epoch and what every epoch scored.
Knows nothing of images, recipes or what the model is made of.

Resuming: every epoch's batches depend on its number alone, schedules are functions of the scores
so far, and a checkpoint holds everything else that an epoch changes: weights, optimiser, the
average of weights, the states of all random numbers. So a run that was killed at any moment goes
on from its last whole epoch as if it had not been.

The state of a training after its last whole epoch, in one file, written whole or not at all.

Comes in: arrays, what every epoch scored, and an `origin`: a digest of all that decides how the
training goes. Goes out: the same, or nothing where the file is damaged or of another training.
No pickle. Knows nothing of models.
"""

from __future__ import annotations

import json
import logging
import lzma
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import FitConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.storage import atomic_writer
from pneumoscope.training.optimizer import (
    WeightAverage,
    best_epoch,
    build_optimizer,
    learning_rate,
    should_stop,
)
from pneumoscope.training.runtime import load_keras

_LOGGER = logging.getLogger(__name__)

_DAMAGE = (
    *(ValueError, KeyError, TypeError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    RuntimeError,  # by `zipfile`, of flags that it does not know
)
"""What reading a file of any content can raise."""

Arrays = Mapping[str, Sequence[NDArray[Any]]]
"""Named lists of arrays: `state` (weights, optimiser, seeds), `best`, `average`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of `history.csv`. `seconds` is wall time, the rest is the same in a resumed run.

    `val_accuracy` is that of uncalibrated probabilities at 0.5; `None` in checkpoints of versions
    that did not measure it.
    """

    epoch: int
    learning_rate: float
    loss: float
    val_loss: float
    val_auc: float
    seconds: float
    val_accuracy: float | None = None


def save(path: Path, origin: str, history: Sequence[Epoch], arrays: Arrays) -> None:
    """Write a checkpoint beside and rename it, so that the one before it is there until then.

    Raises:
        OSError: it can't be written (disk full); the last whole one is still there.
    """
    text = json.dumps({"origin": origin, "history": [asdict(epoch) for epoch in history]})
    flat = {f"{name}{k}": array for name, each in arrays.items() for k, array in enumerate(each)}
    with atomic_writer(path) as stream:
        np.savez(stream, allow_pickle=False, about=np.array(text), **flat)


def restore(
    path: Path, origin: str, shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Epoch], dict[str, list[NDArray[Any]]]] | None:
    """Read a checkpoint, all of it, before any of it is used.

    A file that is damaged, or of other data or settings, is left aside with a warning: training
    then begins anew, to the same end.

    Args:
        path: where it was saved.
        origin: what it must be of.
        shapes: the wanted shapes of each named list of arrays.
    """
    try:
        history, arrays = _read(path, origin, shapes)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _LOGGER.warning("%s: left aside, training begins anew (%s)", path, error)
        return None
    _LOGGER.info("continuing after epoch %d of %s", len(history), path)
    return history, arrays


def _read(
    path: Path, origin: str, shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Epoch], dict[str, list[NDArray[Any]]]]:
    arrays: dict[str, list[NDArray[Any]]] = {}
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
        about = json.loads(str(saved["about"]))
        if about["origin"] != origin:
            raise ValueError("it is of other data or settings")
        for name, wanted in shapes.items():
            arrays[name] = [saved[f"{name}{k}"] for k in range(len(wanted))]
            for k, (array, shape) in enumerate(zip(arrays[name], wanted, strict=True)):
                if array.shape != tuple(shape):
                    raise ValueError(f"{name}{k} has the shape {array.shape}")
    return [Epoch(**row) for row in about["history"]], arrays


Labels = NDArray[np.int64]
Shares = NDArray[np.float32]
"""Share of either class (n, 2) in each image, where one image is made of several."""
Score = Callable[[Labels, NDArray[np.float64]], float]
"""Labels and probabilities to one number, higher is better (ROC AUC)."""


class Lesson(Protocol):
    """What is trained in one epoch.

    Attributes:
        model: a Keras model from a batch's input to logits (n, 1), around the curriculum's network.
        steps: batches per epoch.
    """

    model: Any
    steps: int

    def batches(self, epoch: int) -> Iterator[tuple[Any, Labels | Shares]]:
        """What the model takes, and labels (0, 1) or shares; the same whenever it is asked."""

    def val_logits(self) -> NDArray[np.float32]:
        """Logits (n,) of the validation images, by the network as it stands."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What is trained, epoch by epoch.

    Attributes:
        network: the Keras model whose weights are trained; every lesson's model has it inside.
        lessons: in the order in which they are taught.
        until: for each lesson, the epoch at which the next one begins; the last is not asked.
        factors: variable path → its share of the step size; 1 where it is not named.
        stage: what is trained, for progress bars.
    """

    network: Any
    lessons: Sequence[Lesson]
    until: Sequence[int] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    stage: str = "network"

    def lesson(self, epoch: int) -> Lesson:
        """The lesson of an epoch, counted from 0."""
        return self.lessons[sum(epoch >= end for end in self.until[: len(self.lessons) - 1])]

    def variables(self) -> list[Any]:
        """Every variable that an epoch may change, each once: weights and random states."""
        found = {id(v): v for v in self.network.variables}
        for lesson in self.lessons:
            found |= {id(v): v for v in lesson.model.variables}
        return list(found.values())

    def trainable(self) -> list[Any]:
        """Every variable that gradients change, each once: the network's, then what lessons add."""
        found = {id(v): v for v in self.network.trainable_variables}
        for lesson in self.lessons:
            found |= {id(v): v for v in lesson.model.trainable_variables}
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Fitted:
    """The kept weights, in the order of `network.get_weights()`, and what every epoch scored."""

    weights: list[NDArray[np.float32]]
    history: tuple[Epoch, ...]
    best: int


def check_classes(parts: Mapping[str, Labels]) -> None:
    """See that each split has both classes.

    Raises:
        DataError: one is missing.
    """
    for name, labels in parts.items():
        counts = np.bincount(labels, minlength=2)
        if not counts.all():
            raise DataError(
                f"{name}: found {counts[0]} NORMAL and {counts[1]} PNEUMONIA images that can be "
                "read; wanted both classes in train and in val. Look: pneumoscope data audit DATA"
            )


def class_weights(labels: Labels) -> NDArray[np.float64]:
    """Weight per class, inverse to its frequency, so that the mean weight of an image is 1."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray(len(labels) / (2.0 * counts))


EpochsListener = Callable[[Sequence[Epoch], bool], None]
"""Receives all epochs of a stage so far, and whether the last one has just been trained. It is
`False` once, where the stage begins (no epochs) or is resumed (those restored)."""


def ignore_epochs(epochs: Sequence[Epoch], trained: bool) -> None:
    """The listener of a training that nobody listens to."""


def fit(  # noqa: PLR0913 - what is trained, how, and what is told of it
    curriculum: Curriculum,
    labels: Labels,
    val_labels: Labels,
    config: FitConfig,
    score: Score,
    checkpoint: Path,
    origin: str,
    progress: Progress = SILENT,
    on_epochs: EpochsListener = ignore_epochs,
) -> Fitted:
    """Train until `should_stop`, from the checkpoint if there is one.

    Args:
        curriculum: what is trained.
        labels: of all training images: the classes' weights come from them.
        val_labels: of the validation images, as `Lesson.val_logits` has them.
        config: how.
        score: ROC AUC; decides on the best epoch, schedules and stopping.
        checkpoint: file that is written after every epoch.
        origin: digest of all that decides how training goes: data, settings, initial weights.
        progress: is told of every epoch.
        on_epochs: is called after every epoch, once that is in the checkpoint.

    Raises:
        DataError: a class is missing from either split.
        UsageError: the loss is no number any more: the step size is too large.
        OSError: the checkpoint can't be written; the last whole one is still there.
    """
    check_classes({"train": labels, "val": val_labels})
    weights = class_weights(labels) if config.class_weights else np.ones(2)
    session = _Session(curriculum, config, weights)
    history, best = session.resume(checkpoint, origin)
    on_epochs(tuple(history), False)
    with progress.task(curriculum.stage, config.epochs, "epochs") as task:
        task.advance(len(history))
        while not should_stop(config, scores := [e.val_auc for e in history]):
            started = time.monotonic()
            loss, rate = session.teach(scores)
            logits = session.val_logits(len(history))
            if not (math.isfinite(loss) and np.isfinite(logits).all()):
                raise UsageError(
                    f"fit.learning_rate: at {rate:g} the loss of epoch {len(history) + 1} is no "
                    "finite number; wanted steps that converge. Give a smaller one."
                )
            auc = float(score(val_labels, sigmoid(logits)))
            accuracy = float(np.mean((logits >= 0) == val_labels))
            val_loss = _log_loss(val_labels, logits, weights)
            seconds = time.monotonic() - started
            history.append(Epoch(len(history), rate, loss, val_loss, auc, seconds, accuracy))
            if best_epoch(config, [e.val_auc for e in history]) == len(history) - 1:
                best = session.weights()
            save(checkpoint, origin, history, {**session.state(), "best": best})
            on_epochs(tuple(history), True)
            _LOGGER.debug("%s", history[-1])
            task.advance(1, f"validation AUC {auc:.4f}")
    return Fitted(best, tuple(history), best_epoch(config, [e.val_auc for e in history]))


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities, float64, that don't overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _log_loss(labels: Labels, logits: NDArray[np.float32], weights: NDArray[np.float64]) -> float:
    """Mean of the class-weighted binary cross-entropy, the loss that training minimises."""
    signed = np.where(labels == 1, -logits, logits).astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, signed) * weights[labels]))


def _targets(labels: Labels | Shares, weights: Shares) -> tuple[Shares, Shares]:
    """What the loss compares with (n, 1), and each image's weight (n,).

    The cross-entropy of a share of either class, each weighed as its class is, is that of one
    target between 0 and 1 at one weight.
    """
    shares = np.eye(2, dtype=np.float32)[labels] if labels.ndim == 1 else labels
    parts = shares * weights
    total = parts.sum(1)
    return parts[:, 1:] / total[:, None], total


class _Session:
    """The network, its optimiser and the average of its weights."""

    def __init__(
        self, curriculum: Curriculum, config: FitConfig, class_weights: NDArray[np.float64]
    ) -> None:
        keras = load_keras()
        self._curriculum = curriculum
        self._network = curriculum.network
        self._config = config
        self._class_weights = class_weights.astype(np.float32)
        self._optimizer = build_optimizer(curriculum.trainable(), config, curriculum.factors)
        for lesson in curriculum.lessons:
            loss = keras.losses.BinaryCrossentropy(
                from_logits=True, label_smoothing=config.label_smoothing
            )
            lesson.model.compile(optimizer=self._optimizer, loss=loss, auto_scale_loss=False)
        self._average = WeightAverage(self._network, config.ema) if config.ema else None

    def teach(self, scores: Sequence[float]) -> tuple[float, float]:
        """One epoch; returns the mean loss and the last step size."""
        epoch = len(scores)
        lesson = self._curriculum.lesson(epoch)
        total, seen, rate = 0.0, 0, math.nan
        for step, (inputs, labels) in enumerate(lesson.batches(epoch)):
            if (now := learning_rate(self._config, scores, step / lesson.steps)) != rate:
                self._optimizer.learning_rate = rate = now  # which takes a tenth of a small step
            targets, weights = _targets(labels, self._class_weights)
            loss = lesson.model.train_on_batch(inputs, targets, sample_weight=weights)
            if self._average:
                self._average.step()
            total, seen = total + float(loss) * len(labels), seen + len(labels)
        return total / seen, rate

    def val_logits(self, epoch: int) -> NDArray[np.float32]:
        """Logits of validation, by the average of weights where there is one."""
        lesson = self._curriculum.lesson(epoch)
        if self._average is None:
            return lesson.val_logits()
        with self._average.in_use():
            return lesson.val_logits()

    def weights(self) -> list[NDArray[np.float32]]:
        """The weights as they would be kept now."""
        if self._average is not None:
            return self._average.weights
        return [np.array(w, np.float32) for w in self._network.get_weights()]

    def state(self) -> dict[str, list[NDArray[Any]]]:
        """Everything that an epoch changes."""
        changing = [*self._curriculum.variables(), *self._optimizer.variables]
        state = [load_keras().ops.convert_to_numpy(v) for v in changing]
        return {"state": state, "average": self._average.state() if self._average else []}

    def resume(
        self, checkpoint: Path, origin: str
    ) -> tuple[list[Epoch], list[NDArray[np.float32]]]:
        """Continue from the checkpoint if there is one; the finished epochs, the kept weights."""
        best = self.weights()
        wanted = {**self.state(), "best": best}
        shapes = {name: [array.shape for array in each] for name, each in wanted.items()}
        found = restore(checkpoint, origin, shapes)
        if found is None:
            return [], best
        history, arrays = found
        changing = [*self._curriculum.variables(), *self._optimizer.variables]
        for variable, value in zip(changing, arrays["state"], strict=True):
            variable.assign(value)
        if self._average is not None:
            self._average.restore(arrays["average"])
        return history, arrays["best"]
