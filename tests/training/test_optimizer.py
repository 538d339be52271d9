"""Step sizes by group, weight decay of kernels only, and gradient accumulation."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.config import FitConfig
from pneumoscope.training.optimizer import build_optimizer
from pneumoscope.training.runtime import load_keras

RATE = 0.01


class Trained:
    """A kernel and a bias, and the optimizer that moves them."""

    def __init__(self, config: FitConfig, factors: dict[str, float] | None = None) -> None:
        keras = load_keras()
        generator = np.random.default_rng(0)
        shapes = {"kernel": (3, 4), "bias": (4,)}
        self._variables = [
            keras.Variable(generator.standard_normal(shape).astype(np.float32), name=name)
            for name, shape in shapes.items()
        ]
        self.optimizer = build_optimizer(self._variables, config, factors or {})

    def step(self, *gradients: np.ndarray) -> None:
        ops = load_keras().ops
        tensors = [ops.convert_to_tensor(gradient) for gradient in gradients]
        self.optimizer.apply(tensors, self._variables)

    @property
    def values(self) -> list[np.ndarray]:
        ops = load_keras().ops
        return [np.array(ops.convert_to_numpy(variable)) for variable in self._variables]


def gradients(count: int, seed: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    shapes = ((3, 4), (4,))
    return [
        (
            generator.standard_normal(shapes[0]).astype(np.float32),
            generator.standard_normal(shapes[1]).astype(np.float32),
        )
        for _ in range(count)
    ]


def trained(
    config: FitConfig, factors: dict[str, float] | None = None, steps: int = 5
) -> list[np.ndarray]:
    found = Trained(config, factors)
    for pair in gradients(steps):
        found.step(*pair)
    return found.values


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_factor_is_a_step_size_of_its_own(decay: float) -> None:
    """The kernel moves at a tenth of the rate; the bias, without a factor, at the full rate."""
    config = FitConfig(learning_rate=RATE, weight_decay=decay)
    graded = trained(config, {"kernel": 0.1})
    slow = trained(FitConfig(learning_rate=RATE * 0.1, weight_decay=decay))
    np.testing.assert_allclose(graded[0], slow[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(graded[1], trained(config)[1], rtol=1e-5, atol=1e-6)
    assert np.abs(graded[0] - trained(config)[0]).max() > RATE


def test_factors_of_one_change_nothing() -> None:
    config = FitConfig(learning_rate=RATE, weight_decay=0.3)
    for mine, theirs in zip(
        trained(config, {"kernel": 1.0, "bias": 1.0}), trained(config), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_factor_of_nothing_freezes_decay_included() -> None:
    config = FitConfig(learning_rate=RATE, weight_decay=0.3)
    before = Trained(config).values
    kernel, bias = trained(config, {"kernel": 0.0})
    np.testing.assert_array_equal(kernel, before[0])
    assert np.abs(bias - before[1]).max() > RATE


@pytest.mark.parametrize("factors", [{}, {"bias": 0.5}], ids=["plain", "graded"])
def test_only_kernels_decay_and_by_the_rate(factors: dict[str, float]) -> None:
    found = Trained(FitConfig(learning_rate=RATE, weight_decay=0.2), factors)
    kernel, bias = found.values
    found.step(np.zeros_like(kernel), np.zeros_like(bias))
    np.testing.assert_allclose(found.values[0], kernel * (1 - RATE * 0.2), rtol=1e-6)
    np.testing.assert_array_equal(found.values[1], bias)


@pytest.mark.parametrize("factors", [{}, {"kernel": 0.5}], ids=["plain", "graded"])
def test_gathered_gradients_are_one_step_of_their_mean(factors: dict[str, float]) -> None:
    config = FitConfig(learning_rate=RATE, weight_decay=0.1)
    gathering = Trained(FitConfig(learning_rate=RATE, weight_decay=0.1, accumulate=3), factors)
    plain = Trained(config, factors)
    for round_ in range(2):  # nothing of the first is left in the second
        three = gradients(3, seed=round_)
        before = gathering.values
        for count, pair in enumerate(three, 1):
            gathering.step(*pair)
            if count < 3:
                np.testing.assert_array_equal(gathering.values[0], before[0])
        plain.step(*(np.mean(each, axis=0) for each in zip(*three, strict=True)))
        for mine, theirs in zip(gathering.values, plain.values, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factors", [{}, {"kernel": 0.5}], ids=["plain", "graded"])
def test_the_rate_of_the_moment_holds(factors: dict[str, float]) -> None:
    """Schedules set it before every step."""
    found = Trained(FitConfig(learning_rate=RATE), factors)
    before = found.values
    found.optimizer.learning_rate = 0.0
    found.step(*gradients(1)[0])
    np.testing.assert_array_equal(found.values[0], before[0])
    found.optimizer.learning_rate = 10 * RATE
    found.step(*gradients(1)[0])
    assert np.abs(found.values[1] - before[1]).max() > 5 * RATE


def test_trains_a_keras_model_by_its_variables_paths() -> None:
    """Compiled, as in the loop, where TensorFlow's variables have no paths."""
    keras = load_keras()
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(1, name="dense")
    model = keras.Model(inputs, dense(inputs))
    config = FitConfig(learning_rate=RATE)
    optimizer = build_optimizer(model.trainable_variables, config, {"dense/kernel": 0.25})
    model.compile(optimizer=optimizer, loss="mse")
    before = model.get_weights()
    model.train_on_batch(np.ones((2, 3), np.float32), np.full((2, 1), 9.0, np.float32))
    pairs = zip(model.get_weights(), before, strict=True)
    kernel, bias = (np.abs(now - then) for now, then in pairs)
    np.testing.assert_allclose(kernel, RATE * 0.25, rtol=1e-3)  # Adam's first step is the rate
    np.testing.assert_allclose(bias, RATE, rtol=1e-3)
