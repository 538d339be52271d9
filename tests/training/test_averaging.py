"""Weight averaging follows its formula step by step and leaves the model unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.training.optimizer import WeightAverage

DECAY = 0.9


class Model:
    """A stand-in for a network: weights of two shapes that change at random."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._weights = [self._draw((2, 3)), self._draw((4,))]

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._generator.standard_normal(shape).astype(np.float32)

    def walk(self) -> None:
        self._weights = [w + self._draw(w.shape) for w in self._weights]

    def get_weights(self) -> list[np.ndarray]:
        return [w.copy() for w in self._weights]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self._weights = [w.copy() for w in weights]


def walked(average: WeightAverage, model: Model, steps: int) -> None:
    for _ in range(steps):
        model.walk()
        average.step()


def assert_equal(mine: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_is_the_exponential_average_at_every_eighth_step() -> None:
    model = Model()
    average = WeightAverage(model, DECAY)
    wanted = [w.astype(np.float64) for w in model.get_weights()]
    for update in range(1, 31):
        walked(average, model, 8)
        kept = min(DECAY**8, update / (9 + update))
        now = model.get_weights()
        wanted = [kept * w + (1 - kept) * n for w, n in zip(wanted, now, strict=True)]
        for mine, theirs in zip(average.weights, wanted, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_later_updates_keep_the_share_that_was_asked_for() -> None:
    """After a jump of the weights from 0 to 1, what is left of 0 falls by decay^8 per update."""
    model = Model()
    model.set_weights([np.zeros((2, 3), np.float32), np.zeros(4, np.float32)])
    average = WeightAverage(model, DECAY)
    for _ in range(8 * 20):
        average.step()
    model.set_weights([np.ones((2, 3), np.float32), np.ones(4, np.float32)])
    for update in range(1, 5):
        for _ in range(8):
            average.step()
        np.testing.assert_allclose(average.weights[1], 1 - DECAY ** (8 * update), rtol=1e-5)


def test_the_random_start_is_soon_forgotten() -> None:
    model = Model()
    model.set_weights([np.full((2, 3), 1e5, np.float32), np.full(4, 1e5, np.float32)])
    average = WeightAverage(model, 0.9999)
    model.set_weights([np.ones((2, 3), np.float32), np.ones(4, np.float32)])
    for _ in range(8 * 30):
        average.step()
    np.testing.assert_allclose(average.weights[0], 1.0, rtol=1e-3)


def test_is_the_model_itself_until_there_is_something_to_average() -> None:
    """A training with fewer steps than one update must not return the random initialisation."""
    model = Model()
    average = WeightAverage(model, DECAY)
    for _ in range(7):
        walked(average, model, 1)
        assert_equal(average.weights, model.get_weights())
        with average.in_use():
            assert_equal(average.weights, model.get_weights())
    walked(average, model, 1)
    assert np.abs(average.weights[0] - model.get_weights()[0]).max() > 0.01


def test_in_use_puts_the_average_in_and_the_model_back() -> None:
    model = Model()
    average = WeightAverage(model, DECAY)
    walked(average, model, 19)
    own, averaged = model.get_weights(), average.weights
    assert np.abs(own[0] - averaged[0]).max() > 0.01
    with average.in_use():
        assert_equal(model.get_weights(), averaged)
    assert_equal(model.get_weights(), own)
    assert_equal(average.weights, averaged)


def test_the_model_is_put_back_after_an_error_too() -> None:
    model = Model()
    average = WeightAverage(model, DECAY)
    walked(average, model, 19)
    own = model.get_weights()
    with pytest.raises(KeyboardInterrupt), average.in_use():
        raise KeyboardInterrupt
    assert_equal(model.get_weights(), own)


def test_what_was_handed_out_does_not_move_with_it() -> None:
    model = Model()
    average = WeightAverage(model, DECAY)
    walked(average, model, 16)
    handed, kept = average.weights, [w.copy() for w in average.weights]
    walked(average, model, 16)
    assert_equal(handed, kept)


@pytest.mark.parametrize("steps", [0, 3, 8, 21])
def test_goes_on_from_its_state_as_if_unbroken(steps: int) -> None:
    whole, model = Model(), Model()
    unbroken, broken = WeightAverage(whole, DECAY), WeightAverage(model, DECAY)
    walked(unbroken, whole, steps)
    walked(broken, model, steps)
    resumed = WeightAverage(model, DECAY)
    resumed.restore([array.copy() for array in broken.state()])
    walked(unbroken, whole, 30)
    walked(resumed, model, 30)
    assert_equal(resumed.weights, unbroken.weights)
    assert_equal(resumed.state(), unbroken.state())
