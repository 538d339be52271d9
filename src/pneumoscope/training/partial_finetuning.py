"""Train the blocks behind a boundary, from activations that were computed once.

Comes in: activations of train and val on disk, labels, a network from the boundary to logits.
Goes out: a curriculum of one lesson. Knows nothing of images. What is frozen is a function of the
view alone, so its share of every epoch's work is done once per view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import TrainConfig
from pneumoscope.prefetching import ahead
from pneumoscope.training.head_training import LabelledFeatures
from pneumoscope.training.loop import Curriculum, Labels

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
