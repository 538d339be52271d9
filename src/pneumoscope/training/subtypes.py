"""The kind of pneumonia as a second question, asked in training alone.

Comes in: the subtype of each image, as the data set names it. Goes out: a code per image, and a
layer that adds the second question's loss to the first's. A network that must also tell bacterial
from viral can't rest on what both have in common with neither; the answer to the second question
is thrown away afterwards. Caruana, "Multitask Learning", Machine Learning 28, 1997.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.records import ImageRecord
from pneumoscope.training.runtime import load_keras

UNKNOWN = -1
"""The code of an image whose kind is not asked about: it has none, or none is known."""


def subtype_codes(records: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """Codes (n,), 0 to the number of kinds less one in the order of their names, or `UNKNOWN`."""
    names = sorted({record.subtype for record in records} - {""})
    codes = {name: number for number, name in enumerate(names)}
    return np.array([codes.get(record.subtype, UNKNOWN) for record in records], np.int64)


def balanced_order(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.intp]:
    """Rows (n,) in random order, in which each known kind has an equal part of the known.

    Of a rare kind some come more than once, of a frequent one some not at all, others each time.
    Images of no known kind come once each.
    """
    known = np.flatnonzero(codes != UNKNOWN)
    kinds = np.unique(codes[known])
    if not len(kinds):
        return generator.permutation(len(codes))
    parts = np.array_split(known, len(kinds))
    chosen = [
        np.resize(generator.permutation(np.flatnonzero(codes == kind)), len(part))
        for kind, part in zip(kinds, parts, strict=True)
    ]
    return generator.permutation(np.concatenate([np.flatnonzero(codes == UNKNOWN), *chosen]))


def build_subtype_head(kinds: int, weight: float, seed: int) -> Any:
    """A Keras layer: [logits (n, 1), pooled features (n, c), codes (n, 1)] → the logits, unchanged.

    While training it adds `weight` times the mean cross-entropy over the images of a known kind.
    """
    return _layer_class()(kinds, weight, seed, name="kind", dtype="float32")


@functools.cache
def _layer_class() -> Any:
    """The layer's class, made on first use, since Keras is imported late."""
    keras = load_keras()
    ops = keras.ops

    class SubtypeHead(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, kinds: int, weight: float, seed: int, **settings: Any) -> None:
            super().__init__(**settings)
            initial = keras.initializers.GlorotUniform(seed=seed)
            self._dense = keras.layers.Dense(kinds, kernel_initializer=initial, dtype="float32")
            self._weight = weight

        def build(self, shapes: Any) -> None:
            self._dense.build(shapes[1])

        def call(self, inputs: Any, training: Any = None) -> Any:
            logits, pooled, codes = inputs
            if training:
                codes = ops.cast(codes[:, 0], "int32")
                known = ops.cast(codes >= 0, "float32")
                each = keras.losses.sparse_categorical_crossentropy(
                    ops.maximum(codes, 0), self._dense(pooled), from_logits=True
                )
                self.add_loss(self._weight * ops.mean(each * known))
            return logits

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    return SubtypeHead
