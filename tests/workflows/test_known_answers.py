"""What training worked out already is not worked out again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pneumoscope.inference.backends import Outputs
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.known_answers import EmbeddingBackend, Remembering, pooled_by_record


class Counting:
    """A backend that counts what it is asked for."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, batch: np.ndarray) -> Outputs:
        self.runs += 1
        flat = batch.reshape(len(batch), -1)
        return Outputs(flat.sum(1), flat[:, :4].reshape(-1, 2, 2), flat)


def test_a_batch_is_computed_once() -> None:
    engine = Counting()
    backend = Remembering(engine)
    a, b = np.random.default_rng(0).random((2, 3, 4, 4, 3), np.float32)
    first, other, again = backend.run(a), backend.run(b), backend.run(a.copy())
    assert engine.runs == 2
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.array_equal(first.logits, other.logits)


def test_an_extractor_tells_embeddings() -> None:
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
    known = pooled_by_record(pooled, records)
    np.testing.assert_array_equal(known(records[1]), [2, 3])
    assert known(ImageRecord(Path("other.png"), 0, "other")) is None
