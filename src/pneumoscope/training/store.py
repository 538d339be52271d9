"""Arrays on disk: immutable shards of (key, values), memory-mapped, shared by all runs.

Comes in: 32-byte keys and rows of values: pooled features or activations in float16, squares of
grey in uint8. Goes out: the rows of those keys that are known.
A shard is one `.npy` file, written beside and renamed, so a kill loses at most the shard being
gathered, and several processes may write to one store at once. It is mapped while rows are taken
from it and no longer: a mapping holds a file open, and a store may have more shards than a process
may have open files. Knows nothing of images or models.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.storage import atomic_writer

_LOGGER = logging.getLogger(__name__)

KEY_BYTES = 32


class ArrayStore:
    """One folder of shards; all rows of one shape and type, and made by one extractor.

    Args:
        folder: where the shards lie; made when first written to.
        kind: type on disk, `<f2` or `u1`.
        shape: of one row.
    """

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.shape = shape
        self._row = np.dtype([("key", f"V{KEY_BYTES}"), ("values", kind, shape)])
        self._shards: list[Path] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        for path in sorted(folder.glob("*.npy")):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            shard = _mapped(path)
        except (ValueError, OSError, EOFError) as error:
            _LOGGER.warning("%s: damaged shard, left aside (%s)", path, error)
            return
        if shard.dtype != self._row:
            _LOGGER.warning("%s: shard of another layout, left aside", path)
            return
        number = len(self._shards)
        self._shards.append(path)
        for row, key in enumerate(shard["key"]):
            self._place[key.tobytes()] = (number, row)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    def add(self, keys: Sequence[bytes], values: NDArray[Any]) -> None:
        """Write one shard: `values` is (len(keys), *shape).

        Raises:
            InputError: a value is no number, or beyond float16's range; nothing is written.
            OSError: the folder can't be written or the disk is full; the store is unchanged.
        """
        shard = np.empty(len(keys), self._row)
        shard["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        with np.errstate(over="ignore"):
            shard["values"] = values
        if not np.isfinite(shard["values"]).all():
            raise InputError(
                f"features: found {values.min():g} to {values.max():g}, wanted finite numbers "
                f"up to {np.finfo(np.float16).max:g}. The backbone's weights are damaged: "
                "give other --weights."
            )
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        with atomic_writer(path) as stream:
            np.save(stream, shard)
        self._open(path)

    def take(self, keys: Sequence[bytes]) -> NDArray[Any]:
        """The rows of `keys`, (len(keys), *shape), in their order: float32, or uint8 as stored.

        Raises:
            KeyError: a key is not in the store.
            OSError: a shard was taken away since the store was opened.
        """
        places = np.array([self._place[key] for key in keys], np.int64).reshape(-1, 2)
        values = self._row["values"]
        kind = np.uint8 if values.base == np.uint8 else np.float32
        out = np.empty((len(keys), *values.shape), kind)
        for number in np.unique(places[:, 0]):
            chosen = places[:, 0] == number
            out[chosen] = _mapped(self._shards[number])["values"][places[chosen, 1]]
        return out


def _mapped(path: Path) -> NDArray[np.void]:
    shard: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    return shard
