"""The head learns, is folded exactly, and a resumed training equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import FitConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.metrics import auc
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.training import head_training
from pneumoscope.training.features import KEY_BYTES, ArrayStore, FeatureTable
from pneumoscope.training.head_training import (
    LabelledFeatures,
    TrainedHead,
    _folded,
    _HeadPhase,
    _origin,
    train_head,
)
from pneumoscope.training.network import HeadWeights
from support.heads import BACKBONE_WIDTH

Parts = tuple[LabelledFeatures, LabelledFeatures]

CONFIG = FitConfig(epochs=4, batch_size=50, plateau_patience=1, min_delta=0.01)


def table(folder: Path, images: int, views: int, seed: int) -> LabelledFeatures:
    """Features of very different scales, of which twenty separate the classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    scale = np.geomspace(1e-3, 10, BACKBONE_WIDTH)
    values = generator.standard_normal((images, views, BACKBONE_WIDTH)) + 3.0
    values[:, :, ::51] += 1.5 * labels[:, None, None]
    keys = [
        tuple(f"{seed}-{k}-{v}".encode().ljust(KEY_BYTES) for v in range(views))
        for k in range(images)
    ]
    store = ArrayStore(folder, "<f2", (BACKBONE_WIDTH,))
    rows = (values * scale).astype(np.float32).reshape(-1, BACKBONE_WIDTH)
    store.add([key for row in keys for key in row], rows)
    found = FeatureTable(store, tuple(keys), tuple(range(images)), ())
    return LabelledFeatures(found, labels.astype(np.int64))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("features")
    return table(folder / "t", 200, 2, 1), table(folder / "v", 80, 1, 2)


def trained(
    parts: Parts, checkpoint: Path, config: FitConfig = CONFIG, seed: int = 4
) -> TrainedHead:
    train, val = parts
    return train_head(train, val, Architecture(), config, seed, auc, checkpoint)


@pytest.fixture(scope="module")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> TrainedHead:
    return trained(parts, tmp_path_factory.mktemp("whole") / "c.npz")


def logits_of(head: HeadWeights, features: np.ndarray) -> np.ndarray:
    hidden = np.maximum(features @ head.hidden_kernel + head.hidden_bias, 0)
    return np.asarray((hidden @ head.output_kernel + head.output_bias)[:, 0])


def test_learns_and_yields_a_head_for_raw_features(parts: Parts, whole: TrainedHead) -> None:
    rows = np.arange(len(parts[1].labels))
    raw = parts[1].table.take(rows, np.zeros_like(rows))
    logits = logits_of(whole.weights, raw)
    score = auc(parts[1].labels, 1 / (1 + np.exp(-logits.astype(np.float64))))
    assert score > 0.85
    assert score == pytest.approx(whole.history[whole.best].val_auc, abs=1e-3)


def test_the_order_of_magnitude_of_a_feature_does_not_matter(
    parts: Parts, tmp_path: Path, whole: TrainedHead
) -> None:
    """Standardisation removes scale: a factor of a power of two changes nothing."""
    train, val = (scaled(part, tmp_path / str(k)) for k, part in enumerate(parts))
    found = trained((train, val), tmp_path / "c.npz", replace(CONFIG, epochs=1))
    assert found.history[0].loss == pytest.approx(whole.history[0].loss, rel=1e-4)
    assert found.history[0].val_loss == pytest.approx(whole.history[0].val_loss, rel=1e-4)


def scaled(part: LabelledFeatures, folder: Path) -> LabelledFeatures:
    """The same features, eight times as large."""
    keys = [key for row in part.table.keys for key in row]
    store = ArrayStore(folder, "<f2", (BACKBONE_WIDTH,))
    store.add(keys, 8 * part.table.store.take(keys))
    return replace(part, table=replace(part.table, store=store))


def test_every_epoch_shows_each_image_once_in_one_of_its_views(parts: Parts) -> None:
    train, val = parts
    phase = _HeadPhase(None, train, val, 64, seed=4)
    count = len(train.labels)
    each = np.stack(
        [train.table.take(np.arange(count), np.full(count, view)) for view in (0, 1)], 1
    )
    each = (each - phase.centre) / phase.scale
    orders = []
    for epoch in (0, 1):
        shown = list(phase.batches(epoch))
        assert [len(labels) for _, labels in shown] == [64, 64, 64, 8]
        assert len(shown) == phase.steps
        features = np.concatenate([features for features, _ in shown])
        # The first ten features identify every view.
        distances = np.abs(each[None, :, :, :10] - features[:, None, None, :10]).max(-1)
        image, view = np.unravel_index(distances.reshape(count, -1).argmin(1), (count, 2))
        assert distances.min((1, 2)).max() < 1e-5
        assert sorted(image.tolist()) == list(range(count))
        assert 0.3 < view.mean() < 0.7
        labels = np.concatenate([labels for _, labels in shown])
        np.testing.assert_array_equal(labels, train.labels[image])
        orders.append(image.tolist())
    assert orders[0] != orders[1]


