"""Feature cache: what is computed once per view of each image, and the store that holds it on disk.

`compute_features` takes image records, the preprocessing and augmentation configurations and an
`Extractor`, and returns a `FeatureTable`. A table reads the rows of any image and view from the
store: pooled features or activations in float16, or grey squares in uint8. The key of a row hashes
the image's content, the preprocessing, the view, the weights and the engine, so a stale row is
never used.

`ArrayStore` holds the rows in immutable shards, shared by all runs. A shard is one `.npy` file,
written under a temporary name and renamed: an interruption loses at most the shard in progress, and
several processes can write to one store. A shard is memory-mapped only while rows are read from it,
because a mapping keeps the file open and a store may have more shards than a process may open
files.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import AugmentConfig, LimitsConfig, PreprocessConfig
from pneumoscope.errors import ImageRefusedError, InputError, Reason
from pneumoscope.images.augment import view, view_fingerprint
from pneumoscope.images.grey import count_warnings
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import READER_VERSION, GreyImage, read_image
from pneumoscope.prefetching import overlapped, prefetched
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import read_json
from pneumoscope.records import ImageRecord
from pneumoscope.storage import atomic_writer, write_json

_LOGGER = logging.getLogger(__name__)

KEY_BYTES = 32

BATCH = 32
"""Views per forward pass. On 2 cores larger batches are no faster and need more memory."""

SHARD_ROWS = 512
"""Views per shard: an interruption loses at most these, about 15 s of work on 2 cores."""

_NAMED_AT_MOST = 10
_WARNINGS = "warnings.json"


class ArrayStore:
    """A folder of shards whose rows have one shape and type and come from one extractor.

    Args:
        folder: folder of the shards; created on the first write.
        kind: dtype on disk, `<f2` or `u1`.
        shape: shape of one row.
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
            _LOGGER.warning("%s: damaged shard, ignored (%s)", path, error)
            return
        if shard.dtype != self._row:
            _LOGGER.warning("%s: shard of another layout, ignored", path)
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
            InputError: a value is not finite or exceeds the range of float16; nothing is written.
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
            OSError: a shard was removed after the store was opened.
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


class Extractor(Protocol):
    """Computes one row per view.

    Attributes:
        kind: dtype of a row on disk, `<f2` or `u1`.
        shape: shape of a row.
        noun: what the rows are, in the plural, for progress bars.
    """

    kind: str
    shape: tuple[int, ...]
    noun: str

    @property
    def fingerprint(self) -> str:
        """Engine, precision and weights: all that affects the output besides the input."""

    def prepare(self, square: NDArray[np.float32], preprocessor: Preprocessor) -> NDArray[Any]:
        """One view, grey (size, size) in [0, 1], in the form that `__call__` takes in a batch."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Rows (n, *shape) of n prepared views; must be safe to call from several threads."""


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Rows of `images` × `views` on disk; `kept` are the positions of the readable images.

    `refused` are the errors of the others. `warned` counts the images with each kind of warning.
    """

    store: ArrayStore
    keys: tuple[tuple[bytes, ...], ...]
    kept: tuple[int, ...]
    refused: tuple[ImageRefusedError, ...]
    warned: Counter[str] = field(default_factory=Counter)

    @property
    def views(self) -> int:
        """Views per image."""
        return len(self.keys[0]) if self.keys else 0

    @property
    def width(self) -> int:
        """Numbers in the last axis of a row."""
        return self.store.shape[-1]

    def fingerprint(self) -> str:
        """SHA-256 over the images, views and extractor that the rows depend on."""
        digest = hashlib.sha256(self.store.folder.name.encode())
        for row in self.keys:
            digest.update(b"".join(row))
        return digest.hexdigest()

    def take(self, rows: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[Any]:
        """Rows (n, ...) of image `rows[i]` (an index into `kept`) in view `views[i]`."""
        wanted = zip(rows.tolist(), views.tolist(), strict=True)
        return self.store.take([self.keys[r][v] for r, v in wanted])


@dataclass(frozen=True, slots=True)
class Views:
    """Which views of an image to compute: `count` of them, the first un-augmented."""

    count: int
    augment: AugmentConfig
    seed: int


def compute_features(
    records: Sequence[ImageRecord],
    views: Views,
    preprocess: PreprocessConfig,
    extractor: Extractor,
    cache: Path,
    progress: Progress = SILENT,
) -> FeatureTable:
    """Compute the rows of every view of every record that are not in the cache yet.

    Images that can't be read, or whose bytes changed after they were hashed, are left out and
    listed in `refused`. Rows computed before an interruption are reused.

    Raises:
        InputError: the extractor returns non-finite numbers.
        OSError: the cache can't be written (disk full, no permission).
    """
    preprocessor = Preprocessor(preprocess)
    made_by = hashlib.sha256(
        f"{extractor.fingerprint}|{preprocessor.fingerprint()}|{READER_VERSION}".encode()
    ).hexdigest()
    store = ArrayStore(cache / "features" / made_by[:24], extractor.kind, extractor.shape)
    prints = [view_fingerprint(views.augment, views.seed, k) for k in range(views.count)]
    keys = [tuple(_key(record.sha256, mark) for mark in prints) for record in records]
    work = _Work(records, keys, views, preprocessor, extractor, store)
    pending = _Pending(store, work.warnings)
    wanted = work.views_to_make()
    noun = extractor.noun
    _LOGGER.debug("%s: %d views to compute, the others are in %s", noun, wanted, store.folder)
    stopped = threading.Event()  # lets Ctrl-C wait for one image only, not for a batch
    with progress.task(noun, wanted, "images") as task:
        try:
            batches = prefetched(work.batches(stopped), stopped.set)
            for (made, _), rows in overlapped(lambda batch: extractor(batch[1]), batches):
                pending.add(made, rows[: len(made)])
                task.advance(len(made))
        finally:  # also after Ctrl-C, so that computed rows are kept
            pending.flush()
    refused = dict(sorted(work.refused.items()))
    _warn(refused)
    warned = count_warnings(work.warnings.of(record) for record in records)
    kept = tuple(i for i in range(len(records)) if i not in refused)
    rows_of_kept = tuple(keys[i] for i in kept)
    return FeatureTable(store, rows_of_kept, kept, tuple(refused.values()), warned)


def _key(image_sha256: str, view_mark: str) -> bytes:
    return hashlib.sha256(f"{image_sha256}|{view_mark}".encode()).digest()


def _warn(refused: dict[int, ImageRefusedError]) -> None:
    for error in list(refused.values())[:_NAMED_AT_MOST]:
        _LOGGER.warning("left out: %s", error)
    if len(refused) > _NAMED_AT_MOST:
        _LOGGER.warning("left out: %d more images", len(refused) - _NAMED_AT_MOST)


class _Warnings:
    """Warnings about images, stored beside the features so that the images are not read again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _WARNINGS
        self._known = self._stored()
        self._changed = False

    def _stored(self) -> dict[str, list[str]]:
        try:
            known: dict[str, list[str]] = read_json(self._path)
        except InputError:  # losing the warnings costs no feature
            return {}
        return known

    def note(self, record: ImageRecord, warnings: Sequence[str]) -> None:
        """Record the warnings of an image."""
        if warnings and self._known.get(record.sha256) != list(warnings):
            self._known[record.sha256] = list(warnings)
            self._changed = True

    def of(self, record: ImageRecord) -> Sequence[str]:
        """The warnings of an image read in this run or an earlier one."""
        return self._known.get(record.sha256, ())

    def save(self) -> None:
        """Write the warnings if any were added, beside those that another run wrote meanwhile."""
        if self._changed:
            self._changed = False
            # Copied at once, because another thread reads images and notes meanwhile.
            write_json(self._path, self._stored() | dict(self._known))


