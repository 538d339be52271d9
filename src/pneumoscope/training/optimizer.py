"""Adam with decoupled weight decay, and its own step size for each group of weights.

Comes in: a model's variables, `FitConfig`, a factor per variable. Goes out: a Keras optimizer.
Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

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
