"""Adam with decoupled weight decay, and its own step size for each group of weights.

Comes in: a model's variables, `FitConfig`, a factor per variable. Goes out: a Keras optimizer.
Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pneumoscope.config import FitConfig
from pneumoscope.training.runtime import load_keras


def build_optimizer(model: Any, config: FitConfig, factors: Mapping[str, float]) -> Any:
    """An optimizer for the trainable variables of `model`, its own variables made.

    Weight decay holds for kernels alone: biases and batch normalisation have none.

    Args:
        model: a Keras model.
        config: `learning_rate`, `weight_decay` and `accumulate` are taken from it.
        factors: variable path → its share of the step size; 1 where it is not named.
    """
    keras = load_keras()
    settings: dict[str, Any] = {"learning_rate": config.learning_rate}
    if config.accumulate > 1:
        settings["gradient_accumulation_steps"] = config.accumulate
    if config.weight_decay:
        settings["weight_decay"] = config.weight_decay
    # Keras' own class where it will do: on Torch it updates all variables at once.
    optimizer = (
        _graded_adam()(factors, **settings) if factors else keras.optimizers.Adam(**settings)
    )
    if config.weight_decay:
        flat = [v for v in model.trainable_variables if len(v.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=flat)
    optimizer.build(model.trainable_variables)
    return optimizer


@functools.cache
def _graded_adam() -> Any:
    """The optimizer's class, made on first use, since Keras is imported late."""
    keras = load_keras()

    class GradedAdam(keras.optimizers.Adam):  # type: ignore[misc,name-defined]
        """Adam with a factor of the step size for some of the variables."""

        def __init__(self, factors: Mapping[str, float], **settings: Any) -> None:
            super().__init__(**settings)
            self._factors = dict(factors)

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            factor = self._factors.get(variable.path, 1.0)
            super().update_step(gradient, variable, learning_rate * factor)

    return GradedAdam
