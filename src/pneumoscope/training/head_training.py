"""Training on cached features: the head alone, or the last blocks of the backbone with the head.

`train_head` fits the head on pooled features. The scales of the features differ a thousandfold
between channels, so they are standardised first, and dropout then replaces a feature by its mean.
After training the standardisation is folded into the hidden layer, so the head takes raw pooled
features and the network has exactly the documented layers. Plain Adam (Kingma & Ba, ICLR 2015) on
raw features of such different scales needs many times the epochs.

`build_finetuning_schedule` trains the layers behind a boundary from cached activations. The frozen
part depends on the view alone, so it is computed once per view and not in every epoch.
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
from pneumoscope.prefetching import prefetched
from pneumoscope.progress import SILENT, Progress
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.loop import (
    Epoch,
    EpochsListener,
    Labels,
    PhaseSchedule,
    Score,
    check_classes,
    fit,
    ignore_epochs,
)
from pneumoscope.training.network import HeadWeights, build_head

_CHUNK_ROWS = 16_384
"""Features read at once (64 MiB); limits memory for data sets of any size."""

_HELD_ROWS = 32_768
"""Up to this many features (64 MiB as stored) are held in memory instead of being read from the
store in every epoch."""

_VAL_BATCH = 64


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Features of one split, and the label (0 or 1) of each of its readable images."""

    table: FeatureTable
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """Weights of the best epoch, for raw pooled features, and the history of all epochs."""

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
    """Train the head until `should_stop`, continuing from the checkpoint if there is one.

    Args:
        train: features and labels of the training images.
        val: features and labels of the validation images.
        architecture: of the network whose head is trained.
        config: training settings.
        seed: seed of initialisation, order and views.
        score: labels and probabilities → ROC AUC.
        checkpoint: file written after every epoch.
        progress: receives every epoch.
        on_epochs: called after every epoch, once the checkpoint holds it.

    Raises:
        DataError, UsageError, OSError: as in `loop.fit`.
    """
    check_classes({"train": train.labels, "val": val.labels})
    head = build_head(architecture, seed, train.table.width)
    phase = _HeadPhase(head, train, val, config.batch_size, seed)
    fitted = fit(
        PhaseSchedule(phase.model, [phase], stage="head"),
        train.labels,
        val.labels,
        config,
        score,
        checkpoint,
        _origin((train, val), architecture, config, seed),
        progress,
        on_epochs,
    )
    weights = _folded(fitted.weights, phase.centre, phase.scale)
    return TrainedHead(weights, fitted.history, fitted.best)


class _HeadPhase:
    """All epochs alike: every training image in a new order, each in one of its views."""

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
        # `predict` would set up a data pipeline in every epoch, which takes longer than this.
        parts = [self.model.predict_on_batch(self._val[s : s + _CHUNK_ROWS]) for s in starts]
        return np.concatenate([np.asarray(part, np.float32)[:, 0] for part in parts])


def _origin(
    parts: tuple[LabelledFeatures, ...], architecture: Architecture, config: FitConfig, seed: int
) -> str:
    """SHA-256 over all that affects training: features, labels, settings."""
    settings = [asdict(architecture), asdict(config), seed]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        digest.update(part.table.fingerprint().encode())
        digest.update(part.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _standardisation(table: FeatureTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (c,) of the un-augmented training features.

    The deviation has a floor, so that channels that hardly vary don't become amplified rounding.
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
    """All rows (images, views, c); `None` where there are too many."""
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


def build_finetuning_schedule(
    network: Any,
    train: LabelledFeatures,
    val: LabelledFeatures,
    config: TrainConfig,
    factors: Mapping[str, float],
) -> PhaseSchedule:
    """A schedule of one phase: every epoch shows each training image once, in one of its views."""
    return PhaseSchedule(network, [_FinetuningPhase(network, train, val, config)], factors=factors)


class _FinetuningPhase:
    """Activations in a new order each epoch, each image in one of its views."""

    def __init__(
        self, network: Any, train: LabelledFeatures, val: LabelledFeatures, config: TrainConfig
    ) -> None:
        self.model = network
        self._train, self._val = train, val
        self._batch, self._seed = config.fit.batch_size, config.seed
        self.steps = max(len(train.labels) // self._batch, 1)

    def batches(self, epoch: int) -> Iterator[tuple[NDArray[Any], Labels]]:
        """Full batches only, so that one compiled step serves all."""
        table, labels = self._train.table, self._train.labels
        generator = np.random.default_rng([self._seed, epoch])
        order = np.resize(generator.permutation(len(labels)), (self.steps, self._batch))
        views = generator.integers(0, table.views, order.shape)

        def make() -> Iterator[tuple[NDArray[Any], Labels]]:
            for rows, chosen in zip(order, views, strict=True):
                yield table.take(rows, chosen), labels[rows]

        return prefetched(make())

    def val_logits(self) -> NDArray[np.float32]:
        """Computed in batches of one shape; the last batch is padded with the first images."""
        count = len(self._val.labels)
        logits = np.empty(count, np.float32)
        for start in range(0, count, _VAL_BATCH):
            rows = np.arange(start, start + _VAL_BATCH) % count
            out = self.model.predict_on_batch(self._val.table.take(rows, np.zeros_like(rows)))
            logits[start : start + _VAL_BATCH] = np.asarray(out, np.float32)[: count - start, 0]
        return logits