def test_standardised_features_have_mean_0_and_deviation_1(parts: Parts) -> None:
    rows = np.arange(len(parts[0].labels))
    phase = _HeadPhase(None, parts[0], parts[1], 64, seed=4)
    plain = (parts[0].table.take(rows, np.zeros_like(rows)) - phase.centre) / phase.scale
    np.testing.assert_allclose(plain.mean(0, dtype=np.float64), 0, atol=1e-3)
    deviations = plain.std(0, dtype=np.float64)
    assert deviations.max() < 1.001
    # The median deviation is about 0.1, the floor a twentieth of it, the second one's 0.001.
    assert np.median(deviations) == pytest.approx(1, abs=1e-3)
    assert deviations[1] == pytest.approx(0.2, abs=0.05)


def test_folding_is_exact() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((5, 12)).astype(np.float32)
    centre, scale = features.mean(0), features.std(0)
    weights = [generator.standard_normal(s).astype(np.float32) for s in ((12, 7), 7, (7, 1), 1)]
    standardised = logits_of(HeadWeights(*weights), (features - centre) / scale)
    np.testing.assert_allclose(
        logits_of(_folded(weights, centre, scale), features), standardised, rtol=1e-4, atol=1e-4
    )


def test_resumed_equals_unbroken(parts: Parts, whole: TrainedHead, tmp_path: Path) -> None:
    """Interrupted in the third epoch, after its steps and before its checkpoint."""

    class StopError(Exception):
        pass

    scored = []

    def failing_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
        scored.append(1)
        if len(scored) == 3:
            raise StopError
        return auc(labels, probabilities)

    checkpoint = tmp_path / "broken.npz"
    with pytest.raises(StopError):
        train_head(parts[0], parts[1], Architecture(), CONFIG, 4, failing_score, checkpoint)
    resumed = trained(parts, checkpoint)
    for mine, theirs in zip(resumed.history, whole.history, strict=True):
        assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)
    for name in HeadWeights.__dataclass_fields__:
        mine, theirs = (getattr(found.weights, name) for found in (resumed, whole))
        np.testing.assert_array_equal(mine, theirs)
    again = trained(parts, checkpoint)
    assert again.history == resumed.history  # seconds too: finished epochs are not repeated


def test_few_features_are_looked_up_once_and_many_in_every_epoch(
    parts: Parts, whole: TrainedHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = FeatureTable.take

    def counted(self: FeatureTable, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        taken.append(len(rows))
        return take(self, rows, views)

    monkeypatch.setattr(FeatureTable, "take", counted)
    held = trained(parts, tmp_path / "held.npz")
    once = len(taken)
    monkeypatch.setattr(head_training, "_HELD_ROWS", 200 * 2 - 1)
    looked_up = trained(parts, tmp_path / "looked-up.npz")
    epochs = len(whole.history)
    assert (once, len(taken) - once) == (3, 2 + epochs)  # all, scales, val; scales, val, epochs
    for one in (held, looked_up):
        for name in ("hidden_kernel", "output_bias"):
            wanted = getattr(whole.weights, name)
            np.testing.assert_array_equal(getattr(one.weights, name), wanted)


def test_seed_matters_and_repeats(parts: Parts, tmp_path: Path) -> None:
    short = replace(CONFIG, epochs=1)
    one, same, other = (
        trained(parts, tmp_path / f"{k}.npz", short, seed).weights.output_kernel
        for k, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_class_is_rejected(parts: Parts, tmp_path: Path, split: str) -> None:
    train, val = (
        replace(part, labels=np.ones_like(part.labels)) if name == split else part
        for name, part in zip(("train", "val"), parts, strict=True)
    )
    count = len((train if split == "train" else val).labels)
    with pytest.raises(DataError, match=f"{split}: found 0 NORMAL and {count} PNEUMONIA images"):
        trained((train, val), tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


PLAIN = Architecture()


@pytest.mark.parametrize("change", ["features", "labels", "architecture", "settings", "seed"])
def test_whatever_decides_how_training_goes_is_in_its_origin(parts: Parts, change: str) -> None:
    def origin(
        parts: Parts = parts,
        architecture: Architecture = PLAIN,
        config: FitConfig = CONFIG,
        seed: int = 4,
    ) -> str:
        return _origin(parts, architecture, config, seed)

    train, val = parts
    changes: dict[str, dict[str, Any]] = {
        "features": {"parts": (replace(train, table=val.table), val)},
        "labels": {"parts": (train, replace(val, labels=1 - val.labels))},
        "architecture": {"architecture": Architecture(dropout=0.3)},
        "settings": {"config": replace(CONFIG, batch_size=16)},
        "seed": {"seed": 5},
    }
    assert origin(**changes[change]) != origin() == origin()


def test_a_checkpoint_of_other_settings_is_kept(parts: Parts, tmp_path: Path) -> None:
    checkpoint, short = tmp_path / "c.npz", replace(CONFIG, epochs=1)
    trained(parts, checkpoint, short)
    before = checkpoint.read_bytes()
    with pytest.raises(UsageError, match="belongs to other data or settings"):
        trained(parts, checkpoint, replace(short, dropout=0.1))
    assert checkpoint.read_bytes() == before


def test_diverging_is_reported(parts: Parts, tmp_path: Path) -> None:
    wild = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"fit\.learning_rate: at 1e\+30"):
        trained(parts, tmp_path / "c.npz", wild)
