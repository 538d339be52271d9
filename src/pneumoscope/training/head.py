"""Training the head on cached features: epochs of seconds, each one saved.

Comes in: features of the training and validation images, labels, the fit config. Goes out: the
weights of the best epoch and the history. Knows nothing of images, backbones or bundles.

Features are standardised before the head sees them, and dropout then hides a feature by setting
it to its mean; afterwards the standardisation is folded into the hidden layer, so the network that
comes out is the mission's, layer by layer, and its input the raw pooled features. Plain Adam
(Kingma & Ba, ICLR 2015) on raw features of very different scales takes many times the epochs.

Resuming: every epoch's order and views are drawn from (seed, epoch) alone, schedules are functions
of the scores so far, and a checkpoint holds weights, optimiser and dropout state. So a run that
was killed at any moment continues as if it had not been. A checkpoint that is damaged, or of other
features or settings, is left aside: the head then trains from its start, to the same end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import FitConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.storage import atomic_writer
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.network import BACKBONE_WIDTH, Architecture, HeadWeights, build_head
from pneumoscope.training.runtime import load_keras
from pneumoscope.training.schedules import best_epoch, learning_rate, should_stop

_LOGGER = logging.getLogger(__name__)

_CHUNK_ROWS = 16_384
"""Features gathered at once (64 MiB): keeps memory flat for data sets of any size."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of `history.csv`. `seconds` is wall time, the rest is the same in a resumed run."""

    epoch: int
    learning_rate: float
    loss: float
    val_loss: float
    val_auc: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Features of one split and the label (0 or 1) of each of its kept images."""

    table: FeatureTable
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """The best epoch's weights, for raw pooled features, and what every epoch scored."""

    weights: HeadWeights
    history: tuple[Epoch, ...]
    best: int


Score = Callable[[NDArray[np.int64], NDArray[np.float64]], float]
"""Labels and probabilities to one number, higher is better (ROC AUC)."""


def train_head(
    train: LabelledFeatures,
    val: LabelledFeatures,
    architecture: Architecture,
    config: FitConfig,
    seed: int,
    score: Score,
    checkpoint: Path,
    progress: Progress = SILENT,
) -> TrainedHead:
    """Train until `should_stop`, from the checkpoint if there is one.

    Raises:
        DataError: a class is missing from either split.
        UsageError: the loss is no number any more: the step size is too large.
        OSError: the checkpoint can't be written; the last whole one is still there.
    """
    for name, part in (("train", train), ("val", val)):
        counts = np.bincount(part.labels, minlength=2)
        if not counts.all():
            raise DataError(
                f"{name}: found {counts[0]} NORMAL and {counts[1]} PNEUMONIA images that can be "
                "read; wanted both classes in train and in val. Look: pneumoscope data audit DATA"
            )
    centre, scale = _standardisation(train.table)
    val_features = (_plain_views(val.table) - centre) / scale
    origin = _origin((train, val), architecture, config, seed)
    session = _Session(build_head(architecture, seed), config, checkpoint, origin)
    history = session.restore()
    weights = _class_weights(train.labels) if config.class_weights else np.ones(2)
    with progress.task("head", config.epochs, "epochs") as task:
        task.advance(len(history))
        while not should_stop(config, scores := [e.val_auc for e in history]):
            started = time.monotonic()
            rate = learning_rate(config, scores)
            loss = session.run_epoch(train, (centre, scale), weights, rate, seed, len(history))
            logits = session.logits(val_features)
            if not (math.isfinite(loss) and np.isfinite(logits).all()):
                raise UsageError(
                    f"fit.learning_rate: at {rate:g} the loss of epoch {len(history) + 1} is no "
                    "finite number; wanted steps that converge. Give a smaller one."
                )
            auc = float(score(val.labels, _sigmoid(logits)))
            val_loss = _log_loss(val.labels, logits, weights)
            seconds = time.monotonic() - started
            history.append(Epoch(len(history), rate, loss, val_loss, auc, seconds))
            is_best = best_epoch(config, [e.val_auc for e in history]) == len(history) - 1
            session.save(history, is_best)
            _LOGGER.debug("%s", history[-1])
            task.advance(1, f"validation AUC {auc:.4f}")
    best = best_epoch(config, [e.val_auc for e in history])
    return TrainedHead(_folded(session.best, centre, scale), tuple(history), best)


def _origin(
    parts: tuple[LabelledFeatures, ...], architecture: Architecture, config: FitConfig, seed: int
) -> str:
    """SHA-256 over all that decides how training goes: features, labels, settings."""
    settings = [asdict(architecture), asdict(config), seed]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        digest.update(str(part.table.store.folder.name).encode())
        digest.update(part.labels.astype("<i8").tobytes())
        for row in part.table.keys:
            digest.update(b"".join(row))
    return digest.hexdigest()


