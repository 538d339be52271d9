"""What training worked out already is not worked out again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pneumoscope.records import ImageRecord
from pneumoscope.workflows.input_check import (
    EmbeddingBackend,
    Precomputed,
    either,
    pooled_by_record,
)
from support.known import known


def test_an_extractor_outputs_embeddings() -> None:
    batch = np.ones((3, 4, 4, 3), np.float32)
    extractor: Any = lambda batch: batch.mean((1, 2))  # noqa: E731
    out = EmbeddingBackend(extractor).run(batch)
    np.testing.assert_array_equal(out.embeddings, np.ones((3, 3)))
    assert (out.logits.shape, out.cams.shape) == ((3,), (3, 1, 1))


def test_features_are_found_by_record() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = SimpleNamespace(take=lambda rows, views: values[rows] + 10 * views[:, None])
    pooled: Any = SimpleNamespace(table=table, extractor=None)
    records = [ImageRecord(Path(f"{k}.png"), 0, str(k)) for k in range(3)]
    lookup = pooled_by_record(pooled, records)
    np.testing.assert_array_equal(known(lookup(records[1])).embedding, [2, 3])
    assert lookup(ImageRecord(Path("other.png"), 0, "other")) is None
    first = Precomputed(np.zeros(2, np.float32))
    both = either(lambda record: first if record == records[0] else None, lookup)
    assert both(records[0]) is first
    np.testing.assert_array_equal(known(both(records[1])).embedding, [2, 3])
