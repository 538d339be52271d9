"""Two training images into one, with the labels of both.

Comes in: a batch in random order, how unevenly to mix. Goes out: each image laid over the one
before it, and how much of each label it carries. Between the two it is a film between two films,
for which the network must say something between two answers. Zhang et al., "mixup: Beyond
Empirical Risk Minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.training.runtime import load_keras

_MOSTLY_OWN = 0.75
"""From this share of its own on, an image counts as showing itself alone."""


def draw_shares(generator: np.random.Generator, count: int, evenness: float) -> NDArray[np.float32]:
    """Share (n,) of its own that each image keeps, 0.5 to 1; the rest is of the one before it.

    From Beta(evenness, evenness), the larger part: near 0 most stay whole, at 1 all shares are
    equally likely.
    """
    drawn = generator.beta(evenness, evenness, count)
    return np.maximum(drawn, 1.0 - drawn).astype(np.float32)


def mixed(images: Any, shares: Any) -> Any:
    """Images (n, side, side), each over the one before it (the last before the first), in Keras."""
    ops = load_keras().ops
    own = ops.reshape(shares, (-1, 1, 1))
    return own * images + (1.0 - own) * ops.roll(images, 1, axis=0)


def mixed_lungs(lungs: Any, shares: Any) -> Any:
    """Where lungs are in images that `mixed` makes: (n, side, side), in Keras.

    Those of the image underneath count where it keeps more than a quarter.
    """
    ops = load_keras().ops
    seen = ops.cast(ops.reshape(shares, (-1, 1, 1)) < _MOSTLY_OWN, "float32")
    return ops.maximum(lungs, seen * ops.roll(lungs, 1, axis=0))


def mixed_labels(classes: NDArray[np.float32], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of either class (n, 2) in images that `mixed` makes of such of `classes` (n, 2).

    Each row of either adds up to 1.
    """
    return shares[:, None] * classes + (1.0 - shares[:, None]) * np.roll(classes, 1, axis=0)
