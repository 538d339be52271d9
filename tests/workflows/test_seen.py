"""The hashes in a new bundle: of its own images and of those of its weights and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.config import TrainConfig
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import count_overlap, training_hashes
from pneumoscope.graph.bundle_files import SEEN_TABLE
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle, write_revised
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.seen import add_to_bundle, hashes_of_training
from support.small_bundle import small_bundle


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ImageRecord]:
    return index(write_phantoms(tmp_path_factory.mktemp("seen") / "phantoms", 40, 7)).records


def trained_on(folder: Path, images: Sequence[ImageRecord]) -> Path:
    """A bundle with the hashes of `images`."""
    made = small_bundle(folder / "before")
    table = training_hashes({"train": images, "val": ()})
    return write_revised(folder / "model", made, made.manifest, "", {SEEN_TABLE: table}).folder


def test_the_images_of_weights_and_teachers_are_recorded(
    records: Sequence[ImageRecord], tmp_path: Path
) -> None:
    first, second = (
        trained_on(tmp_path / "a", records[:8]),
        trained_on(tmp_path / "b", records[8:15]),
    )
    config = TrainConfig(weights=str(first), teachers=(str(second), str(first)))
    table = hashes_of_training(records[15:20], records[20:24], config)[SEEN_TABLE]
    assert sum(name.endswith("_salt") for name in table) == 3  # the first model counts once
    seen = count_overlap(table, records)
    assert (seen.identical, seen.chosen_on) == (20, 4)
    alone = hashes_of_training(records[15:20], records[20:24], TrainConfig(weights="none"))
    assert count_overlap(alone[SEEN_TABLE], records).identical == 5


def test_a_teacher_without_hashes_is_reported(
    records: Sequence[ImageRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="pneumoscope")
    teacher = small_bundle(tmp_path / "teacher").folder
    assert load_bundle(teacher).table(SEEN_TABLE) is None
    config = TrainConfig(weights="none", teachers=(str(teacher),))
    table = hashes_of_training(records[:5], (), config)[SEEN_TABLE]
    assert count_overlap(table, records).identical == 5
    assert "holds no hashes of its training images" in caplog.text


def test_weights_without_hashes_are_reported(
    records: Sequence[ImageRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="pneumoscope")
    weights = small_bundle(tmp_path / "weights").folder
    hashes_of_training(records[:5], (), TrainConfig(weights=str(weights)))
    assert f"--weights {weights}: its bundle holds no hashes" in caplog.text


def test_the_images_of_the_shipped_model_count_as_well(records: Sequence[ImageRecord]) -> None:
    table = hashes_of_training(records[:5], (), TrainConfig(weights="bundled"))[SEEN_TABLE]
    assert sum(name.endswith("_salt") for name in table) >= 2
    assert count_overlap(table, records).identical == 5


def test_hashes_that_are_added_later_keep_those_of_earlier_models(
    records: Sequence[ImageRecord], tmp_path: Path
) -> None:
    earlier = trained_on(tmp_path / "a", records[:8])
    own, config = records[8:15], TrainConfig(weights=str(earlier))
    made = load_bundle(small_bundle(tmp_path / "b").folder)
    images = replace(made.manifest.training_data, images=len(own))
    manifest = replace(made.manifest, training_data=images)
    table = hashes_of_training(own, (), config)
    model = write_revised(tmp_path / "model", made, manifest, "", table).folder
    lines = [f"{one.path},{one.label},{one.patient},train" for one in own]
    split = tmp_path / "split.csv"
    split.write_text("\n".join(["path,label,patient,split", *lines]), encoding="utf-8")
    again = add_to_bundle(model, split).table(SEEN_TABLE)
    assert again is not None
    assert count_overlap(again, records).identical == 8 + 7
