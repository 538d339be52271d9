"""How nearly two ways of answering agree, over the same labelled images. NumPy only.

Comes in: labels, both ways' probabilities and heatmaps, a threshold. Goes out: an `Agreement`, and
which limits it passes, in words. Knows nothing of what the two ways are: an export beside its
bundle, bfloat16 beside float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.metrics import auc

FloatArray = NDArray[np.float64]

Test = tuple[str, float | None, float | None]
"""What is tested, what was found, the most that is wanted; nothing is tested where either lacks."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two ways of answering differ by.

    Attributes:
        images: how many both answered.
        largest_difference: of the probability.
        mean_difference: of the same.
        decisions_changed: answers on another side of the threshold.
        auc_before: of the first way; `None` if one class is missing.
        auc_after: of the second.
        heatmap_correlation: the least over images (Pearson); `None` if all maps are flat.
    """

    images: int
    largest_difference: float
    mean_difference: float
    decisions_changed: int
    auc_before: float | None
    auc_after: float | None
    heatmap_correlation: float | None

    @property
    def decisions_per_thousand(self) -> float:
        """Decisions changed in 1,000 images."""
        return 1000.0 * self.decisions_changed / self.images

    @property
    def auc_difference(self) -> float | None:
        """How far the AUC moved, either way."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return abs(self.auc_before - self.auc_after)


def compare(
    labels: NDArray[np.int64],
    before: FloatArray,
    after: FloatArray,
    threshold: float,
    correlations: Iterable[float | None],
) -> Agreement:
    """What `after` differs from `before` by.

    Args:
        labels: 0 or 1, (n,), n being 1 or more.
        before: probabilities (n,); NaN where the model's answer was no number.
        after: the same of the other way.
        threshold: from which up an answer is positive.
        correlations: of the heatmaps, of `correlation`.
    """
    apart = differences(before, after)
    both = len(np.unique(labels)) == 2 and not np.isnan(before + after).any()
    seen = [each for each in correlations if each is not None]
    return Agreement(
        images=len(labels),
        largest_difference=float(apart.max()),
        mean_difference=float(apart.mean()),
        decisions_changed=int(((before >= threshold) != (after >= threshold)).sum()),
        auc_before=auc(labels, before) if both else None,
        auc_after=auc(labels, after) if both else None,
        heatmap_correlation=min(seen, default=None),
    )


def differences(before: FloatArray, after: FloatArray) -> FloatArray:
    """Distances of probabilities (n,); 1, as far as can be, where one of them is no number."""
    apart = np.abs(before - after)
    return np.where(np.isnan(apart), 1.0, apart)


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Pearson's of two heatmaps (h, w); `None` if both are flat, 0 if only one is."""
    flat = [float(np.ptp(each)) == 0.0 for each in (one, other)]
    if any(flat):
        return None if all(flat) else 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def exceeded_limits(tests: Sequence[Test]) -> tuple[str, ...]:
    """Each limit that was passed, with what was found and wanted."""
    return tuple(
        f"{name}: found {value:.3g}, wanted at most {limit:.3g}"
        for name, value, limit in tests
        if value is not None and limit is not None and value > limit
    )
