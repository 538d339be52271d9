"""Each view is computed once; unreadable images are left out and reported."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import AugmentConfig, PreprocessConfig
from pneumoscope.errors import InputError, Reason
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.progress import SilentProgress, Task
from pneumoscope.records import ImageRecord
from pneumoscope.storage import sha256_of_file
from pneumoscope.training import features
from pneumoscope.training.features import ArrayStore, FeatureTable, Views, compute_features
from support.heads import BACKBONE_WIDTH

PREPROCESS = PreprocessConfig(size=32)
VIEWS = Views(2, AugmentConfig(), 7)


class CountingExtractor:
    """Feature k of an image is its mean times k. Counts the computed views."""

    kind: str = "<f2"
    shape: tuple[int, ...] = (BACKBONE_WIDTH,)
    noun: str = "features"

    def __init__(self, fingerprint: str = "fake", stop_after: int = 10**9) -> None:
        self.fingerprint = fingerprint
        self.seen = 0
        self._left = stop_after

    def prepare(self, square: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        return preprocessor.normalise(square)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        # An incomplete batch is padded with its last view.
        self.seen += len({view.tobytes() for view in batch})
        means = batch.mean((1, 2, 3), dtype=np.float64).astype(np.float32)
        return np.asarray(means[:, None] * np.linspace(0, 1, BACKBONE_WIDTH, dtype=np.float32))


class SquareCorner(CountingExtractor):
    """Rows of another kind: the upper left corner of what was prepared, uint8 (2, 3)."""

    kind = "u1"
    shape: tuple[int, ...] = (2, 3)
    noun = "corners"

    def prepare(self, square: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        assert square.shape == (32, 32)
        return np.asarray(np.rint(square * 255), np.uint8)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return batch[:, :2, :3]


def image_record(path: Path, level: int) -> ImageRecord:
    grey = np.full((40, 48), 20 + level, np.uint8)
    grey[10:20, 8:30] += 60
    Image.fromarray(grey).save(path)
    return ImageRecord(path, level % 2, f"p{level}", sha256=sha256_of_file(path))


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    return [image_record(tmp_path / f"{k}.png", 3 * k) for k in range(5)]


def computed(
    records: list[ImageRecord],
    cache: Path,
    views: Views = VIEWS,
    preprocess: PreprocessConfig = PREPROCESS,
    extractor: CountingExtractor | None = None,
) -> tuple[FeatureTable, int]:
    extractor = extractor or CountingExtractor()
    return compute_features(records, views, preprocess, extractor, cache), extractor.seen


def plain(table: FeatureTable) -> np.ndarray:
    rows = np.arange(len(table.keys))
    return table.take(rows, np.zeros_like(rows))


def test_computes_once_and_finds_it_again(records: list[ImageRecord], own_cache: Path) -> None:
    first, seen = computed(records, own_cache)
    assert seen == 10
    again, seen_again = computed(records, own_cache)
    assert seen_again == 0
    np.testing.assert_array_equal(plain(again), plain(first))
    assert np.all(np.diff(plain(first)[:, -1]) > 0)  # each image its own, in the records' order
    assert computed(records, own_cache, replace(VIEWS, count=3))[1] == 5  # one more view of each


@pytest.mark.parametrize("change", ["weights", "preprocess", "augment", "seed"])
def test_whatever_decides_a_feature_is_in_its_key(
    records: list[ImageRecord], own_cache: Path, change: str
) -> None:
    computed(records, own_cache)
    views, preprocess, extractor = VIEWS, PREPROCESS, CountingExtractor()
    if change == "weights":
        extractor = CountingExtractor("other")
    elif change == "preprocess":
        preprocess = replace(PREPROCESS, fit="pad")
    elif change == "augment":
        views = replace(VIEWS, augment=replace(VIEWS.augment, rotation=3.0))
    else:
        views = replace(VIEWS, seed=8)
    # The un-augmented view depends on neither augmentation nor seed, and is shared.
    shared = 5 if change in {"augment", "seed"} else 0
    assert computed(records, own_cache, views, preprocess, extractor)[1] == 10 - shared


def test_equal_bytes_are_computed_once(records: list[ImageRecord], own_cache: Path) -> None:
    copy = records[2].path.with_name("copy.png")
    copy.write_bytes(records[2].path.read_bytes())
    table, seen = computed([*records, replace(records[2], path=copy)], own_cache)
    assert seen == 10
    assert table.kept == (0, 1, 2, 3, 4, 5)
    np.testing.assert_array_equal(plain(table)[5], plain(table)[2])


def test_what_cant_be_read_is_left_out_and_reported(
    records: list[ImageRecord], own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records[1].path.write_bytes(b"text")
    records[1] = replace(records[1], sha256=hashlib.sha256(b"text").hexdigest())
    records[3] = replace(records[3], path=records[3].path.with_name("gone.png"), sha256="")
    for _ in range(2):  # a rejection is not cached
        table, _ = computed(records, own_cache)
        assert table.kept == (0, 2, 4)
        assert [error.reason for error in table.refused] == [Reason.NOT_AN_IMAGE, Reason.NOT_FOUND]
        assert len(table.keys) == 3
    assert "1.png" in caplog.text
    assert "gone.png" in caplog.text


def test_a_file_that_was_not_hashed_is_never_taken_for_another(
    records: list[ImageRecord], own_cache: Path
) -> None:
    """Unreadable when hashed, readable later: the empty hash must not become a key."""
    table, seen = computed([replace(record, sha256="") for record in records], own_cache)
    assert (table.kept, seen) == ((), 0)
    assert {error.reason for error in table.refused} == {Reason.CORRUPT}


def test_bytes_that_changed_since_they_were_hashed_are_rejected(
    records: list[ImageRecord], own_cache: Path
) -> None:
    image_record(records[0].path, 90)
    table, _ = computed(records, own_cache)
    assert table.kept == (1, 2, 3, 4)
    assert "changed" in table.refused[0].detail


@pytest.mark.parametrize("shard_rows", [4, 10**6])
def test_interrupted_work_is_kept_and_no_thread_stays(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, shard_rows: int
) -> None:
    monkeypatch.setattr(features, "BATCH", 4)
    monkeypatch.setattr(features, "SHARD_ROWS", shard_rows)
    many = [image_record(tmp_path / f"{k}.png", k) for k in range(40)]
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        computed(many, own_cache, extractor=CountingExtractor(stop_after=3))
    assert threading.active_count() == before
    assert computed(many, own_cache)[1] == 80 - 3 * 4


def test_an_interruption_waits_for_one_image_not_for_a_batch(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [image_record(tmp_path / f"{k}.png", k) for k in range(100)]
    reads: list[Path] = []
    started, real = threading.Event(), read_image

    def read(path: Path, limits: object) -> object:
        reads.append(path)
        if len(reads) > 2 * features.BATCH:  # of the third batch, while two are in use
            started.set()
            threading.Event().wait(0.05)
        return real(path)

    class Stopping(CountingExtractor):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            started.wait(10)
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        computed(many, own_cache, replace(VIEWS, count=1), extractor=Stopping())
    assert len(reads) <= 2 * features.BATCH + 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_features_that_half_precision_cant_hold_are_an_error(
    records: list[ImageRecord], own_cache: Path, value: float
) -> None:
    class Broken(CountingExtractor):
        def __call__(self, batch: np.ndarray) -> np.ndarray:
            return np.full((len(batch), BACKBONE_WIDTH), value, np.float32)

    with pytest.raises(InputError, match="give other --weights"):
        computed(records, own_cache, extractor=Broken())
    assert not list(own_cache.rglob("*.npy"))


def test_full_disk_is_an_os_error_and_leaves_nothing_half(
    records: list[ImageRecord], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        computed(records, own_cache)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_progress_counts_the_views_that_are_made(
    records: list[ImageRecord], own_cache: Path
) -> None:
    class Counting(SilentProgress):
        total, title = 0, ""

        @contextmanager
        def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
            self.total, self.title = total, title
            with super().task(title, total, unit) as task:
                yield task

    for expected in (4, 6):  # two new images, then three and two known ones twice
        progress, extractor = Counting(), CountingExtractor()
        chosen = records[:2] if expected == 4 else [*records, *records]
        compute_features(chosen, VIEWS, PREPROCESS, extractor, own_cache, progress)
        assert progress.total == extractor.seen == expected
        assert progress.title == extractor.noun


def test_rows_of_any_shape_and_type_are_kept_as_they_are(
    records: list[ImageRecord], own_cache: Path
) -> None:
    table = compute_features(records, VIEWS, PREPROCESS, SquareCorner(), own_cache)
    again = compute_features(records, VIEWS, PREPROCESS, SquareCorner(), own_cache)
    for found in (table, again):
        corners = plain(found)
        assert corners.dtype == np.uint8
        assert corners.shape == (5, 2, 3)
        np.testing.assert_array_equal(corners[:, 0, 0], 20 + 3 * np.arange(5))


def test_a_table_gives_the_rows_and_views_that_are_asked_of_it(
    records: list[ImageRecord], own_cache: Path
) -> None:
    table, _ = computed(records, own_cache)
    each = [[table.take(np.array([r]), np.array([v]))[0] for v in (0, 1)] for r in range(5)]
    wanted_views = [(4, 1), (0, 0), (4, 0), (2, 1), (4, 1)]
    rows, views = (np.array(part) for part in zip(*wanted_views, strict=True))
    taken = table.take(rows, views)
    assert np.abs(each[4][0] - each[4][1]).max() > 0  # views differ
    for got, (row, view) in zip(taken, wanted_views, strict=True):
        np.testing.assert_array_equal(got, each[row][view])


@pytest.mark.parametrize("change", ["nothing", "an image", "order", "views", "extractor"])
def test_a_tables_fingerprint_stands_for_all_that_its_rows_are_made_of(
    records: list[ImageRecord], own_cache: Path, change: str
) -> None:
    first = computed(records, own_cache)[0].fingerprint()
    other, views, extractor = list(records), VIEWS, CountingExtractor()
    if change == "an image":
        other[3] = image_record(records[3].path.with_name("new.png"), 77)
    elif change == "order":
        other.reverse()
    elif change == "views":
        views = replace(VIEWS, seed=8)
    elif change == "extractor":
        extractor = CountingExtractor("other")
    again = computed(other, own_cache, views, extractor=extractor)[0].fingerprint()
    assert (again == first) == (change == "nothing")


def test_no_records_no_features(own_cache: Path) -> None:
    table, seen = computed([], own_cache)
    assert (table.kept, table.views, seen) == ((), 0, 0)


def test_warnings_are_counted_whether_images_are_read_or_found_again(
    records: list[ImageRecord],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = tmp_path / "deep.png"
    grey = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48)
    Image.fromarray(grey).save(deep)
    odd = ImageRecord(deep, 0, "deep", sha256=sha256_of_file(deep))
    kind = (
        "its brightest value is … of …, so it uses … of … bits, these were scaled to the whole "
        "range"
    )
    stored: list[dict[str, list[str]]] = []
    add = ArrayStore.add

    def adding(store: ArrayStore, *rows: Any) -> None:
        """A kill here or later leaves no row of an image whose warnings are lost."""
        stored.append(json.loads((store.folder / "warnings.json").read_text()))
        add(store, *rows)

    monkeypatch.setattr(ArrayStore, "add", adding)
    for seen in (12, 0):
        table, views = computed([*records, odd], own_cache)
        assert [set(each) for each in stored] == [{odd.sha256}]
        assert views == seen
        assert table.warned == {kind: 1}
    assert computed(records, own_cache)[0].warned == {}


def test_warnings_that_another_run_wrote_meanwhile_stay(
    records: list[ImageRecord], tmp_path: Path
) -> None:
    one, other = features._Warnings(tmp_path), features._Warnings(tmp_path)
    one.note(records[0], ["deep"])
    other.note(records[1], ["odd"])
    one.save()
    other.save()
    again = features._Warnings(tmp_path)
    assert [again.of(record) for record in records[:3]] == [["deep"], ["odd"], ()]
