"""Training phases from pixels: which images, at which size, augmented and scored how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import FitConfig, PreprocessConfig, ScratchConfig, TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.end_to_end import (
    Squares,
    _normalised,
    build_phase_schedule,
    check_sizes,
    stored_side,
)
from pneumoscope.training.features import KEY_BYTES, ArrayStore, FeatureTable
from pneumoscope.training.guidance import Teacher
from pneumoscope.training.loop import PhaseSchedule
from pneumoscope.training.network import initialise_randomly, with_head
from pneumoscope.training.runtime import load_keras
from support.small_network import small_network

SIZES = ScratchConfig(sizes=(32, 48), shares=(0.3, 0.7))
CONFIG = TrainConfig(
    seed=5,
    preprocess=PreprocessConfig(size=48, normalisation="standardise"),
    fit=FitConfig(epochs=10, batch_size=8),
)
SIDE = stored_side(48)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def squares_of(folder: Path, count: int, seed: int = 0) -> Squares:
    """Images of noise; the first pixel of each is its number."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), np.uint8)
    pixels[:, 0, 0] = np.arange(count)
    store = ArrayStore(folder, "u1", (SIDE, SIDE))
    keys = [f"{seed}-{k}".encode().ljust(KEY_BYTES) for k in range(count)]
    store.add(keys, pixels)
    table = FeatureTable(store, tuple((key,) for key in keys), tuple(range(count)), ())
    return Squares(table, np.arange(count) % 2, np.arange(count) % 3 - 1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Squares, Squares]:
    folder = tmp_path_factory.mktemp("squares")
    return squares_of(folder / "train", 27), squares_of(folder / "val", 70, 1)


@pytest.fixture(scope="module")
def network(small: None) -> Any:
    backbone = build_backbone(None)
    initialise_randomly(backbone, 0)
    return with_head(backbone, Architecture(), 0)


@pytest.fixture(scope="module")
def schedule(network: Any, parts: tuple[Squares, Squares]) -> PhaseSchedule:
    return build_phase_schedule(network, parts, CONFIG, SIZES, {})


@pytest.mark.parametrize("size", [32, 96, 112, 128, 160, 224])
def test_stored_images_are_a_third_larger_and_even(size: int) -> None:
    side = stored_side(size)
    assert side % 2 == 0
    assert abs(side - size * 4 / 3) <= 1


@pytest.mark.parametrize(
    ("sizes", "shares", "said"),
    [
        ((), (), r"scratch.sizes: found \[\]"),
        ((16, 32), (0.5, 0.5), r"scratch.sizes: found \[16, 32\]"),
        ((32, 50), (0.5, 0.5), "wanted multiples of 16, 32 or more"),
        ((32, 48), (1.0,), "wanted 2 positive numbers, one per size"),
        ((32,), (), "wanted 1 positive numbers"),
        ((32, 48), (0.5, 0.4), "that add up to 1"),
        ((32, 48), (1.0, 0.0), "positive"),
        ((32, 48), (1.5, -0.5), "positive"),
    ],
)
def test_sizes_that_cant_be_trained_at_are_wrong_usage(
    sizes: tuple[int, ...], shares: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_sizes(ScratchConfig(sizes=sizes, shares=shares))


def test_a_teacher_of_any_size_can_teach(network: Any, parts: tuple[Squares, Squares]) -> None:
    """99 pixels are no whole number of JPEG's blocks, as 299 of Inception are not."""
    keras = load_keras()
    images = keras.Input((99, 99, 3))
    logits = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(images))
    teacher = Teacher(keras.Model(images, [logits, images[..., 0]]), PreprocessConfig(size=99))
    schedule = build_phase_schedule(network, parts, CONFIG, SIZES, {}, (teacher,))
    inputs, _ = next(schedule.phases[0].batches(0))
    found = schedule.phases[0].model(inputs, training=True)
    assert np.isfinite(np.asarray(found)).all()


def test_sizes_follow_one_another_by_their_shares(schedule: PhaseSchedule) -> None:
    taught = [schedule.phases.index(schedule.phase(epoch)) for epoch in range(10)]
    assert taught == [0] * 3 + [1] * 7
    shapes = [next(phase.batches(0))[0]["squares"].shape for phase in schedule.phases]
    assert shapes == [(8, stored_side(32), stored_side(32)), (8, SIDE, SIDE)]


