"""Adam with decoupled weight decay, and its own step size for each group of weights.

Comes in: a model's variables, `FitConfig`, a factor per variable. Goes out: a Keras optimizer.
Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

The running average of weights over training steps, which generalises better than the last ones.

Comes in: a Keras model after every step. Goes out: its weights' exponential moving average
(Polyak & Juditsky, 1992; decay as in Morales-Brotons et al., arXiv:2411.18704), the statistics of
batch normalisation among them. Kept on the host, so any backend will do.

Learning rate, stopping and the best epoch, as pure functions of what the epochs scored so far.

Comes in: the config, the validation AUC of each finished epoch, the share of the present epoch
that is done. Goes out: a number or a verdict. Nothing here has state, so a resumed run decides
exactly as an unbroken one.
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


def build_optimizer(
    variables: Sequence[Any], config: FitConfig, factors: Mapping[str, float]
) -> Any:
    """An optimizer for trainable `variables`, its own variables made.

    Weight decay holds for kernels alone: biases and batch normalisation have none. It is a share
    of the step, so a factor holds for it too.

    Args:
        variables: those of a Keras model.
        config: `learning_rate`, `weight_decay` and `accumulate` are taken from it.
        factors: variable path → its share of the step size; 1 where it is not named.
    """
    keras = load_keras()
    settings: dict[str, Any] = {"learning_rate": config.learning_rate}
    if config.accumulate > 1:
        settings["gradient_accumulation_steps"] = config.accumulate
    if factors:
        shares = [factors.get(v.path, 1.0) for v in variables]
        optimizer = _graded_adam()(shares, config.weight_decay, **settings)
    else:  # Keras' own class where it will do: on Torch it updates all variables at once
        optimizer = keras.optimizers.Adam(weight_decay=config.weight_decay or None, **settings)
        flat = [v for v in variables if not _is_kernel(v)]
        optimizer.exclude_from_weight_decay(var_list=flat)
    optimizer.build(list(variables))
    return optimizer


def _is_kernel(variable: Any) -> bool:
    return len(variable.shape) > 1


@functools.cache
def _graded_adam() -> Any:
    """The optimizer's class, made on first use, since Keras is imported late."""
    keras = load_keras()

    class GradedAdam(keras.optimizers.Adam):  # type: ignore[misc,name-defined]
        """Adam with a factor of the step size for some of the variables.

        Keras would decay every weight by the whole step size, so decay is done here.
        """

        def __init__(self, shares: Sequence[float], decay: float, **settings: Any) -> None:
            super().__init__(**settings)
            self._shares, self._decay = list(shares), decay

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            # As Keras' optimizers find their moments: TensorFlow's variables here have no path.
            rate = learning_rate * self._shares[self._get_variable_index(variable)]
            if self._decay and _is_kernel(variable):
                self.assign(variable, variable * (1.0 - self._decay * rate))
            super().update_step(gradient, variable, rate)

    return GradedAdam


_EVERY = 8
"""Steps between updates: an average over hundreds of steps loses nothing by it."""


class WeightAverage:
    """The average of `model`'s weights, float32, with `decay` per step.

    Early on the decay is smaller, so that the random start is forgotten. Until the first update
    the average is the model itself.
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
        """Take note of the model after one more step."""
        self._steps += 1
        if self._steps % _EVERY:
            return
        updates = self._steps / _EVERY
        kept = np.float32(min(self._decay, updates / (9 + updates)))
        for average, now in zip(self._average, self._model.get_weights(), strict=True):
            average *= kept
            average += (1 - kept) * np.asarray(now, np.float32)

    def state(self) -> list[NDArray[Any]]:
        """What a checkpoint must hold."""
        return [np.array(self._steps), *self._average]

    def restore(self, state: list[NDArray[Any]]) -> None:
        """Go on from what `state` gave."""
        self._steps = int(state[0])
        self._average = [np.array(w, np.float32) for w in state[1:]]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model with the average's weights for a while, then with its own again."""
        kept = [np.array(w) for w in self._model.get_weights()]
        self._model.set_weights(self.weights)
        try:
            yield
        finally:
            self._model.set_weights(kept)


_START = 1 / 25
"""Where a warm-up begins, as a share of the rate it rises to (as one-cycle has it)."""

_ONE_CYCLE_WARMUP = 0.3


def learning_rate(config: FitConfig, scores: Sequence[float], within: float = 0.0) -> float:
    """The step size after `scores` (validation AUC per finished epoch) and `within` of an epoch.

    `constant` stays; `cosine` falls to `min_learning_rate` at the end (Loshchilov & Hutter, SGDR,
    ICLR 2017, one cycle); `one-cycle` rises and falls along a cosine (Smith & Topin,
    arXiv:1708.07120), over 30 % of the steps where no `warmup` is given; `plateau` multiplies by
    `plateau_factor` after `plateau_patience` epochs without a gain of `min_delta`; `step` does so
    every `step_epochs`. With `warmup`, each begins by rising from a 25th.

    Args:
        config: the schedule and its numbers.
        scores: one per finished epoch.
        within: share of the present epoch's steps that are done, 0 to 1.
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


def best_epoch(config: FitConfig, scores: Sequence[float]) -> int:
    """Index of the epoch whose weights are kept.

    The last one if `config.keep` says so, else the first that none beats by `min_delta`.
    """
    if config.keep == "last":
        return len(scores) - 1
    best = 0
    for epoch, score in enumerate(scores):
        if score > scores[best] + config.min_delta:
            best = epoch
    return best


def should_stop(config: FitConfig, scores: Sequence[float]) -> bool:
    """Whether training ends now: all epochs done, or `stop_patience` of them without a gain."""
    if len(scores) >= config.epochs:
        return True
    return bool(scores) and len(scores) - 1 - best_epoch(config, scores) >= config.stop_patience
