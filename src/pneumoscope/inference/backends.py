"""The seam where engines are swapped: preprocessed batches in, logits, maps and embeddings out.

A backend knows nothing of files, thresholds or calibration. Tests use a tiny fake of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.gradcam import build_inference_graph


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model says of a batch, float32: logits (n,), cams (n, h, w) ≥ 0, embeddings (n, c)."""

    logits: NDArray[np.float32]
    cams: NDArray[np.float32]
    embeddings: NDArray[np.float32]


class Backend(Protocol):
    """An engine with a model loaded."""

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The model's outputs for preprocessed images, float32 (n, size, size, 3).

        May be called in several threads at once.
        """


class KerasBackend:
    """The reference: the Keras networks themselves, on whichever backend Keras runs.

    Args:
        networks: one network, or several of the same architecture whose probabilities are averaged.
        flip: run every image's left-right mirror image as well, and average over both.
    """

    def __init__(self, networks: Any | Sequence[Any], *, flip: bool = False) -> None:
        members = networks if isinstance(networks, Sequence) else (networks,)
        self._graphs = [build_inference_graph(network) for network in members]
        self._flip = flip
        self._turn = threading.Lock()

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Each network over preprocessed images, float32 (n, size, size, 3), taken together.

        Of several passes (networks, or flip) the logits are those of the mean probability, the
        cams the mean of all maps, laid over the image as it was given. The embeddings are those of
        the first network alone, un-flipped: networks don't share their feature spaces.
        """
        with self._turn:
            passes = [_forward(graph, batch) for graph in self._graphs]
            if self._flip:
                mirrored = np.ascontiguousarray(batch[:, :, ::-1])
                for graph in self._graphs:
                    out = _forward(graph, mirrored)
                    passes.append(Outputs(out.logits, out.cams[:, :, ::-1], out.embeddings))
        if len(passes) == 1:
            return passes[0]
        return Outputs(
            logit_of_mean(np.stack([out.logits for out in passes])),
            np.mean([out.cams for out in passes], axis=0, dtype=np.float32),
            passes[0].embeddings,
        )


def logit_of_mean(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logit of the mean probability over the first axis: logits (m, n) → (n,).

    Worked out in float64 without forming the probabilities, of which float64 holds none between
    1 - 1e-16 and 1. NaN where any of the logits is no finite number.
    """
    each = logits.astype(np.float64)
    finite = np.isfinite(each).all(axis=0)
    each = np.where(finite, each, 0.0)
    log_p = np.logaddexp.reduce(-np.logaddexp(0.0, -each), axis=0)
    log_q = np.logaddexp.reduce(-np.logaddexp(0.0, each), axis=0)
    return np.where(finite, log_p - log_q, np.nan).astype(np.float32)


def _forward(graph: Any, batch: NDArray[np.float32]) -> Outputs:
    out = graph.predict_on_batch(batch)
    return Outputs(
        np.asarray(out["logit"], np.float32),
        np.asarray(out["cam"], np.float32),
        np.asarray(out["embedding"], np.float32),
    )
