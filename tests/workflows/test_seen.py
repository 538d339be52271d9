"""The hashes in a new bundle: of its own images and of those of its weights and teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.config import RECIPES, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import count_overlap, training_hashes
from pneumoscope.errors import BundleError
from pneumoscope.graph.bundle_files import SEEN_TABLE
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle, write_revised
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.seen import (
    add_to_bundle,
    caution_on_validation,
    hashes_of_earlier,
    hashes_of_training,
)
from pneumoscope.workflows.train import train
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
    table = hashes_of_training(records[15:20], records[20:24], hashes_of_earlier(config))[
        SEEN_TABLE
    ]
    assert sum(name.endswith("_salt") for name in table) == 3  # the first model counts once
    seen = count_overlap(table, records)
    assert (seen.identical, seen.chosen_on) == (20, 4)
    alone = hashes_of_training(records[15:20], records[20:24])
    assert count_overlap(alone[SEEN_TABLE], records).identical == 5


def test_a_teacher_without_hashes_is_reported(
    records: Sequence[ImageRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="pneumoscope")
    teacher = small_bundle(tmp_path / "teacher").folder
    assert load_bundle(teacher).table(SEEN_TABLE) is None
    config = TrainConfig(weights="none", teachers=(str(teacher),))
    table = hashes_of_training(records[:5], (), hashes_of_earlier(config))[SEEN_TABLE]
    seen = count_overlap(table, records)
    assert (seen.identical, seen.known) == (5, False)  # images of the teacher may be among them
    assert count_overlap(table, records[5:]).in_words().startswith("It is not known whether")
    assert "holds no hashes of its training images" in caplog.text


def test_weights_without_hashes_are_reported(
    records: Sequence[ImageRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="pneumoscope")
    weights = small_bundle(tmp_path / "weights").folder
    earlier = hashes_of_earlier(TrainConfig(weights=str(weights)))
    assert not count_overlap(earlier, records).known
    assert caution_on_validation(earlier, records) == ""
    known = trained_on(tmp_path, records[:8])
    both = TrainConfig(weights=str(weights), teachers=(str(weights), str(known)))
    table = hashes_of_earlier(both)
    assert table is not None
    assert sorted(name for name in table if name.endswith("salt")) == ["0_salt", "1_salt"]
    seen = count_overlap(table, records)
    assert (seen.identical, seen.known) == (8, False)
    assert f"--weights {weights}: its bundle holds no hashes" in caplog.text


def test_validation_images_that_the_initial_weights_were_trained_on_are_reported(
    records: Sequence[ImageRecord], tmp_path: Path
) -> None:
    earlier = hashes_of_earlier(TrainConfig(weights=str(trained_on(tmp_path, records[:8]))))
    found = caution_on_validation(earlier, records[5:12])
    assert found.startswith(
        "The initial weights or teachers were trained on 3 of the 7 validation images"
    )
    assert caution_on_validation(earlier, records[8:12]) == ""
    assert caution_on_validation(None, records) == ""
    # A second stage on the same split has the same validation images: that is no leak.
    same_split = training_hashes({"train": records[:5], "val": records[5:12]})
    assert caution_on_validation(same_split, records[5:12]) == ""


@pytest.mark.parametrize("role", ["weights", "teachers"])
def test_a_damaged_bundle_is_rejected_before_training(tmp_path: Path, role: str) -> None:
    data = write_phantoms(tmp_path / "phantoms", 30, 2, size=64)
    bundle = small_bundle(tmp_path / "bundle").folder
    (bundle / "notes.txt").touch()
    change: dict[str, Any] = {role: str(bundle) if role == "weights" else (str(bundle),)}
    config = replace(RECIPES["scratch"], weights="none", keep_val=True)
    with pytest.raises(BundleError, match=r"'notes.txt' is in the bundle"):
        train(data, tmp_path / "run", replace(config, **change))
    assert not (tmp_path / "run").exists()


def test_the_images_of_the_shipped_model_count_as_well(records: Sequence[ImageRecord]) -> None:
    earlier = hashes_of_earlier(TrainConfig(weights="bundled"))
    table = hashes_of_training(records[:5], (), earlier)[SEEN_TABLE]
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
    table = hashes_of_training(own, (), hashes_of_earlier(config))
    model = write_revised(tmp_path / "model", made, manifest, "", table).folder
    lines = [f"{one.path},{one.label},{one.patient},train" for one in own]
    split = tmp_path / "split.csv"
    split.write_text("\n".join(["path,label,patient,split", *lines]), encoding="utf-8")
    again = add_to_bundle(model, split).table(SEEN_TABLE)
    assert again is not None
    assert count_overlap(again, records).identical == 8 + 7
