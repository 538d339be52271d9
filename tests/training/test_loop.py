"""The training loop checked by hand, and resumed bit by bit after interruptions anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pneumoscope.config import FitConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.training.loop import (
    Epoch,
    Fitted,
    PhaseSchedule,
    check_classes,
    class_weights,
    fit,
    sigmoid,
)
from pneumoscope.training.optimizer import learning_rate
from pneumoscope.training.runtime import load_keras

WIDTH, BATCH, STEPS = 5, 8, 10
GENERATOR = np.random.default_rng(0)
LABELS = (np.arange(BATCH * STEPS - 3) % 4 == 0).astype(np.int64)
"""One image in four has pneumonia; the last batch of an epoch is not full."""

FEATURES = GENERATOR.standard_normal((len(LABELS), WIDTH)).astype(np.float32) + LABELS[:, None]
VAL_LABELS = np.arange(20) % 2
VAL = GENERATOR.standard_normal((20, WIDTH)).astype(np.float32) + VAL_LABELS[:, None]

ALL_STATE = FitConfig(
    epochs=4,
    schedule="one-cycle",
    learning_rate=0.02,
    keep="last",
    weight_decay=0.1,
    accumulate=4,  # no divisor of an epoch's steps: gradients wait from one epoch to the next
    label_smoothing=0.1,
    ema=0.9,
)
"""Everything that has a state of its own: moments, gathered gradients, averages, random numbers."""

BY_SCORES = FitConfig(
    epochs=4, schedule="plateau", plateau_patience=1, min_delta=0.2, learning_rate=0.02
)
"""What follows the scores: the step size, the epoch that is kept."""


class DeadError(Exception):
    """Simulates SIGKILL."""


class TrainingPhase:
    """All features in a new order each epoch, noise added on the way by a layer with a seed."""

    steps = STEPS

    def __init__(self, network: Any, seed: int, noise: float = 0.2) -> None:
        keras = load_keras()
        inputs = keras.Input((WIDTH,))
        noisy = keras.layers.GaussianNoise(noise, seed=seed)(inputs)
        self.model = keras.Model(inputs, network(noisy))
        self._network = network
        self.dies_at: tuple[int, int] | None = None
        self.rates: list[float] = []
        self.validated: list[list[np.ndarray]] = []

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.default_rng([7, epoch]).permutation(len(LABELS))
        for step in range(STEPS):
            if (epoch, step) == self.dies_at:
                raise DeadError
            if epoch or step:
                rate = self.model.optimizer.learning_rate
                self.rates.append(float(load_keras().ops.convert_to_numpy(rate)))
            rows = order[step * BATCH : (step + 1) * BATCH]
            yield FEATURES[rows], LABELS[rows]

    def val_logits(self) -> np.ndarray:
        self.validated.append([np.array(w) for w in self._network.get_weights()])
        return np.asarray(self._network.predict_on_batch(VAL), np.float32)[:, 0]


def network(dropout: float = 0.3) -> Any:
    """Two dense layers, batch normalisation and dropout, from fixed weights."""
    keras = load_keras()
    layers = keras.layers
    initial = [keras.initializers.GlorotUniform(seed=k) for k in (0, 1)]
    inputs = keras.Input((WIDTH,))
    x = layers.Dense(6, kernel_initializer=initial[0], name="hidden")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dropout(dropout, seed=5)(x)
    return keras.Model(inputs, layers.Dense(1, kernel_initializer=initial[1], name="out")(x))


def schedule() -> PhaseSchedule:
    """Two phases, as two image sizes are: the second begins at the third epoch."""
    trained = network()
    phases = [TrainingPhase(trained, 11), TrainingPhase(trained, 12)]
    return PhaseSchedule(trained, phases, until=(2, 4), factors={"hidden/kernel": 0.5})


def mean_gap(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """A score for tests: difference of the classes' mean probabilities."""
    return float(probabilities[labels == 1].mean() - probabilities[labels == 0].mean())


def fitted(
    made: PhaseSchedule,
    config: FitConfig,
    checkpoint: Path,
    score: Callable[..., float] = mean_gap,
    origin: str = "here",
    progress: Progress = SILENT,
) -> Fitted:
    return fit(made, LABELS, VAL_LABELS, config, score, checkpoint, origin, progress)


def timeless(history: tuple[Epoch, ...]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in history]