def _standardisation(table: FeatureTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation (1024,) of the un-augmented training features.

    The deviation has a floor: channels that hardly vary would else enter as amplified rounding.
    """
    count = len(table.keys)
    total, squares = np.zeros(BACKBONE_WIDTH), np.zeros(BACKBONE_WIDTH)
    for start in range(0, count, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, count))
        chunk = table.take(rows, np.zeros_like(rows)).astype(np.float64)
        total, squares = total + chunk.sum(0), squares + (chunk**2).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    floor = max(0.05 * float(np.median(deviation)), 1e-6)
    return mean.astype(np.float32), np.maximum(deviation, floor).astype(np.float32)


def _plain_views(table: FeatureTable) -> NDArray[np.float32]:
    rows = np.arange(len(table.keys))
    return table.take(rows, np.zeros_like(rows))


def _class_weights(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight per class, inverse to its frequency, so that the mean weight of an image is 1."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray(len(labels) / (2.0 * counts))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _log_loss(
    labels: NDArray[np.int64], logits: NDArray[np.float32], weights: NDArray[np.float64]
) -> float:
    """Mean of the class-weighted binary cross-entropy, the loss that training minimises."""
    signed = np.where(labels == 1, -logits, logits).astype(np.float64)
    return float(np.mean(np.logaddexp(0.0, signed) * weights[labels]))


def _folded(
    weights: list[NDArray[np.float32]], centre: NDArray[np.float32], scale: NDArray[np.float32]
) -> HeadWeights:
    """Head weights for raw features: W' = W / scale, b' = b - (centre / scale) W."""
    hidden, bias, output, output_bias = (array.astype(np.float64) for array in weights)
    folded = hidden / scale[:, None]
    folded_bias = bias - centre @ folded
    parts = (folded, folded_bias, output, output_bias)
    return HeadWeights(*(part.astype(np.float32) for part in parts))


class _Session:
    """The Keras head, its optimiser and their checkpoint."""

    def __init__(self, head: Any, config: FitConfig, checkpoint: Path, origin: str) -> None:
        keras = load_keras()
        self._head = head
        self._batch = config.batch_size
        self._checkpoint = checkpoint
        self._origin = origin
        self._optimizer = keras.optimizers.Adam(config.learning_rate)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        head.compile(optimizer=self._optimizer, loss=loss)
        self._optimizer.build(head.trainable_variables)
        self.best: list[NDArray[np.float32]] = self._weights()

    def _weights(self) -> list[NDArray[np.float32]]:
        return [np.asarray(array, np.float32) for array in self._head.get_weights()]

    def _state(self) -> list[Any]:
        """Everything that an epoch changes: weights, dropout's seed state, optimiser."""
        return [*self._head.variables, *self._optimizer.variables]

    def run_epoch(
        self,
        train: LabelledFeatures,
        standardisation: tuple[NDArray[np.float32], NDArray[np.float32]],
        class_weights: NDArray[np.float64],
        rate: float,
        seed: int,
        epoch: int,
    ) -> float:
        """One pass over the training images, each in one of its views; returns the mean loss."""
        centre, scale = standardisation
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(train.labels))
        views = generator.integers(0, train.table.views, len(order))
        self._optimizer.learning_rate = rate
        total = 0.0
        for start in range(0, len(order), _CHUNK_ROWS):
            rows = order[start : start + _CHUNK_ROWS]
            features = (train.table.take(rows, views[start : start + len(rows)]) - centre) / scale
            labels = train.labels[rows]
            fitted = self._head.fit(
                features,
                labels.astype(np.float32)[:, None],
                sample_weight=class_weights[labels].astype(np.float32),
                batch_size=self._batch,
                shuffle=False,
                verbose=0,
            )
            total += float(fitted.history["loss"][-1]) * len(rows)
        return total / len(order)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The head's output, (n,), for standardised features."""
        out = self._head.predict(features, batch_size=4096, verbose=0)
        return np.asarray(out, np.float32)[:, 0]

    def save(self, history: list[Epoch], is_best: bool) -> None:
        """Write the checkpoint whole or leave the one before it."""
        if is_best:
            self.best = self._weights()
        arrays = {f"state{k}": np.asarray(v) for k, v in enumerate(self._state())}
        arrays |= {f"best{k}": array for k, array in enumerate(self.best)}
        text = json.dumps({"origin": self._origin, "history": [asdict(e) for e in history]})
        with atomic_writer(self._checkpoint) as stream:
            np.savez(stream, allow_pickle=False, about=np.array(text), **arrays)

    def restore(self) -> list[Epoch]:
        """Continue from the checkpoint if there is one; returns the finished epochs."""
        try:
            arrays, history = self._read_checkpoint()
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            _LOGGER.warning("%s: left aside, training begins anew (%s)", self._checkpoint, error)
            return []
        for k, variable in enumerate(self._state()):
            variable.assign(arrays[f"state{k}"])
        self.best = [arrays[f"best{k}"] for k in range(len(self.best))]
        _LOGGER.info("continuing after epoch %d of %s", len(history), self._checkpoint)
        return history

    def _read_checkpoint(self) -> tuple[dict[str, NDArray[Any]], list[Epoch]]:
        """All of the checkpoint, read and compared before any of it is used."""
        with (
            self._checkpoint.open("rb") as stream,
            np.load(stream, allow_pickle=False) as saved,
        ):
            about = json.loads(str(saved["about"]))
            if about["origin"] != self._origin:
                raise ValueError("it is of other features or settings")
            arrays = {name: saved[name] for name in saved.files}
        wanted = {f"state{k}": tuple(v.shape) for k, v in enumerate(self._state())}
        wanted |= {f"best{k}": array.shape for k, array in enumerate(self.best)}
        for name, shape in wanted.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has the shape {arrays[name].shape}")
        return arrays, [Epoch(**row) for row in about["history"]]
