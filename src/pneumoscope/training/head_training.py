"""Train the head on cached features; what comes out fits the raw pooled features.

Comes in: features of train and val, labels, `FitConfig`. Goes out: the weights of the best epoch
and what every epoch scored. Knows nothing of images, files of data, thresholds or calibration.

The features' scales differ a thousandfold from channel to channel. So they are standardised before
the head sees them, and dropout then hides a feature by setting it to its mean; afterwards the
standardisation is folded into the hidden layer, so the network that comes out is the mission's,
layer by layer, and its input the raw pooled features. Plain Adam (Kingma & Ba, ICLR 2015) on raw
features of very different scales takes many times the epochs.

Train the blocks behind a boundary, from activations that were computed once.

Comes in: activations of train and val on disk, labels, a network from the boundary to logits.
Goes out: a curriculum of one lesson. Knows nothing of images. What is frozen is a function of the
view alone, so its share of every epoch's work is done once per view.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import FitConfig, TrainConfig
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.prefetching import ahead
from pneumoscope.progress import SILENT, Progress
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.loop import (
    Curriculum,
    Epoch,
    EpochsListener,
    Labels,
    Score,
    check_classes,
    fit,
    ignore_epochs,
)
from pneumoscope.training.network import HeadWeights, build_head

_CHUNK_ROWS = 16_384
"""Features gathered at once (64 MiB): keeps memory flat for data sets of any size."""

_HELD_ROWS = 32_768
"""Features that are held in memory all the time (64 MiB as they are stored), if there are no more,
instead of being looked up in the store in every epoch."""


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


def train_head(  # noqa: PLR0913 - as `loop.fit`
    train: LabelledFeatures,
    val: LabelledFeatures,
    architecture: Architecture,
    config: FitConfig,
    seed: int,
    score: Score,
    checkpoint: Path,
    progress: Progress = SILENT,
    on_epochs: EpochsListener = ignore_epochs,
) -> TrainedHead:
    """Train until `should_stop`, from the checkpoint if there is one.

    Raises:
        DataError, UsageError, OSError: as `loop.fit` does.
    """
    check_classes({"train": train.labels, "val": val.labels})
    head = build_head(architecture, seed, train.table.width)
    lesson = _HeadLesson(head, train, val, config.batch_size, seed)
    fitted = fit(
        Curriculum(lesson.model, [lesson], stage="head"),
        train.labels,
        val.labels,
        config,
        score,
        checkpoint,
        _origin((train, val), architecture, config, seed),
        progress,
        on_epochs,
    )
    weights = _folded(fitted.weights, lesson.centre, lesson.scale)
    return TrainedHead(weights, fitted.history, fitted.best)


class _HeadLesson:
    """Every epoch the same: all training images in a new order, each in one of its views."""

    def __init__(
        self, model: Any, train: LabelledFeatures, val: LabelledFeatures, batch: int, seed: int
    ) -> None:
        self.model = model
        self._train, self._batch, self._seed = train, batch, seed
        self.steps = -(-len(train.labels) // batch)
        self._held = _held(train.table)
        self.centre, self.scale = _standardisation(train.table)
        self._val = (_plain_views(val.table) - self.centre) / self.scale

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[Any], Labels]]:
        table, labels = self._train.table, self._train.labels
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(labels))
        views = generator.integers(0, table.views, len(order))
        for start in range(0, len(order), _CHUNK_ROWS):
            rows = order[start : start + _CHUNK_ROWS]
            chosen = views[start : start + len(rows)]
            taken = table.take(rows, chosen) if self._held is None else self._held[rows, chosen]
            features = (taken - self.centre) / self.scale
            for first in range(0, len(rows), self._batch):
                here = slice(first, first + self._batch)
                yield features[here], labels[rows[here]]

    def val_logits(self) -> NDArray[np.float32]:
        starts = range(0, len(self._val), _CHUNK_ROWS)
        # `predict` would set up a reading of data in every epoch, which takes longer than this.
        parts = [self.model.predict_on_batch(self._val[s : s + _CHUNK_ROWS]) for s in starts]
        return np.concatenate([np.asarray(part, np.float32)[:, 0] for part in parts])


def _origin(
    parts: tuple[LabelledFeatures, ...], architecture: Architecture, config: FitConfig, seed: int
) -> str:
    """SHA-256 over all that decides how training goes: features, labels, settings."""
    settings = [asdict(architecture), asdict(config), seed]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        digest.update(part.table.fingerprint().encode())
        digest.update(part.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _standardisation(table: FeatureTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation (c,) of the un-augmented training features.

    The deviation has a floor: channels that hardly vary would else enter as amplified rounding.
    """
    count = len(table.keys)
    total, squares = np.zeros(table.width), np.zeros(table.width)
    for start in range(0, count, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, count))
        chunk = table.take(rows, np.zeros_like(rows)).astype(np.float64)
        total, squares = total + chunk.sum(0), squares + (chunk**2).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    floor = max(0.05 * float(np.median(deviation)), 1e-6)
    return mean.astype(np.float32), np.maximum(deviation, floor).astype(np.float32)


