"""Fine-tuning from cached activations: each image once per epoch, scored as the whole network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import AugmentConfig, FitConfig, PreprocessConfig, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.extractor import KerasExtractor
from pneumoscope.training.features import (
    KEY_BYTES,
    ArrayStore,
    FeatureTable,
    Views,
    compute_features,
)
from pneumoscope.training.head_training import LabelledFeatures, build_finetuning_schedule
from pneumoscope.training.network import build_tail, initialise_randomly, with_head
from support.heads import BOUNDARIES
from support.small_network import small_network

CONFIG = TrainConfig(seed=3, fit=FitConfig(batch_size=8))
PREPROCESS = PreprocessConfig(size=64)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def backbone(small: None) -> Any:
    backbone = build_backbone(64)
    initialise_randomly(backbone, 0)
    return backbone


def numbered(folder: Path, images: int, views: int) -> LabelledFeatures:
    """Activations (2, 2, 6) of noise; the first number is the image, the second the view."""
    noise = np.random.default_rng(0).standard_normal((images, views, 2, 2, 6))
    noise[..., 0, 0, 0] = np.arange(images)[:, None]
    noise[..., 0, 0, 1] = np.arange(views)
    store = ArrayStore(folder, "<f2", (2, 2, 6))
    keys = tuple(
        tuple(f"{k}-{v}".encode().ljust(KEY_BYTES) for v in range(views)) for k in range(images)
    )
    for row, values in zip(keys, noise.astype(np.float32), strict=True):
        store.add(row, values)
    table = FeatureTable(store, keys, tuple(range(images)), ())
    return LabelledFeatures(table, np.arange(images) % 2)


class Mean:
    """A stand-in for a network: the mean of a batch's activations."""

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        assert len(batch) == 64  # one shape, so that it is compiled once
        return np.asarray(batch.mean((1, 2, 3))[:, None])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledFeatures, LabelledFeatures]:
    folder = tmp_path_factory.mktemp("tail")
    return numbered(folder / "train", 19, 3), numbered(folder / "val", 70, 1)


def test_an_epoch_shows_every_image_once_in_one_of_its_views(
    parts: tuple[LabelledFeatures, LabelledFeatures],
) -> None:
    (phase,) = build_finetuning_schedule(Mean(), parts[0], parts[1], CONFIG, {}).phases
    assert phase.steps == 2  # of 19 images: full batches only

    def shown(epoch: int) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        for batch, labels in phase.batches(epoch):
            assert (batch.shape, batch.dtype) == ((8, 2, 2, 6), np.float32)
            images, views = batch[:, 0, 0, 0].astype(int), batch[:, 0, 0, 1].astype(int)
            np.testing.assert_array_equal(labels, images % 2)
            seen += zip(images.tolist(), views.tolist(), strict=True)
        return seen

    epochs = [shown(epoch) for epoch in range(6)]
    assert all(len({image for image, _ in epoch}) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert shown(2) == epochs[2]  # identical on every call
    assert {image for epoch in epochs for image, _ in epoch} == set(range(19))
    assert {view for epoch in epochs for _, view in epoch} == {0, 1, 2}


def test_every_validation_image_is_scored_once_in_order(
    parts: tuple[LabelledFeatures, LabelledFeatures],
) -> None:
    (phase,) = build_finetuning_schedule(Mean(), parts[0], parts[1], CONFIG, {}).phases
    rows = np.arange(70)
    wanted = parts[1].table.take(rows, np.zeros_like(rows)).mean((1, 2, 3))
    np.testing.assert_allclose(phase.val_logits(), wanted, rtol=1e-6)


@pytest.mark.parametrize("block", ["conv5", "conv4"])
def test_logits_from_the_cache_are_those_of_the_whole_network(
    backbone: Any, tmp_path: Path, own_cache: Path, block: str
) -> None:
    records = index(write_phantoms(tmp_path / "phantoms", 6, 1, size=80, splits=False)).records
    extractor = KerasExtractor(backbone, BOUNDARIES[block])
    views = Views(1, AugmentConfig(), 0)
    table = compute_features(records, views, PREPROCESS, extractor, own_cache)
    part = LabelledFeatures(table, np.array([record.label for record in records]))
    tail = with_head(build_tail(backbone, BOUNDARIES[block]), Architecture(), 1)
    (phase,) = build_finetuning_schedule(tail, part, part, CONFIG, {}).phases
    whole = with_head(backbone, Architecture(), 1)
    whole.get_layer("head").set_weights(tail.get_layer("head").get_weights())
    preprocessor = Preprocessor(PREPROCESS)
    images = np.stack([preprocessor(read_image(record.path).pixels) for record in records])
    wanted = np.asarray(whole.predict_on_batch(images))[:, 0]
    assert np.ptp(wanted) > 0.01 * np.abs(wanted).max()  # the images differ
    np.testing.assert_allclose(phase.val_logits(), wanted, atol=3e-3 * np.abs(wanted).max())