def assert_same(mine: Fitted, theirs: Fitted) -> None:
    assert timeless(mine.history) == timeless(theirs.history)
    assert mine.best == theirs.best
    for one, other in zip(mine.weights, theirs.weights, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("config", [ALL_STATE, BY_SCORES], ids=["all state", "by scores"])
def test_killed_in_every_epoch_it_ends_as_if_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: FitConfig
) -> None:
    """Each process here builds its models again, as after a kill; each dies in the next epoch."""
    whole = fitted(schedule(), config, tmp_path / "whole.npz")
    assert len({epoch.learning_rate for epoch in whole.history}) > 1
    checkpoint = tmp_path / "broken.npz"

    dying = schedule()
    dying.phases[0].dies_at = (0, 5)  # type: ignore[attr-defined] # before there is a checkpoint
    with pytest.raises(DeadError):
        fitted(dying, config, checkpoint)
    assert not checkpoint.exists()

    real, writes = np.savez, []

    def savez(stream: Any, **arrays: Any) -> None:
        writes.append(1)
        if len(writes) == 2:  # while the second checkpoint is written
            stream.write(b"half of it")
            raise OSError(28, "No space left on device")
        real(stream, **arrays)

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", savez)
        with pytest.raises(OSError, match="No space left"):
            fitted(schedule(), config, checkpoint)
    assert [path.name for path in tmp_path.glob("*broken*")] == ["broken.npz"]

    dying = schedule()
    dying.phases[1].dies_at = (2, 9)  # type: ignore[attr-defined] # the next phase's first
    with pytest.raises(DeadError):
        fitted(dying, config, checkpoint)

    def dying_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
        seen.append(1)
        if len(seen) == 2:  # all steps of the last epoch are done, none is saved
            raise DeadError
        return mean_gap(labels, probabilities)

    seen: list[int] = []
    with pytest.raises(DeadError):
        fitted(schedule(), config, checkpoint, dying_score)

    resumed = fitted(schedule(), config, checkpoint)
    assert_same(resumed, whole)
    finished = fitted(schedule(), config, checkpoint)  # nothing left to do
    assert finished.history == resumed.history  # seconds too
    assert_same(finished, whole)


def test_a_checkpoint_of_other_settings_stops_the_run_and_stays(tmp_path: Path) -> None:
    checkpoint, config = tmp_path / "c.npz", replace(BY_SCORES, epochs=1)
    first = fitted(schedule(), config, checkpoint, origin="one")
    saved = checkpoint.read_bytes()
    with pytest.raises(UsageError, match="belongs to other data or settings"):
        fitted(schedule(), config, checkpoint, origin="other")
    assert checkpoint.read_bytes() == saved
    assert_same(fitted(schedule(), config, checkpoint, origin="one"), first)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 2)])
