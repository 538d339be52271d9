"""Scores on any scale, brought to 0–1 for the evaluation and back to their own units.

All metrics but those of calibration depend on the order of scores only, so a straight line from
the scores' range to 0–1 changes none of them. Whether a score is a probability decides whether
calibration, Brier score and ECE are reported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.errors import DataError
from pneumoscope.evaluation.ranked_metrics import FloatArray


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """The range of a score.

    Attributes:
        low: the score that becomes 0.
        high: the score that becomes 1.
        probability: whether the score is a probability, which stays as it is.
    """

    low: float = 0.0
    high: float = 1.0
    probability: bool = True

    @classmethod
    def of(cls, scores: ArrayLike, threshold: float | None) -> ScoreScale:
        """The scale of scores and their threshold: probabilities if all lie in [0, 1].

        Raises:
            DataError: a score is not finite, or scores differ by less than can be kept apart.
        """
        values = np.asarray(scores, np.float64)
        bounds = values if threshold is None else np.append(values, threshold)
        if not bounds.size:
            return cls()
        if not np.isfinite(bounds).all():
            raise DataError("scores: found a number that is not finite. Correct or remove it.")
        low, high = float(bounds.min()), float(bounds.max())
        if low >= 0.0 and high <= 1.0:
            return cls()
        if low == high:
            low, high = low - 0.5, high + 0.5
        scale = cls(low, high, probability=False)
        if np.unique(scale.to_unit(bounds)).size < np.unique(bounds).size:
            raise DataError(
                f"scores: they range from {low:g} to {high:g}, and some differ by so little that "
                "they can't be kept apart on one scale. Give their logarithms or their ranks."
            )
        return scale

    def to_unit(self, values: ArrayLike) -> FloatArray:
        """Scores on the scale from 0 to 1, in their order and shape."""
        scores = np.asarray(values, np.float64)
        if self.probability:
            return scores
        # Halves, so that the widest range of doubles does not overflow.
        return (scores / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def from_unit(self, values: ArrayLike) -> FloatArray:
        """Scores in their own units."""
        units = np.asarray(values, np.float64)
        return units if self.probability else self.low + units * (self.high - self.low)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
