"""The array store returns what was added, in any order, and survives interruptions."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.training.features import KEY_BYTES, ArrayStore


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def features(folder: Path) -> ArrayStore:
    return ArrayStore(folder, "<f2", (8,))


def filled(folder: Path, shards: int = 3, rows: int = 4) -> ArrayStore:
    store = features(folder)
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        values = np.array([[n + k / 8 for k in range(8)] for n in numbers], np.float32)
        store.add([key(n) for n in numbers], values)
    return store


def test_returns_rows_across_shards_in_the_order_asked(tmp_path: Path) -> None:
    filled(tmp_path)
    store = features(tmp_path)
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
    assert key(11) in features(tmp_path)


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
        store = features(tmp_path)
    assert sum(key(n) in store for n in range(12)) == 8
    assert len(caplog.records) == 3


def test_rounds_to_half_precision_only(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path, "<f2", (4,))
    values = np.array([[1e-3, 0.123456, 3.0, 1000.7]], np.float32)
    store.add([key(1)], values)
    np.testing.assert_array_equal(store.take([key(1)]), values.astype("<f2").astype(np.float32))


@pytest.mark.parametrize(("kind", "taken"), [("<f2", np.float32), ("u1", np.uint8)])
def test_keeps_rows_of_any_shape(tmp_path: Path, kind: str, taken: type) -> None:
    generator = np.random.default_rng(0)
    values: np.ndarray = generator.integers(0, 256, (5, 4, 3, 2)).astype(taken)
    ArrayStore(tmp_path, kind, (4, 3, 2)).add([key(n) for n in range(5)], values)
    rows = ArrayStore(tmp_path, kind, (4, 3, 2)).take([key(4), key(1)])
    assert rows.dtype == taken
    np.testing.assert_array_equal(rows, values[[4, 1]])


@pytest.mark.parametrize(("kind", "shape"), [("<f2", (4,)), ("<f2", (2, 4)), ("u1", (8,))])
def test_shards_of_another_layout_are_left_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, shape: tuple[int, ...]
) -> None:
    filled(tmp_path, shards=1)
    store = ArrayStore(tmp_path, kind, shape)
    assert key(0) not in store
    assert "another layout" in caplog.text


def test_no_rows_are_an_array_of_their_shape(tmp_path: Path) -> None:
    assert ArrayStore(tmp_path, "u1", (6, 6)).take([]).shape == (0, 6, 6)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 70_000.0])
def test_what_half_precision_cant_hold_is_rejected(tmp_path: Path, value: float) -> None:
    store = features(tmp_path)
    values = np.zeros((2, 8), np.float32)
    values[1, 3] = value
    with pytest.raises(InputError, match="wanted finite numbers up to 65504"):
        store.add([key(0), key(1)], values)
    assert list(tmp_path.iterdir()) == []
    assert key(0) not in store


def test_a_full_disk_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    before = sorted(tmp_path.iterdir())

    def full(stream: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        store.add([key(99)], np.zeros((1, 8), np.float32))
    assert sorted(tmp_path.iterdir()) == before
    assert key(99) not in store
    assert store.take([key(11)])[0, 0] == 11


def test_more_shards_than_a_process_may_have_open(tmp_path: Path) -> None:
    """A mapping holds its file open, so none outlives the taking of rows."""
    filled(tmp_path, shards=40, rows=1)
    store = features(tmp_path)
    descriptors = Path("/proc/self/maps")
    if not descriptors.exists():
        pytest.skip("no /proc to see the mappings in")
    taken = store.take([key(n) for n in range(40)])
    assert taken[:, 0].tolist() == list(range(40))
    assert os.fspath(tmp_path) not in descriptors.read_text()
