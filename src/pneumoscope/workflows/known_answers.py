"""What training worked out already and what comes after it needs again.

Comes in: pooled features from the store, answers. Goes out: what they hold, by record or as a
`Backend`. Knows nothing of labels or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pneumoscope.inference.backends import Outputs
from pneumoscope.records import ImageRecord
from pneumoscope.training.features import Extractor
from pneumoscope.training.recipes import Pooled
from pneumoscope.workflows.answering import Answered
from pneumoscope.workflows.input_check import Glimpse, Known


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

    def known(record: ImageRecord) -> Glimpse | None:
        row = rows.get(record.path)
        if row is None:
            return None
        return Glimpse(pooled.table.take(np.array([row]), np.array([0]))[0])

    return known


def answered_by_record(answered: Answered) -> Known:
    """What answers hold of their films; made with `looks`, all that the input check wants."""
    found = {
        record.path: Glimpse(answer.embedding, answer.look)
        for record, answer in zip(answered.records, answered.answers, strict=True)
        if answer.embedding is not None
    }
    return lambda record: found.get(record.path)


def either(first: Known, second: Known) -> Known:
    """What `first` knows of a film, else what `second` does."""
    return lambda record: first(record) or second(record)
