"""The training loop for any Keras model on any backend, and its checkpoints.

`fit` trains a `PhaseSchedule`: a network, and the phases that give each epoch its model and
batches. It returns the weights of the best or last epoch and the history of all epochs.

A run that was interrupted at any moment continues from its last complete epoch as if it had never
stopped. The batches of an epoch depend on its number alone, and learning-rate schedules are
functions of the scores so far. A checkpoint holds everything else that an epoch changes: weights,
optimiser, the average of weights and the state of every random generator. A checkpoint is one file
without pickle, written completely or not at all. Its `origin` is a digest of all that affects the
training: a damaged checkpoint is ignored, one of another origin stops the run.
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
    RuntimeError,  # raised by `zipfile` for unknown flags
)
"""Exceptions that reading a file of arbitrary content can raise."""

Arrays = Mapping[str, Sequence[NDArray[Any]]]
"""Named lists of arrays: `state` (weights, optimiser, seeds), `best`, `average`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of `history.csv`. `seconds` is wall time; the rest is identical in a resumed run.

    `epoch` counts from 0 in each stage; pages and `best_epoch` count from 1 through all stages.
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
    """Write a checkpoint to a temporary file and rename it, so that the old one stays until then.

    Raises:
        OSError: it can't be written (disk full); the last complete checkpoint is kept.
    """
    text = json.dumps({"origin": origin, "history": [asdict(epoch) for epoch in history]})
    flat = {f"{name}{k}": array for name, each in arrays.items() for k, array in enumerate(each)}
    with atomic_writer(path) as stream:
        np.savez(stream, allow_pickle=False, about=np.array(text), **flat)


def restore(
    path: Path, origin: str, shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Epoch], dict[str, list[NDArray[Any]]]] | None:
    """Read a checkpoint completely before any of it is used.

    A damaged file is ignored with a warning. Training then starts from the beginning and reaches
    the same result.

    Args:
        path: file of the checkpoint.
        origin: the origin it must have.
        shapes: the expected shapes of each named list of arrays.

    Returns:
        The history and the arrays; `None` if there is no usable checkpoint.

    Raises:
        UsageError: it belongs to other data or settings; training would overwrite it.
    """
    try:
        history, arrays = _read(path, origin, shapes)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _LOGGER.warning("%s: checkpoint ignored, training starts again (%s)", path, error)
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
            raise UsageError(
                f"{path}: belongs to other data or settings than the run has now. Undo the change "
                "(config.toml, images, teachers, initial weights) to continue, or delete the file "
                "to train from the start."
            )
        for name, wanted in shapes.items():
            arrays[name] = [saved[f"{name}{k}"] for k in range(len(wanted))]
            for k, (array, shape) in enumerate(zip(arrays[name], wanted, strict=True)):
                if array.shape != tuple(shape):
                    raise ValueError(f"{name}{k} has the shape {array.shape}, wanted {shape}")
    return [Epoch(**row) for row in about["history"]], arrays


Labels = NDArray[np.int64]
Shares = NDArray[np.float32]
"""Class shares (n, 2) of each image; they differ from 0 and 1 where several images are mixed."""
Score = Callable[[Labels, NDArray[np.float64]], float]
"""Labels and probabilities → one number, higher is better (ROC AUC)."""


class TrainingPhase(Protocol):
    """One training phase: the model and the batches of its epochs.

    Attributes:
        model: a Keras model from a batch's input to logits (n, 1); it contains the schedule's
            network.
        steps: batches per epoch.
    """

    model: Any
    steps: int

    def batches(self, epoch: int) -> Iterator[tuple[Any, Labels | Shares]]:
        """Model inputs with labels (0, 1) or class shares; identical on every call for an epoch."""

    def val_logits(self) -> NDArray[np.float32]:
        """Logits (n,) of the validation images, by the network in its current state."""


