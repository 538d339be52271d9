"""The seam where engines are swapped: preprocessed batches in, logits, maps and embeddings out.

A backend knows nothing of files, thresholds or calibration. Tests use a tiny fake of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.gradcam import build_inference_graph


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward pass yields, float32: logits (n,), cams (n, h, w) ≥ 0, embeddings (n, c)."""

    logits: NDArray[np.float32]
    cams: NDArray[np.float32]
    embeddings: NDArray[np.float32]


class Backend(Protocol):
    """An engine with a model loaded."""

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """One forward pass over preprocessed images, float32 (n, size, size, 3)."""


class KerasBackend:
    """The reference: the Keras network itself, on whichever backend Keras runs."""

    def __init__(self, network: Any) -> None:
        self._graph = build_inference_graph(network)

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """One forward pass over preprocessed images, float32 (n, size, size, 3)."""
        out = self._graph.predict_on_batch(batch)
        return Outputs(
            np.asarray(out["logit"], np.float32),
            np.asarray(out["cam"], np.float32),
            np.asarray(out["embedding"], np.float32),
        )
