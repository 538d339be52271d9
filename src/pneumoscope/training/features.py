"""What is computed of each view of each image once, ever: features, activations, small squares.

Comes in: image records, the preprocessing and augmentation configs, an `Extractor`. Goes out:
a `FeatureTable` that yields the rows of any image and view from the store on disk.
Knows nothing of labels or of what is trained. A row's key is made of the image's content, the
preprocessing, the view, the weights and the engine, so nothing stale can be taken for fresh.

Arrays on disk: immutable shards of (key, values), memory-mapped, shared by all runs.

Comes in: 32-byte keys and rows of values: pooled features or activations in float16, squares of
grey in uint8. Goes out: the rows of those keys that are known.
A shard is one `.npy` file, written beside and renamed, so a kill loses at most the shard being
gathered, and several processes may write to one store at once. It is mapped while rows are taken
from it and no longer: a mapping holds a file open, and a store may have more shards than a process
may have open files. Knows nothing of images or models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import AugmentConfig, LimitsConfig, PreprocessConfig
from pneumoscope.errors import ImageRefusedError, InputError, Reason
from pneumoscope.images.augment import view, view_fingerprint
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import READER_VERSION, GreyImage, read_image
from pneumoscope.images.warning_summary import count_warnings
from pneumoscope.prefetching import ahead, overlapped
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.storage import atomic_writer, write_json

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


BATCH = 32
"""Views per forward pass: on 2 cores larger batches gain nothing and cost memory."""

SHARD_ROWS = 512
"""Views per shard: a kill loses at most this many, some 15 s of work on 2 cores."""

_NAMED_AT_MOST = 10
_WARNINGS = "warnings.json"


class Extractor(Protocol):
    """What is computed of a view, as an engine computes it.

    Attributes:
        kind: type of a row on disk, `<f2` or `u1`.
        shape: of a row.
        noun: what the rows are, in the plural, for progress bars.
    """

    kind: str
    shape: tuple[int, ...]
    noun: str

    @property
    def fingerprint(self) -> str:
        """Engine, precision and weights: what, beside the input, decides the output."""

    def prepare(self, square: NDArray[np.float32], preprocessor: Preprocessor) -> NDArray[Any]:
        """One view, grey (size, size) in [0, 1], as `__call__` wants it in its batch."""

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Rows (n, *shape) of n prepared views; may be called in several threads at once."""


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Rows of `images` × `views`, on disk; `kept` are the positions that could be read.

    `warned` counts the images with each kind of warning that reading them gave.
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
        """SHA-256 over what the rows were made of and by: images, views, extractor."""
        digest = hashlib.sha256(self.store.folder.name.encode())
        for row in self.keys:
            digest.update(b"".join(row))
        return digest.hexdigest()

    def take(self, rows: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[Any]:
        """Row (n, ...) of image `rows[i]` (an index into `kept`) in view `views[i]`."""
        wanted = zip(rows.tolist(), views.tolist(), strict=True)
        return self.store.take([self.keys[r][v] for r, v in wanted])


@dataclass(frozen=True, slots=True)
class Views:
    """Which views of an image are wanted: `count` of them, the first un-augmented."""

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
    """Make sure that every view of every record is in the cache, and say where.

    Images that can't be read, or have other bytes than when they were hashed, are left out and
    reported in `refused`. Work done before an interruption is found in the cache again.

    Raises:
        InputError: the extractor yields what is no finite number.
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
    pending = _Pending(store)
    wanted = work.views_to_make()
    noun = extractor.noun
    _LOGGER.debug("%s: %d views to compute, the others are in %s", noun, wanted, store.folder)
    stopped = threading.Event()  # Ctrl-C waits for one image, not for a batch
    with progress.task(noun, wanted, "images") as task:
        try:
            batches = ahead(work.batches(stopped), stopped.set)
            for (made, _), rows in overlapped(lambda batch: extractor(batch[1]), batches):
                pending.add(made, rows[: len(made)])
                task.advance(len(made))
        finally:  # after Ctrl-C too: what was computed is kept
            pending.flush()
            work.warnings.save()
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
        _LOGGER.warning("left out: %d images more", len(refused) - _NAMED_AT_MOST)


class _Warnings:
    """What was odd about images, kept beside the features: they are not read again for it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _WARNINGS
        self._known: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):  # a note that is lost costs no feature
            self._known = json.loads(self._path.read_text(encoding="utf-8"))
        self._changed = False

    def note(self, record: ImageRecord, warnings: Sequence[str]) -> None:
        """Remember the warnings of an image that was read."""
        if warnings and self._known.get(record.sha256) != list(warnings):
            self._known[record.sha256] = list(warnings)
            self._changed = True

    def of(self, record: ImageRecord) -> Sequence[str]:
        """The warnings of an image that was read, in this run or in one before."""
        return self._known.get(record.sha256, ())

    def save(self) -> None:
        """Keep what came new."""
        if self._changed:
            write_json(self._path, self._known)


class _Pending:
    """Rows gathered for the next shard."""

    def __init__(self, store: ArrayStore) -> None:
        self._store = store
        self._keys: list[bytes] = []
        self._rows: list[NDArray[Any]] = []

    def add(self, keys: list[bytes], rows: NDArray[Any]) -> None:
        self._keys += keys
        self._rows.append(rows)
        if len(self._keys) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._keys:
            self._store.add(self._keys, np.concatenate(self._rows))
        self._keys, self._rows = [], []


_Batch = tuple[list[bytes], NDArray[Any]]


class _Work:
    """The views that are not in the store yet, made batch by batch."""

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
        # A file that could not be hashed has no key of its own, so it is never found in the store.
        self._missing = [
            i
            for i, row in enumerate(keys)
            if not records[i].sha256 or any(key not in store for key in row)
        ]
        # Byte-equal images share their keys: their views are computed once.
        self._wanted = {
            key for i in self._missing if records[i].sha256 for key in keys[i] if key not in store
        }
        self.refused: dict[int, ImageRefusedError] = {}
        self.warnings = _Warnings(store.folder)

    def views_to_make(self) -> int:
        """How many views are to be computed if no image is refused."""
        return len(self._wanted)

    def batches(self, stopped: threading.Event) -> Iterator[_Batch]:
        """Batches of exactly `BATCH` prepared views (the last one filled up) and their keys."""
        views = self._tensors(stopped)
        while gathered := list(islice(views, BATCH)):
            tensors = [tensor for _, tensor in gathered]
            filled = tensors + [tensors[-1]] * (BATCH - len(tensors))
            yield [key for key, _ in gathered], np.stack(filled)

    def _tensors(self, stopped: threading.Event) -> Iterator[tuple[bytes, NDArray[Any]]]:
        for position in takewhile(lambda _: not stopped.is_set(), self._missing):
            record, row = self._records[position], self._keys[position]
            if record.sha256 and self._wanted.isdisjoint(row):  # a copy of an image before it
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
    """The image of a record, if its file still has the bytes that the features' keys stand for.

    Raises:
        ImageRefusedError: it can't be read, or its bytes changed.
    """
    image = read_image(record.path, LimitsConfig())
    if image.sha256 != record.sha256:
        raise ImageRefusedError(
            str(record.path),
            Reason.CORRUPT,
            "its bytes changed since the data set was listed. Leave the data alone during training",
        )
    return image