def _held(table: FeatureTable) -> NDArray[Any] | None:
    """All rows (images, views, c), or `None` where they are too many."""
    shape = len(table.keys), table.views
    if shape[0] * shape[1] > _HELD_ROWS:
        return None
    rows, views = (each.ravel() for each in np.indices(shape))
    return table.take(rows, views).reshape(*shape, -1)


def _plain_views(table: FeatureTable) -> NDArray[np.float32]:
    rows = np.arange(len(table.keys))
    return np.asarray(table.take(rows, np.zeros_like(rows)), np.float32)


def _folded(
    weights: list[NDArray[np.float32]], centre: NDArray[np.float32], scale: NDArray[np.float32]
) -> HeadWeights:
    """Head weights for raw features: W' = W / scale, b' = b - (centre / scale) W."""
    hidden, bias, output, output_bias = (array.astype(np.float64) for array in weights)
    folded = hidden / scale[:, None]
    folded_bias = bias - centre @ folded
    parts = (folded, folded_bias, output, output_bias)
    return HeadWeights(*(part.astype(np.float32) for part in parts))


_VAL_BATCH = 64


def build_tail_curriculum(
    network: Any,
    train: LabelledFeatures,
    val: LabelledFeatures,
    config: TrainConfig,
    factors: Mapping[str, float],
) -> Curriculum:
    """All epochs alike: every training image once, in one of its views."""
    return Curriculum(network, [_TailLesson(network, train, val, config)], factors=factors)


class _TailLesson:
    """Activations in a new order each epoch, each image in one of its views."""

    def __init__(
        self, network: Any, train: LabelledFeatures, val: LabelledFeatures, config: TrainConfig
    ) -> None:
        self.model = network
        self._train, self._val = train, val
        self._batch, self._seed = config.fit.batch_size, config.seed
        self.steps = max(len(train.labels) // self._batch, 1)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[Any], Labels]]:
        """Whole batches only, so that one compiled step does for all."""
        table, labels = self._train.table, self._train.labels
        generator = np.random.default_rng([self._seed, epoch])
        order = np.resize(generator.permutation(len(labels)), (self.steps, self._batch))
        views = generator.integers(0, table.views, order.shape)

        def make() -> Iterator[tuple[NDArray[Any], Labels]]:
            for rows, chosen in zip(order, views, strict=True):
                yield table.take(rows, chosen), labels[rows]

        return ahead(make())

    def val_logits(self) -> NDArray[np.float32]:
        """By batches of one shape; the last one is filled up with the first images."""
        count = len(self._val.labels)
        logits = np.empty(count, np.float32)
        for start in range(0, count, _VAL_BATCH):
            rows = np.arange(start, start + _VAL_BATCH) % count
            out = self.model.predict_on_batch(self._val.table.take(rows, np.zeros_like(rows)))
            logits[start : start + _VAL_BATCH] = np.asarray(out, np.float32)[: count - start, 0]
        return logits
