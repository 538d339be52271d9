"""The frozen backbone as Keras runs it: the `Extractor` of this machine.

Comes in: preprocessed batches. Goes out: pooled features. Another engine is another class with the
same two members; its fingerprint keeps the engines' features apart in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.training.network import build_feature_model, weights_digest
from pneumoscope.training.runtime import describe_runtime


class KerasExtractor:
    """Pooled backbone features in float32, on whichever backend Keras runs."""

    def __init__(self, backbone: Any) -> None:
        self._model = build_feature_model(backbone)
        self._fingerprint = f"{describe_runtime()} f32 {weights_digest(backbone)}"

    @property
    def fingerprint(self) -> str:
        """Keras, backend, their versions, precision and the weights' digest."""
        return self._fingerprint

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pooled features, float32 (n, 1024), of `batch`, float32 (n, size, size, 3)."""
        return np.asarray(self._model.predict_on_batch(batch), np.float32)
