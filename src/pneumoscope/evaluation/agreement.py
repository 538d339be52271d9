"""Agreement of two inference paths on the same labelled images, such as an export and its bundle.

Compares probabilities, predicted classes, AUC and heatmaps, and lists exceeded limits. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.evaluation.metrics import auc
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray

Test = tuple[str, float | None, float | None]
"""Name, measured value and upper limit; not tested if value or limit is `None`."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences between two inference paths.

    Attributes:
        images: number of images with a result from both.
        largest_difference: largest absolute difference of the probability, in [0, 1].
        mean_difference: mean absolute difference of the probability, in [0, 1].
        decisions_changed: number of images whose predicted class differs.
        auc_before: AUC of the first path; `None` if a class is missing.
        auc_after: AUC of the second path, likewise.
        heatmap_correlation: lowest Pearson correlation over images; `None` if all maps are flat.
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
        """Changed predictions per 1,000 images."""
        return 1000.0 * self.decisions_changed / self.images

    @property
    def auc_difference(self) -> float | None:
        """Absolute difference of the AUCs."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return abs(self.auc_before - self.auc_after)


def compare(
    labels: IntArray,
    before: FloatArray,
    after: FloatArray,
    threshold: float,
    correlations: Iterable[float | None],
) -> Agreement:
    """Compare the probabilities of two inference paths.

    Args:
        labels: int64, (n,), 0 or 1; n is at least 1.
        before: float64, (n,), probabilities of the first path; NaN where it gave no number.
        after: float64, (n,), probabilities of the second path, likewise.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        correlations: of the heatmaps, from `correlation`.
    """
    distance = differences(before, after)
    both = len(np.unique(labels)) == 2 and not np.isnan(before + after).any()
    seen = [each for each in correlations if each is not None]
    return Agreement(
        images=len(labels),
        largest_difference=float(distance.max()),
        mean_difference=float(distance.mean()),
        decisions_changed=int(((before >= threshold) != (after >= threshold)).sum()),
        auc_before=auc(labels, before) if both else None,
        auc_after=auc(labels, after) if both else None,
        heatmap_correlation=min(seen, default=None),
    )


def differences(before: FloatArray, after: FloatArray) -> FloatArray:
    """Absolute differences of probabilities, float64 (n,); 1, the maximum, where one is NaN."""
    distance = np.abs(before - after)
    return np.where(np.isnan(distance), 1.0, distance)


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Pearson correlation of two heatmaps, float32 (h, w); `None` if both are flat, 0 if one is."""
    flat = [float(np.ptp(each)) == 0.0 for each in (one, other)]
    if any(flat):
        return None if all(flat) else 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def exceeded_limits(tests: Sequence[Test]) -> tuple[str, ...]:
    """A message for each exceeded limit, with the measured value and the limit."""
    return tuple(
        f"{name}: found {value:.3g}, wanted at most {limit:.3g}"
        for name, value, limit in tests
        if value is not None and limit is not None and value > limit
    )