def test_the_weights_that_were_scored_are_the_weights_that_are_kept(
    tmp_path: Path, ema: float, keep: Literal["best", "last"], kept: int
) -> None:
    """With weight averaging, the average is both scored and kept."""
    scores = iter([0.5, 0.9, 0.7])
    made = schedule()
    config = FitConfig(epochs=3, learning_rate=0.02, ema=ema, keep=keep)
    found = fitted(made, config, tmp_path / "c.npz", lambda *_: next(scores))
    assert found.best == kept
    validated = [weights for phase in made.phases for weights in phase.validated]  # type: ignore[attr-defined]
    for mine, theirs in zip(found.weights, validated[kept], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    present = made.network.get_weights()  # training continues from these, unaffected by the average
    difference = max(np.abs(a - b).max() for a, b in zip(present, validated[-1], strict=True))
    assert (difference > 1e-4) == bool(ema)


def test_stops_early_and_states_which_epoch_was_best(tmp_path: Path) -> None:
    scores = iter([0.5, 0.9, 0.7, 0.8, 0.6])
    config = FitConfig(epochs=5, stop_patience=2)
    found = fitted(schedule(), config, tmp_path / "c.npz", lambda *_: next(scores))
    assert [epoch.val_auc for epoch in found.history] == [0.5, 0.9, 0.7, 0.8]
    assert found.best == 1


def test_loss_is_the_class_weighted_smoothed_cross_entropy(tmp_path: Path) -> None:
    """At step size 0, so that all batches are scored by the same weights."""
    keras = load_keras()
    inputs = keras.Input((WIDTH,))
    linear = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    kernel, bias = (
        np.linspace(-1, 1, WIDTH, dtype=np.float32)[:, None],
        np.array([0.25], np.float32),
    )
    linear.set_weights([kernel, bias])
    made = PhaseSchedule(linear, [TrainingPhase(linear, 1, noise=0.0)])
    config = FitConfig(epochs=1, learning_rate=0.0, label_smoothing=0.2)
    found = fitted(made, config, tmp_path / "c.npz")

    def entropy(features: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
        p = 1 / (1 + np.exp(-(features.astype(np.float64) @ kernel + 0.25)[:, 0]))
        y = labels * (1 - smoothing) + smoothing / 2
        weights = np.where(
            labels == 1, len(LABELS) / LABELS.sum(), len(LABELS) / (1 - LABELS).sum()
        )
        return float(np.mean(weights / 2 * -(y * np.log(p) + (1 - y) * np.log(1 - p))))

    (epoch,) = found.history
    assert epoch.loss == pytest.approx(entropy(FEATURES, LABELS, 0.2), rel=1e-5)
    # Validation loss is computed without label smoothing.
    assert epoch.val_loss == pytest.approx(entropy(VAL, VAL_LABELS, 0.0), rel=1e-5)
    np.testing.assert_array_equal(found.weights[0], kernel)


def test_classes_weigh_what_they_lack_in_number() -> None:
    weights = class_weights(np.array([1, 1, 1, 0]))
    np.testing.assert_allclose(weights, [2.0, 2 / 3])
    assert weights[np.array([1, 1, 1, 0])].mean() == pytest.approx(1)


def test_every_step_has_the_rate_of_the_schedule(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, schedule="cosine", warmup=0.3, learning_rate=0.02)
    made = schedule()
    found = fitted(made, config, tmp_path / "c.npz")
    scores = [epoch.val_auc for epoch in found.history]
    wanted = [
        learning_rate(config, scores[:epoch], step / STEPS)
        for epoch in (0, 1)
        for step in range(STEPS)
    ]
    rates = made.phases[0].rates  # type: ignore[attr-defined] # each read one step later
    np.testing.assert_allclose(rates, wanted[:-1], rtol=1e-6)
    assert [epoch.learning_rate for epoch in found.history] == [wanted[STEPS - 1], wanted[-1]]


def test_a_step_size_that_diverges_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    wild = FitConfig(epochs=3, learning_rate=1e30)
    with pytest.raises(UsageError, match=r"fit\.learning_rate: at 1e\+30 .* epoch 1"):
        fitted(schedule(), wild, tmp_path / "c.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_class_is_rejected(split: str) -> None:
    parts = {"train": np.array([0, 1]), "val": np.array([1, 0])}
    check_classes(parts)
    with pytest.raises(DataError, match=f"{split}: found 0 NORMAL and 3 PNEUMONIA images"):
        check_classes({**parts, split: np.ones(3, np.int64)})
    with pytest.raises(DataError, match=f"{split}: found 0 NORMAL and 0 PNEUMONIA images"):
        check_classes({**parts, split: np.zeros(0, np.int64)})


def test_progress_counts_epochs_those_of_before_included(tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.total = 0
            self.counts: list[int] = []

        @contextmanager
        def task(self, title: str, total: int, unit: str) -> Iterator[Any]:
            self.total = total
            yield self

        def advance(self, count: int = 1, note: str = "") -> None:
            self.counts.append(count)
            if sum(self.counts) == 1:
                raise DeadError

    config, checkpoint = replace(BY_SCORES, epochs=2), tmp_path / "c.npz"
    progress = Counting()
    with pytest.raises(DeadError):  # once the first epoch's checkpoint is written
        fitted(schedule(), config, checkpoint, progress=progress)
    assert (progress.total, progress.counts) == (2, [0, 1])
    progress.counts = [1]
    fitted(schedule(), config, checkpoint, progress=progress)
    assert progress.counts == [1, 1, 1]


def test_lessons_follow_one_another() -> None:
    phases: list[Any] = ["first", "second", "third"]
    made = PhaseSchedule(None, phases, until=(2, 5, 9))
    first, second, third = phases
    assert [made.phase(epoch) for epoch in range(11)] == [first] * 2 + [second] * 3 + [third] * 6
    skipped = PhaseSchedule(
        None, phases, until=(0, 0, 9)
    )  # shares so small that they round to none
    assert skipped.phase(0) == third
    assert PhaseSchedule(None, phases[:1]).phase(5) == first


def test_variables_are_all_that_an_epoch_changes_each_once() -> None:
    made = schedule()
    found = made.variables()
    assert len({id(variable) for variable in found}) == len(found)
    inside = {id(v) for v in made.network.variables}
    assert inside < {id(v) for v in found}
    # Beyond the network's: the seed state of each phase's own noise.
    beyond = [variable.path for variable in found if id(variable) not in inside]
    assert len(beyond) == 2
    assert all("seed" in path for path in beyond)


def test_sigmoid_never_overflows() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([-1e30, -800, -2, 0, 2, 800, 1e30], np.float32))
    assert found.dtype == np.float64
    assert found[[0, 1, 3, 5, 6]].tolist() == [0, 0, 0.5, 1, 1]
    assert found[4] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found[2] + found[4] == pytest.approx(1)
