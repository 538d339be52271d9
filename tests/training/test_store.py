"""The store returns what was put in, in any order, and survives what a kill can leave."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.training.feature_store import KEY_BYTES, FeatureStore


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def filled(folder: Path, shards: int = 3, rows: int = 4) -> FeatureStore:
    store = FeatureStore(folder, 8)
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        values = np.array([[n + k / 8 for k in range(8)] for n in numbers], np.float32)
        store.add([key(n) for n in numbers], values)
    return store


def test_returns_rows_across_shards_in_the_order_asked(tmp_path: Path) -> None:
    filled(tmp_path)
    store = FeatureStore(tmp_path, 8)
    taken = store.take([key(n) for n in (11, 0, 5, 5, 7)])
    assert taken.dtype == np.float32
    assert taken[:, 0].tolist() == [11, 0, 5, 5, 7]
    assert taken[0, 4] == 11.5


def test_knows_what_it_holds(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert key(3) in store
    assert key(99) not in store
    with pytest.raises(KeyError):
        store.take([key(99)])


def test_a_second_process_sees_whole_shards_only(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / ".half.npy.abc.tmp").write_bytes(b"half a shard")
    assert key(11) in FeatureStore(tmp_path, 8)


def test_damaged_or_foreign_shards_are_left_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    whole = sorted(tmp_path.glob("*.npy"))[0]
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    (tmp_path / "zero.npy").write_bytes(b"")
    np.save(tmp_path / "other.npy", np.zeros(3))
    with caplog.at_level(logging.WARNING):
        store = FeatureStore(tmp_path, 8)
    assert sum(key(n) in store for n in range(12)) == 8
    assert len(caplog.records) == 3


def test_rounds_to_half_precision_only(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 4)
    values = np.array([[1e-3, 0.123456, 3.0, 1000.7]], np.float32)
    store.add([key(1)], values)
    np.testing.assert_array_equal(store.take([key(1)]), values.astype("<f2").astype(np.float32))
