"""Auxiliary subtype head: bacterial versus viral pneumonia as a second task in training.

`subtype_codes` gives each image a code for its subtype. The layer of `build_subtype_head` adds the
loss of the second task. A network that must separate bacterial from viral pneumonia can't rest on
features that both subtypes share for other reasons than disease. The head is discarded after
training. Caruana, "Multitask Learning", Machine Learning 28, 1997.
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
"""Code of an image without a subtype, or whose subtype is not known."""


def subtype_codes(records: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """Codes (n,), numbered from 0 in the order of the subtypes' names, or `UNKNOWN`."""
    names = sorted({record.subtype for record in records} - {""})
    codes = {name: number for number, name in enumerate(names)}
    return np.array([codes.get(record.subtype, UNKNOWN) for record in records], np.int64)


def balanced_order(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.intp]:
    """Rows (n,) in random order, balanced so that each subtype has an equal share.

    Rare subtypes are repeated; of frequent ones a new random part is left out each time. Images
    without a subtype appear once each.
    """
    known = np.flatnonzero(codes != UNKNOWN)
    subtypes = np.unique(codes[known])
    if not len(subtypes):
        return generator.permutation(len(codes))
    parts = np.array_split(known, len(subtypes))
    chosen = [
        np.resize(generator.permutation(np.flatnonzero(codes == subtype)), len(part))
        for subtype, part in zip(subtypes, parts, strict=True)
    ]
    return generator.permutation(np.concatenate([np.flatnonzero(codes == UNKNOWN), *chosen]))


def build_subtype_head(subtypes: int, weight: float, seed: int) -> Any:
    """A Keras layer: [logits (n, 1), pooled features (n, c), codes (n, 1)] → the logits, unchanged.

    In training it adds `weight` times the cross-entropy of the subtype, averaged over the batch;
    images without a subtype contribute 0.
    """
    return _layer_class()(subtypes, weight, seed, name="subtype", dtype="float32")


@functools.cache
def _layer_class() -> Any:
    """The layer's class, made on first use because Keras is imported late."""
    keras = load_keras()
    ops = keras.ops

    class SubtypeHead(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, subtypes: int, weight: float, seed: int, **settings: Any) -> None:
            super().__init__(**settings)
            initial = keras.initializers.GlorotUniform(seed=seed)
            self._dense = keras.layers.Dense(subtypes, kernel_initializer=initial, dtype="float32")
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