class _Pending:
    """Rows collected for the next shard."""

    def __init__(self, store: ArrayStore, warnings: _Warnings) -> None:
        self._store, self._warnings = store, warnings
        self._keys: list[bytes] = []
        self._rows: list[NDArray[Any]] = []

    def add(self, keys: list[bytes], rows: NDArray[Any]) -> None:
        self._keys += keys
        self._rows.append(rows)
        if len(self._keys) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        # Warnings first: an image whose rows are in the store is not read again.
        self._warnings.save()
        if self._keys:
            self._store.add(self._keys, np.concatenate(self._rows))
        self._keys, self._rows = [], []


_Batch = tuple[list[bytes], NDArray[Any]]


class _Work:
    """The views that are not in the store yet, prepared batch by batch."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        keys: Sequence[tuple[bytes, ...]],
        views: Views,
        preprocessor: Preprocessor,
        extractor: Extractor,
        store: ArrayStore,
    ) -> None:
        self._records = records
        self._keys = keys
        self._views = views
        self._preprocessor = preprocessor
        self._prepare = extractor.prepare
        # A file that could not be hashed has no key of its own, so the store never holds it.
        self._missing = [
            i
            for i, row in enumerate(keys)
            if not records[i].sha256 or any(key not in store for key in row)
        ]
        # Byte-identical images share their keys, so their views are computed once.
        self._wanted = {
            key for i in self._missing if records[i].sha256 for key in keys[i] if key not in store
        }
        self.refused: dict[int, ImageRefusedError] = {}
        self.warnings = _Warnings(store.folder)

    def views_to_make(self) -> int:
        """Number of views to compute if no image is refused."""
        return len(self._wanted)

    def batches(self, stopped: threading.Event) -> Iterator[_Batch]:
        """Batches of exactly `BATCH` prepared views (the last one padded) and their keys."""
        views = self._tensors(stopped)
        while gathered := list(islice(views, BATCH)):
            tensors = [tensor for _, tensor in gathered]
            filled = tensors + [tensors[-1]] * (BATCH - len(tensors))
            yield [key for key, _ in gathered], np.stack(filled)

    def _tensors(self, stopped: threading.Event) -> Iterator[tuple[bytes, NDArray[Any]]]:
        for position in takewhile(lambda _: not stopped.is_set(), self._missing):
            record, row = self._records[position], self._keys[position]
            if record.sha256 and self._wanted.isdisjoint(row):  # a copy of an earlier image
                continue
            try:
                image = read_listed(record)
                self.warnings.note(record, image.warnings)
                grey = self._preprocessor.grey(image.pixels)
            except ImageRefusedError as error:
                self.refused[position] = error
                continue
            for index, key in enumerate(row):
                if key in self._wanted:
                    self._wanted.discard(key)
                    changed = view(
                        grey, self._views.augment, self._views.seed, record.sha256, index
                    )
                    yield key, self._prepare(changed, self._preprocessor)


def read_listed(record: ImageRecord) -> GreyImage:
    """Read the image of a record, if its file still has the hashed bytes.

    Raises:
        ImageRefusedError: it can't be read, or its bytes changed.
    """
    image = read_image(record.path, LimitsConfig())
    if image.sha256 != record.sha256:
        raise ImageRefusedError(
            str(record.path),
            Reason.CORRUPT,
            "its bytes changed since the data set was listed. Do not modify the data during "
            "training",
        )
    return image