def test_an_epoch_shows_every_image_at_most_once_in_an_order_of_its_own(
    schedule: PhaseSchedule, parts: tuple[Squares, Squares]
) -> None:
    phase = schedule.phases[1]
    assert phase.steps == 3  # of 27 images: full batches only

    def shown(epoch: int) -> list[int]:
        seen: list[int] = []
        for inputs, labels in phase.batches(epoch):
            images = inputs["squares"]
            assert (images.shape, images.dtype) == ((8, SIDE, SIDE), np.uint8)
            numbers = images[:, 0, 0]
            np.testing.assert_array_equal(labels, np.eye(2)[parts[0].labels[numbers]])
            seen += numbers.tolist()
        return seen

    orders = [shown(epoch) for epoch in range(3)]
    assert all(len(set(order)) == 24 for order in orders)
    assert orders[0] != orders[1]
    assert shown(1) == orders[1]  # identical on every call, as a resumed run needs
    assert set().union(*orders) == set(range(27))  # every image is used in some epoch


def test_fewer_images_than_a_batch_fill_one(
    network: Any, parts: tuple[Squares, Squares], tmp_path: Path
) -> None:
    few = squares_of(tmp_path / "few", 3)
    phase = build_phase_schedule(network, (few, parts[1]), CONFIG, SIZES, {}).phases[1]
    ((inputs, _),) = phase.batches(0)
    images = inputs["squares"]
    assert sorted(set(images[:, 0, 0].tolist())) == [0, 1, 2]


@pytest.mark.parametrize(("epochs", "taught"), [(1, [1]), (2, [0, 1]), (3, [0, 0, 1])])
def test_training_ends_at_the_last_size_however_short_it_is(
    network: Any, parts: tuple[Squares, Squares], epochs: int, taught: list[int]
) -> None:
    config = replace(CONFIG, fit=replace(CONFIG.fit, epochs=epochs))
    sizes = replace(SIZES, shares=(0.9, 0.1))
    schedule = build_phase_schedule(network, parts, config, sizes, {})
    assert [schedule.phases.index(schedule.phase(epoch)) for epoch in range(epochs)] == taught
    assert schedule.keep_from == taught.index(1)


def test_smaller_images_are_made_with_antialiasing(parts: tuple[Squares, Squares]) -> None:
    rows = np.array([4, 2])
    stored = parts[0].take(rows, SIDE)
    np.testing.assert_array_equal(stored[:, 0, 0], rows)
    small = parts[0].take(rows, 32)
    wanted = Image.fromarray(stored[1]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small[1], np.asarray(wanted))


@pytest.mark.parametrize("normalisation", ["imagenet", "standardise"])
def test_training_normalises_as_inference_does(
    normalisation: Literal["imagenet", "standardise"],
) -> None:
    config = PreprocessConfig(size=32, normalisation=normalisation)
    grey = np.random.default_rng(2).random((3, 32, 32), np.float32)
    grey[1] *= 0.2
    grey[2] = 0.4  # constant: its deviation is 0
    found = np.asarray(_normalised(load_keras().ops.convert_to_tensor(grey), config))
    np.testing.assert_allclose(found, Preprocessor(config).normalise(grey), atol=3e-4)


def test_validation_is_scored_by_the_network_as_it_stands(
    schedule: PhaseSchedule, network: Any, parts: tuple[Squares, Squares]
) -> None:
    """At the phase's size, not augmented, and 70 images in batches of one shape."""
    for phase, size in zip(schedule.phases, SIZES.sizes, strict=True):
        found = phase.val_logits()
        assert found.shape == (70,)
        assert found.dtype == np.float32
        grey = (parts[1].take(np.arange(70), size) / np.float32(255)).astype(np.float32)
        preprocessor = Preprocessor(replace(CONFIG.preprocess, size=size))
        wanted = np.asarray(network.predict_on_batch(preprocessor.normalise(grey)))[:, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
        np.testing.assert_array_equal(found, phase.val_logits())


def test_lessons_share_the_networks_weights(schedule: PhaseSchedule, network: Any) -> None:
    shared = {id(variable) for variable in network.trainable_variables}
    for phase in schedule.phases:
        assert {id(v) for v in phase.model.trainable_variables} == shared
    changing = schedule.variables()
    assert len({id(v) for v in changing}) == len(changing)
    seeds = [v for v in changing if "seed" in v.path]
    assert (
        len(seeds) == 3
    )  # one augmentation layer per phase and one dropout: a checkpoint needs all of them
