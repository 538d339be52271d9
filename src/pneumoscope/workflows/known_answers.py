"""What training worked out already and what comes after it needs again.

Comes in: an engine's outputs as they are made, pooled features from the store. Goes out: the same
as a `Backend`, or by record. Knows nothing of labels or thresholds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.backends import Backend, Outputs
from pneumoscope.records import ImageRecord
from pneumoscope.training.features import Extractor
from pneumoscope.training.recipes import Pooled
from pneumoscope.workflows.input_check import Known


class Remembering:
    """An engine that computes no batch twice.

    Args:
        backend: what computes.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[bytes, Outputs] = {}

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The outputs for preprocessed images, float32 (n, size, size, 3)."""
        key = hashlib.sha256(np.ascontiguousarray(batch).data).digest()
        if key not in self._known:
            self._known[key] = self._backend.run(batch)
        return self._known[key]


class EmbeddingBackend:
    """What makes the pooled features as an engine that can tell embeddings alone.

    Args:
        extractor: of pooled features.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Embeddings (n, c) of preprocessed images; logits and maps are 0."""
        rows, count = self._extractor(batch), len(batch)
        return Outputs(np.zeros(count, np.float32), np.zeros((count, 1, 1), np.float32), rows)


def pooled_by_record(pooled: Pooled, records: Sequence[ImageRecord]) -> Known:
    """The features of `records`, which the rows of `pooled` are of, in order."""
    rows = {record.path: row for row, record in enumerate(records)}

    def known(record: ImageRecord) -> NDArray[np.float32] | None:
        row = rows.get(record.path)
        if row is None:
            return None
        found: NDArray[np.float32] = pooled.table.take(np.array([row]), np.array([0]))[0]
        return found

    return known
