"""Frozen features: each view of each image goes through the backbone once, ever.

Comes in: image records, the preprocessing and augmentation configs, a frozen backbone. Goes out:
a `FeatureTable` that yields float32 features of any image and view from the store on disk.
Knows nothing of labels or of the head. A feature's key is made of the image's content, the
preprocessing, the view, the weights and the engine, so nothing stale can be taken for fresh.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import AugmentConfig, LimitsConfig, PreprocessConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.augment import view, view_fingerprint
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.training.feature_store import FeatureStore
from pneumoscope.training.network import BACKBONE_WIDTH

_LOGGER = logging.getLogger(__name__)

BATCH = 32
"""Views per forward pass: on 2 cores larger batches gain nothing and cost memory."""

SHARD_ROWS = 512
"""Views per shard: a kill loses at most this many, some 15 s of work on 2 cores."""

_NAMED_AT_MOST = 10


class Extractor(Protocol):
    """A frozen backbone as an engine runs it."""

    @property
    def fingerprint(self) -> str:
        """Engine, precision and weights: what, beside the input, decides the output."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pooled features (n, 1024) of preprocessed images (n, size, size, 3)."""


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of `images` × `views`, on disk; `kept` are the positions that could be read."""

    store: FeatureStore
    keys: tuple[tuple[bytes, ...], ...]
    kept: tuple[int, ...]
    refused: tuple[ImageRefusedError, ...]

    @property
    def views(self) -> int:
        """Views per image."""
        return len(self.keys[0]) if self.keys else 0

    def take(self, rows: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features (n, 1024) of image `rows[i]` (an index into `kept`) in view `views[i]`."""
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
        f"{extractor.fingerprint}|{preprocessor.fingerprint()}".encode()
    ).hexdigest()
    store = FeatureStore(cache / "features" / made_by[:24], BACKBONE_WIDTH)
    prints = [view_fingerprint(views.augment, views.seed, k) for k in range(views.count)]
    keys = [tuple(_key(record.sha256, mark) for mark in prints) for record in records]
    work = _Work(records, keys, views, preprocessor, store)
    pending = _Pending(store)
    wanted = work.views_to_make()
    _LOGGER.debug("features: %d views to compute, the others are in %s", wanted, store.folder)
    with progress.task("features", wanted, "images") as task:
        try:
            for batch_keys, batch in _ahead(work):
                pending.add(batch_keys, extractor(batch)[: len(batch_keys)])
                task.advance(len(batch_keys))
        finally:  # after Ctrl-C too: what was computed is kept
            pending.flush()
    refused = dict(sorted(work.refused.items()))
    _warn(refused)
    kept = tuple(i for i in range(len(records)) if i not in refused)
    return FeatureTable(store, tuple(keys[i] for i in kept), kept, tuple(refused.values()))


def _key(image_sha256: str, view_mark: str) -> bytes:
    return hashlib.sha256(f"{image_sha256}|{view_mark}".encode()).digest()


def _warn(refused: dict[int, ImageRefusedError]) -> None:
    for error in list(refused.values())[:_NAMED_AT_MOST]:
        _LOGGER.warning("left out: %s", error)
    if len(refused) > _NAMED_AT_MOST:
        _LOGGER.warning("left out: %d images more", len(refused) - _NAMED_AT_MOST)


class _Pending:
    """Rows gathered for the next shard."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._keys: list[bytes] = []
        self._features: list[NDArray[np.float32]] = []

    def add(self, keys: list[bytes], features: NDArray[np.float32]) -> None:
        self._keys += keys
        self._features.append(features)
        if len(self._keys) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._keys:
            self._store.add(self._keys, np.concatenate(self._features))
        self._keys, self._features = [], []


_Batch = tuple[list[bytes], NDArray[np.float32]]


class _Work:
    """The views that are not in the store yet, made batch by batch."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        keys: Sequence[tuple[bytes, ...]],
        views: Views,
        preprocessor: Preprocessor,
        store: FeatureStore,
    ) -> None:
        self._records = records
        self._keys = keys
        self._views = views
        self._preprocessor = preprocessor
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

    def views_to_make(self) -> int:
        """How many views are to be computed if no image is refused."""
        return len(self._wanted)

    def batches(self, stopped: threading.Event) -> Iterator[_Batch]:
        """Batches of exactly `BATCH` preprocessed views (the last one padded) and their keys."""
        size = self._preprocessor.config.size
        batch = np.zeros((BATCH, size, size, 3), np.float32)
        batch_keys: list[bytes] = []
        for key, tensor in self._tensors(stopped):
            batch[len(batch_keys)] = tensor
            batch_keys.append(key)
            if len(batch_keys) == BATCH:
                yield batch_keys, batch
                batch, batch_keys = np.zeros_like(batch), []
        if batch_keys:
            yield batch_keys, batch

    def _tensors(self, stopped: threading.Event) -> Iterator[tuple[bytes, NDArray[np.float32]]]:
        for position in takewhile(lambda _: not stopped.is_set(), self._missing):
            record, row = self._records[position], self._keys[position]
            if record.sha256 and self._wanted.isdisjoint(row):  # a copy of an image before it
                continue
            try:
                grey = self._preprocessor.grey(_read(record))
            except ImageRefusedError as error:
                self.refused[position] = error
                continue
            for index, key in enumerate(row):
                if key in self._wanted:
                    self._wanted.discard(key)
                    changed = view(
                        grey, self._views.augment, self._views.seed, record.sha256, index
                    )
                    yield key, self._preprocessor.normalise(changed)


def _read(record: ImageRecord) -> NDArray[np.float32]:
    """The pixels of a record, if its file still has the bytes that the features' keys stand for."""
    image = read_image(record.path, LimitsConfig())
    if image.sha256 != record.sha256:
        raise ImageRefusedError(
            str(record.path),
            Reason.CORRUPT,
            "its bytes changed since the data set was listed. Leave the data alone during training",
        )
    return image.pixels


def _ahead(work: _Work) -> Iterator[_Batch]:
    """The batches of `work`, each prepared in a thread while the one before it is in use."""
    stopped = threading.Event()
    batches = work.batches(stopped)
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            following = pool.submit(next, batches, None)
            while (current := following.result()) is not None:
                following = pool.submit(next, batches, None)
                yield current
        finally:  # Ctrl-C waits for one image, not for a batch
            stopped.set()
