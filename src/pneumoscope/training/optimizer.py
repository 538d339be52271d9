"""Optimiser, weight averaging, learning-rate schedules and early stopping.

`build_optimizer` makes Adam with decoupled weight decay and a step-size factor per variable
(Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019).

`WeightAverage` keeps an exponential moving average of the weights, which generalises better than
the last weights (Polyak & Juditsky, 1992; decay as in Morales-Brotons et al., arXiv:2411.18704). It
includes the statistics of batch normalisation and is kept on the host, so any backend works.

`learning_rate`, `best_epoch` and `should_stop` are pure functions of the configuration and of the
validation AUC of the finished epochs. They have no state, so a resumed run decides exactly as an
uninterrupted one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import FitConfig
from pneumoscope.training.runtime import load_keras

_EVERY = 8
"""Steps between updates; an average over hundreds of steps loses nothing by it."""

_START = 1 / 25
"""Start of a warm-up, as a share of the rate it rises to (as in one-cycle)."""

_ONE_CYCLE_WARMUP = 0.3


def build_optimizer(
    variables: Sequence[Any], config: FitConfig, factors: Mapping[str, float]
) -> Any:
    """A built Keras optimiser for trainable `variables`.

    Weight decay applies to kernels only, not to biases and batch normalisation. It is proportional
    to the step size, so the factors apply to it too.

    Args:
        variables: of a Keras model.
        config: provides `learning_rate`, `weight_decay` and `accumulate`.
        factors: variable path → factor of the step size; 1 where a path is not listed.
    """
    keras = load_keras()
    settings: dict[str, Any] = {"learning_rate": config.learning_rate}
    if config.accumulate > 1:
        settings["gradient_accumulation_steps"] = config.accumulate
    if factors:
        shares = [factors.get(v.path, 1.0) for v in variables]
        optimizer = _graded_adam()(shares, config.weight_decay, **settings)
    else:  # Keras' own class where possible: on Torch it updates all variables at once
        optimizer = keras.optimizers.Adam(weight_decay=config.weight_decay or None, **settings)
        flat = [v for v in variables if not _is_kernel(v)]
        optimizer.exclude_from_weight_decay(var_list=flat)
    optimizer.build(list(variables))
    return optimizer


def _is_kernel(variable: Any) -> bool:
    return len(variable.shape) > 1


@functools.cache
def _graded_adam() -> Any:
    """The optimiser's class, made on first use because Keras is imported late."""
    keras = load_keras()

    class GradedAdam(keras.optimizers.Adam):  # type: ignore[misc,name-defined]
        """Adam with a step-size factor for some of the variables.

        Keras would decay every weight by the full step size, so decay is applied here.
        """

        def __init__(self, shares: Sequence[float], decay: float, **settings: Any) -> None:
            super().__init__(**settings)
            self._shares, self._decay = list(shares), decay

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            # Index lookup as in Keras' optimisers, because TensorFlow variables have no path here.
            rate = learning_rate * self._shares[self._get_variable_index(variable)]
            if self._decay and _is_kernel(variable):
                self.assign(variable, variable * (1.0 - self._decay * rate))
            super().update_step(gradient, variable, rate)

    return GradedAdam