@dataclass(frozen=True, slots=True)
class PhaseSchedule:
    """Training phases and the epochs at which they follow each other.

    Attributes:
        network: the Keras model whose weights are trained; each phase's model contains it.
        phases: in their order.
        until: for each phase, the epoch at which the next one begins; ignored for the last.
        factors: variable path → factor of the step size; 1 where a path is not listed.
        stage: name of what is trained, for progress bars.
        keep_from: first epoch whose weights may be kept as the best; those before prepare for it.
    """

    network: Any
    phases: Sequence[TrainingPhase]
    until: Sequence[int] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    stage: str = "network"
    keep_from: int = 0

    def phase(self, epoch: int) -> TrainingPhase:
        """The phase of an epoch, counted from 0."""
        return self.phases[sum(epoch >= end for end in self.until[: len(self.phases) - 1])]

    def variables(self) -> list[Any]:
        """Every variable that an epoch may change, each once: weights and random states."""
        found = {id(v): v for v in self.network.variables}
        for phase in self.phases:
            found |= {id(v): v for v in phase.model.variables}
        return list(found.values())

    def trainable(self) -> list[Any]:
        """Every trainable variable, each once: the network's, then those that phases add."""
        found = {id(v): v for v in self.network.trainable_variables}
        for phase in self.phases:
            found |= {id(v): v for v in phase.model.trainable_variables}
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Fitted:
    """The kept weights, in the order of `network.get_weights()`, and the history of all epochs."""

    weights: list[NDArray[np.float32]]
    history: tuple[Epoch, ...]
    best: int


def check_classes(parts: Mapping[str, Labels]) -> None:
    """Check that each split has images of both classes.

    Raises:
        DataError: a class is missing.
    """
    for name, labels in parts.items():
        counts = np.bincount(labels, minlength=2)
        if not counts.all():
            raise DataError(
                f"{name}: found {counts[0]} NORMAL and {counts[1]} PNEUMONIA images that can be "
                "read; wanted both classes in train and in val. Check the data: pneumoscope data "
                "audit DATA"
            )


