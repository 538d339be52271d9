"""The running average of weights over training steps, which generalises better than the last ones.

Comes in: a Keras model after every step. Goes out: its weights' exponential moving average
(Polyak & Juditsky, 1992; decay as in Morales-Brotons et al., arXiv:2411.18704), the statistics of
batch normalisation among them. Kept on the host, so any backend will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