class WeightAverage:
    """Exponential moving average of a model's weights, float32, with `decay` per step.

    The decay is smaller at first, so that the random initialisation is forgotten. Until the first
    update the average equals the model's weights.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self._model = model
        self._decay = decay**_EVERY
        self._steps = 0
        self._average = self._present()

    @property
    def weights(self) -> list[NDArray[np.float32]]:
        """The average, float32, in the order of `get_weights()`."""
        if self._steps < _EVERY:
            return self._present()
        return [w.copy() for w in self._average]

    def _present(self) -> list[NDArray[np.float32]]:
        return [np.array(w, np.float32) for w in self._model.get_weights()]

    def step(self) -> None:
        """Update the average after one more training step."""
        self._steps += 1
        if self._steps % _EVERY:
            return
        updates = self._steps / _EVERY
        kept = np.float32(min(self._decay, updates / (9 + updates)))
        for average, now in zip(self._average, self._model.get_weights(), strict=True):
            average *= kept
            average += (1 - kept) * np.asarray(now, np.float32)

    def state(self) -> list[NDArray[Any]]:
        """The arrays that a checkpoint must hold."""
        return [np.array(self._steps), *self._average]

    def restore(self, state: list[NDArray[Any]]) -> None:
        """Restore what `state` returned."""
        self._steps = int(state[0])
        self._average = [np.array(w, np.float32) for w in state[1:]]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Temporarily set the model's weights to the average."""
        kept = [np.array(w) for w in self._model.get_weights()]
        self._model.set_weights(self.weights)
        try:
            yield
        finally:
            self._model.set_weights(kept)


def learning_rate(config: FitConfig, scores: Sequence[float], within: float = 0.0) -> float:
    """The step size after `scores` (validation AUC per finished epoch) and `within` of an epoch.

    `constant` does not change. `cosine` falls to `min_learning_rate` (Loshchilov & Hutter, SGDR,
    ICLR 2017, one cycle). `one-cycle` rises and falls along a cosine (Smith & Topin,
    arXiv:1708.07120); without `warmup` it rises over 30 % of the steps. `plateau` multiplies by
    `plateau_factor` after `plateau_patience` epochs without a gain of `min_delta`. `step` does so
    every `step_epochs`. With `warmup`, every schedule first rises from 1/25 of the rate.

    Args:
        config: the schedule and its parameters.
        scores: one per finished epoch.
        within: finished share of the current epoch's steps, 0 to 1.
    """
    warmup = config.warmup
    if config.schedule == "one-cycle" and not warmup:
        warmup = _ONE_CYCLE_WARMUP
    done = min((len(scores) + within) / config.epochs, 1.0)
    if done < warmup:
        risen = done / warmup
        if config.schedule == "one-cycle":
            risen = 0.5 * (1.0 - math.cos(math.pi * risen))
        return config.learning_rate * (_START + (1.0 - _START) * risen)
    return _after_warmup(config, scores, (done - warmup) / (1.0 - warmup))


def _after_warmup(config: FitConfig, scores: Sequence[float], progress: float) -> float:
    first, last = config.learning_rate, min(config.min_learning_rate, config.learning_rate)
    if config.schedule == "constant":
        return first
    if config.schedule == "step":
        return max(first * config.plateau_factor ** (len(scores) // config.step_epochs), last)
    if config.schedule == "plateau":
        return max(first * config.plateau_factor ** _plateaus(config, scores), last)
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _plateaus(config: FitConfig, scores: Sequence[float]) -> int:
    """How often `plateau_patience` epochs passed without a gain."""
    falls, best, waited = 0, -math.inf, 0
    for score in scores:
        if score > best + config.min_delta:
            best, waited = score, 0
            continue
        waited += 1
        if waited >= config.plateau_patience:
            falls, waited = falls + 1, 0
    return falls


def best_epoch(config: FitConfig, scores: Sequence[float], first: int = 0) -> int:
    """Index of the epoch whose weights are kept.

    The last epoch if `config.keep` is `last`, else the first that no later one beats by
    `min_delta`. Epochs before `first` don't compete; until it, the latest is kept.
    """
    last = len(scores) - 1
    if config.keep == "last":
        return last
    best = max(min(first, last), 0)
    for epoch in range(best, last + 1):
        if scores[epoch] > scores[best] + config.min_delta:
            best = epoch
    return best


def should_stop(config: FitConfig, scores: Sequence[float], first: int = 0) -> bool:
    """Whether training ends: all epochs are done, or `stop_patience` epochs brought no gain."""
    if len(scores) >= config.epochs:
        return True
    return (
        bool(scores) and len(scores) - 1 - best_epoch(config, scores, first) >= config.stop_patience
    )
