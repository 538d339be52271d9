"""The head learns, is folded exactly, and a resumed training is the unbroken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import FitConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.metrics import auc
from pneumoscope.training.store import KEY_BYTES, ArrayStore
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.head import (
    LabelledFeatures,
    TrainedHead,
    _folded,
    train_head,
)
from pneumoscope.training.network import BACKBONE_WIDTH, Architecture, HeadWeights

CONFIG = FitConfig(epochs=8, batch_size=32)


def table(folder: Path, images: int, views: int, seed: int) -> LabelledFeatures:
    """Features of very different scales, of which twenty tell the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    scale = np.geomspace(1e-3, 10, BACKBONE_WIDTH)
    store = ArrayStore(folder, "<f2", (BACKBONE_WIDTH,))
    keys = []
    for k in range(images):
        row = tuple(f"{seed}-{k}-{v}".encode().ljust(KEY_BYTES) for v in range(views))
        values = generator.standard_normal((views, BACKBONE_WIDTH)) + 3.0
        values[:, ::51] += 1.0 * labels[k]
        store.add(row, (values * scale).astype(np.float32))
        keys.append(row)
    found = FeatureTable(store, tuple(keys), tuple(range(images)), ())
    return LabelledFeatures(found, labels.astype(np.int64))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledFeatures, LabelledFeatures]:
    folder = tmp_path_factory.mktemp("features")
    return table(folder / "t", 300, 2, 1), table(folder / "v", 100, 1, 2)


def trained(parts, checkpoint: Path, config: FitConfig = CONFIG, seed: int = 4) -> TrainedHead:
    return train_head(*parts, Architecture(), config, seed, auc, checkpoint)


def logits_of(head: HeadWeights, features: np.ndarray) -> np.ndarray:
    hidden = np.maximum(features @ head.hidden_kernel + head.hidden_bias, 0)
    return (hidden @ head.output_kernel + head.output_bias)[:, 0]


def test_learns_and_yields_a_head_for_raw_features(parts, tmp_path: Path) -> None:
    found = trained(parts, tmp_path / "c.npz")
    rows = np.arange(100)
    raw = parts[1].table.take(rows, np.zeros_like(rows))
    logits = logits_of(found.weights, raw)
    score = auc(parts[1].labels, 1 / (1 + np.exp(-logits.astype(np.float64))))
    assert score > 0.9
    assert score == pytest.approx(found.history[found.best].val_auc, abs=1e-3)


def test_folding_is_exact() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((5, 12)).astype(np.float32)
    centre, scale = features.mean(0), features.std(0)
    weights = [generator.standard_normal(s).astype(np.float32) for s in ((12, 7), 7, (7, 1), 1)]
    standardised = logits_of(HeadWeights(*weights), (features - centre) / scale)
    np.testing.assert_allclose(
        logits_of(_folded(weights, centre, scale), features), standardised, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_resumed_equals_unbroken(parts, tmp_path: Path, schedule) -> None:
    config = replace(CONFIG, schedule=schedule, plateau_patience=1, min_delta=0.05)
    whole = trained(parts, tmp_path / "whole.npz", config)

    class StopError(Exception):
        pass

    def failing_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
        failing_score.calls += 1  # type: ignore[attr-defined]
        if failing_score.calls == 4:  # type: ignore[attr-defined]
            raise StopError
        return auc(labels, probabilities)

    failing_score.calls = 0  # type: ignore[attr-defined]
    checkpoint = tmp_path / "broken.npz"
    with pytest.raises(StopError):
        train_head(*parts, Architecture(), config, 4, failing_score, checkpoint)
    resumed = trained(parts, checkpoint, config)
    for mine, theirs in zip(resumed.history, whole.history, strict=True):
        assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)
    np.testing.assert_array_equal(resumed.weights.hidden_kernel, whole.weights.hidden_kernel)
    np.testing.assert_array_equal(resumed.weights.output_bias, whole.weights.output_bias)


def test_seed_matters_and_repeats(parts, tmp_path: Path) -> None:
    short = replace(CONFIG, epochs=1)
    one, same, other = (
        trained(parts, tmp_path / f"{k}.npz", short, seed).weights.output_kernel
        for k, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


def test_one_class_is_refused(parts, tmp_path: Path) -> None:
    train, val = parts
    only = LabelledFeatures(val.table, np.ones_like(val.labels))
    with pytest.raises(DataError, match="val: found 0 NORMAL and 100 PNEUMONIA images"):
        trained((train, only), tmp_path / "c.npz")


@pytest.mark.parametrize("damage", ["torn", "empty", "text", "other settings", "lacks an array"])
def test_a_checkpoint_that_cant_be_used_begins_anew(
    parts, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    checkpoint, short = tmp_path / "c.npz", replace(CONFIG, epochs=2)
    whole = trained(parts, checkpoint, short)
    content = checkpoint.read_bytes()
    if damage == "other settings":
        trained(parts, checkpoint, replace(short, batch_size=16))
    elif damage == "lacks an array":
        with np.load(checkpoint) as saved:
            kept = {name: saved[name] for name in saved.files if name != "best1"}
        np.savez(checkpoint, **kept)
    else:
        torn = {"torn": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint"}
        checkpoint.write_bytes(torn[damage])
    again = trained(parts, checkpoint, short)
    assert "left aside, training begins anew" in caplog.text
    np.testing.assert_array_equal(again.weights.hidden_kernel, whole.weights.hidden_kernel)


def test_a_finished_checkpoint_is_not_trained_again(parts, tmp_path: Path) -> None:
    checkpoint, short = tmp_path / "c.npz", replace(CONFIG, epochs=2)
    whole, again = trained(parts, checkpoint, short), trained(parts, checkpoint, short)
    assert again.history == whole.history  # seconds too: no epoch ran


def test_diverging_says_so(parts, tmp_path: Path) -> None:
    wild = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"fit\.learning_rate: at 1e\+30"):
        trained(parts, tmp_path / "c.npz", wild)


def test_a_full_disk_leaves_the_checkpoint_before(
    parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "c.npz"
    whole = trained(parts, tmp_path / "whole.npz")
    real, calls = np.savez, []

    def savez(stream: object, **arrays: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(stream, **arrays)

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(OSError, match="No space left"):
        trained(parts, checkpoint)
    assert [path.name for path in tmp_path.glob("*c.npz*")] == ["c.npz"]
    resumed = trained(parts, checkpoint)
    np.testing.assert_array_equal(resumed.weights.hidden_kernel, whole.weights.hidden_kernel)