def class_weights(labels: Labels) -> NDArray[np.float64]:
    """Weight per class, inverse to its frequency, scaled to a mean weight of 1 per image."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray(len(labels) / (2.0 * counts))


EpochsListener = Callable[[Sequence[Epoch], bool], None]
"""Receives all epochs of a stage so far, and whether the last one has just been trained. It is
`False` once, where the stage begins (no epochs) or is resumed (those restored)."""


def ignore_epochs(epochs: Sequence[Epoch], trained: bool) -> None:
    """Default listener: ignore the epochs."""


def fit(  # noqa: PLR0913 - what is trained, how, and who is informed
    schedule: PhaseSchedule,
    labels: Labels,
    val_labels: Labels,
    config: FitConfig,
    score: Score,
    checkpoint: Path,
    origin: str,
    progress: Progress = SILENT,
    on_epochs: EpochsListener = ignore_epochs,
) -> Fitted:
    """Train until `should_stop`, continuing from the checkpoint if there is one.

    Args:
        schedule: the training phases.
        labels: of all training images; the class weights are computed from them.
        val_labels: of the validation images, in the order of `TrainingPhase.val_logits`.
        config: training settings.
        score: ROC AUC; determines the best epoch, schedules and early stopping.
        checkpoint: file written after every epoch.
        origin: digest of all that affects training: data, settings, initial weights.
        progress: receives every epoch.
        on_epochs: called after every epoch, once the checkpoint holds it.

    Raises:
        DataError: a class is missing from either split.
        UsageError: the loss is not finite, because the step size is too large; or the checkpoint
            belongs to other data or settings.
        OSError: the checkpoint can't be written; the last complete one is kept.
    """
    check_classes({"train": labels, "val": val_labels})
    weights = class_weights(labels) if config.class_weights else np.ones(2)
    session = _Session(schedule, config, weights)
    history, best = session.resume(checkpoint, origin)

    def kept_epoch() -> int:
        return best_epoch(config, [e.val_auc for e in history], schedule.keep_from)

    on_epochs(tuple(history), False)
    with progress.task(schedule.stage, config.epochs, "epochs") as task:
        task.advance(len(history))
        while not should_stop(config, scores := [e.val_auc for e in history], schedule.keep_from):
            started = time.monotonic()
            loss, rate = session.train_epoch(scores)
            logits = session.val_logits(len(history))
            if not (math.isfinite(loss) and np.isfinite(logits).all()):
                raise UsageError(
                    f"fit.learning_rate: at {rate:g} the loss of epoch {len(history) + 1} is not "
                    "finite; wanted a step size at which training converges. Give a smaller one."
                )
            auc = float(score(val_labels, sigmoid(logits)))
            accuracy = float(np.mean((logits >= 0) == val_labels))
            val_loss = _log_loss(val_labels, logits, weights)
            seconds = time.monotonic() - started
            history.append(Epoch(len(history), rate, loss, val_loss, auc, seconds, accuracy))
            if kept_epoch() == len(history) - 1:
                best = session.weights()
            save(checkpoint, origin, history, {**session.state(), "best": best})
            on_epochs(tuple(history), True)
            _LOGGER.debug("%s", history[-1])
            task.advance(1, f"validation AUC {auc:.4f}")
    return Fitted(best, tuple(history), kept_epoch())


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities, float64, computed without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _log_loss(labels: Labels, logits: NDArray[np.float32], weights: NDArray[np.float64]) -> float:
    """Mean class-weighted binary cross-entropy, the loss that training minimises."""
    signed = np.where(labels == 1, -logits, logits).astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, signed) * weights[labels]))


def _targets(labels: Labels | Shares, weights: Shares) -> tuple[Shares, Shares]:
    """Targets of the loss (n, 1) and image weights (n,).

    The class-weighted cross-entropy of class shares equals that of a single target between 0 and 1
    with a single weight.
    """
    shares = np.eye(2, dtype=np.float32)[labels] if labels.ndim == 1 else labels
    parts = shares * weights
    total = parts.sum(1)
    return parts[:, 1:] / total[:, None], total


class _Session:
    """The network, its optimiser and the average of its weights."""

    def __init__(
        self, schedule: PhaseSchedule, config: FitConfig, class_weights: NDArray[np.float64]
    ) -> None:
        keras = load_keras()
        self._schedule = schedule
        self._network = schedule.network
        self._config = config
        self._class_weights = class_weights.astype(np.float32)
        self._optimizer = build_optimizer(schedule.trainable(), config, schedule.factors)
        for phase in schedule.phases:
            loss = keras.losses.BinaryCrossentropy(
                from_logits=True, label_smoothing=config.label_smoothing
            )
            phase.model.compile(optimizer=self._optimizer, loss=loss, auto_scale_loss=False)
        self._average = WeightAverage(self._network, config.ema) if config.ema else None

    def train_epoch(self, scores: Sequence[float]) -> tuple[float, float]:
        """Train one epoch; returns the mean loss and the last step size."""
        epoch = len(scores)
        phase = self._schedule.phase(epoch)
        total, seen, rate = 0.0, 0, math.nan
        for step, (inputs, labels) in enumerate(phase.batches(epoch)):
            if (now := learning_rate(self._config, scores, step / phase.steps)) != rate:
                self._optimizer.learning_rate = rate = (
                    now  # assigning takes a tenth of a small step
                )
            targets, weights = _targets(labels, self._class_weights)
            loss = phase.model.train_on_batch(inputs, targets, sample_weight=weights)
            if self._average:
                self._average.step()
            total, seen = total + float(loss) * len(labels), seen + len(labels)
        return total / seen, rate

    def val_logits(self, epoch: int) -> NDArray[np.float32]:
        """Validation logits, by the averaged weights where there is an average."""
        phase = self._schedule.phase(epoch)
        if self._average is None:
            return phase.val_logits()
        with self._average.in_use():
            return phase.val_logits()

    def weights(self) -> list[NDArray[np.float32]]:
        """The weights that would be kept now."""
        if self._average is not None:
            return self._average.weights
        return [np.array(w, np.float32) for w in self._network.get_weights()]

    def state(self) -> dict[str, list[NDArray[Any]]]:
        """Everything that an epoch changes."""
        changing = [*self._schedule.variables(), *self._optimizer.variables]
        state = [load_keras().ops.convert_to_numpy(v) for v in changing]
        return {"state": state, "average": self._average.state() if self._average else []}

    def resume(
        self, checkpoint: Path, origin: str
    ) -> tuple[list[Epoch], list[NDArray[np.float32]]]:
        """Continue from the checkpoint if there is one; returns past epochs and kept weights."""
        best = self.weights()
        wanted = {**self.state(), "best": best}
        shapes = {name: [array.shape for array in each] for name, each in wanted.items()}
        found = restore(checkpoint, origin, shapes)
        if found is None:
            return [], best
        history, arrays = found
        changing = [*self._schedule.variables(), *self._optimizer.variables]
        for variable, value in zip(changing, arrays["state"], strict=True):
            variable.assign(value)
        if self._average is not None:
            self._average.restore(arrays["average"])
        return history, arrays["best"]
