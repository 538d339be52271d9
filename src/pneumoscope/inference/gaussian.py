"""How far a vector lies from those that were seen: a normal distribution of few dimensions.

Comes in: vectors of one kind, or the arrays that one was stored as. Goes out: distances. Knows
nothing of what the vectors describe.

Method: Mahalanobis distance to the nearest class mean under a covariance that the classes share
(Lee et al. 2018, arXiv:1807.03888), the covariance being that of probabilistic principal components
(Tipping and Bishop 1999, doi:10.1111/1467-9868.00196): what the leading components leave over
counts, by one deviation for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_PER_COMPONENT = 4
"""Vectors that there are at least for each component; of fewer the last ones would be chance."""

_LEAST_DEVIATION = 1e-6
"""Where all vectors agree, another one is this far away."""


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A distribution of vectors (d,).

    Attributes:
        means: one per class, float32 (classes, d).
        axes: leading components, orthonormal but for rounding to float16, float32 (d, k).
        deviations: along each of them, and of every dimension that is left: float32 (k + 1,).
    """

    means: FloatArray
    axes: FloatArray
    deviations: FloatArray

    def distances(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Distances (n,) of vectors (n, d), each to its nearest mean; about √d is usual."""
        leading, rest = self.deviations[:-1], float(self.deviations[-1])
        nearest = np.full(len(vectors), np.inf)
        for mean in self.means:
            centred = (vectors - mean).astype(np.float32)
            along = centred @ self.axes
            left = _squared(centred) - _squared(along)
            square = _squared(along / leading) + np.maximum(left, 0.0) / rest**2
            nearest = np.minimum(nearest, square)
        distances: NDArray[np.float64] = np.sqrt(nearest)
        return distances

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of a bundle's table."""
        return {
            f"{name}.means": self.means,
            f"{name}.axes": self.axes.astype(np.float16),
            f"{name}.deviations": self.deviations,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Gaussian:
        """What `to_arrays` gave.

        Raises:
            ValueError: arrays are missing, don't fit together, or are no usable numbers.
        """
        parts = [arrays.get(f"{name}.{part}") for part in ("means", "axes", "deviations")]
        means, axes, deviations = (np.empty(0) if part is None else part for part in parts)
        if means.ndim != 2 or axes.ndim != 2 or deviations.shape != (axes.shape[1] + 1,):
            raise ValueError(f"the arrays of {name!r} are missing or don't fit together")
        if means.shape[1] != axes.shape[0] or not len(means):
            raise ValueError(f"{name!r} has means {means.shape} for axes {axes.shape}")
        if not all(np.isfinite(part).all() for part in (means, axes)) or not (deviations > 0).all():
            raise ValueError(f"{name!r} holds numbers that are not finite, or no deviation")
        return cls(*(part.astype(np.float32) for part in (means, axes, deviations)))


def _squared(vectors: FloatArray) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.square(vectors, dtype=np.float64).sum(1)
    return lengths


def fit_gaussian(
    vectors: NDArray[np.floating[Any]], components: int, classes: NDArray[np.int64] | None = None
) -> Gaussian:
    """The distribution of vectors (n, d), n ≥ 8, with at most `components` leading components.

    Args:
        vectors: what was seen.
        components: at most; never more than a quarter of the vectors.
        classes: the class of each, (n,) from 0 up; without it there is one.
    """
    vectors = vectors.astype(np.float64)
    of_class = np.zeros(len(vectors), np.int64) if classes is None else classes
    means = np.stack([vectors[of_class == each].mean(0) for each in np.unique(of_class)])
    centred = vectors - means[np.searchsorted(np.unique(of_class), of_class)]
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(components, len(vectors) // _PER_COMPONENT, vectors.shape[1] - 1)
    leading = variances[::-1][:kept]
    rest = (variances.sum() - leading.sum()) / (vectors.shape[1] - kept)
    deviations = np.sqrt(np.maximum([*leading, rest], _LEAST_DEVIATION**2))
    return Gaussian(
        means.astype(np.float32),
        axes[:, ::-1][:, :kept].astype(np.float16).astype(np.float32),
        deviations.astype(np.float32),
    )
