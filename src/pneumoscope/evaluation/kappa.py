"""Cohen's kappa of two binary raters, with an interval clustered by patient.

The standard error is that of the delta method (Fleiss, Cohen & Everitt 1969,
doi:10.1037/h0028106), with the images of a patient summed first. A Wald interval can exceed 1 and
collapses at full agreement. The interval here is the score interval of the observed agreement, at
the number of independent images that would give kappa the same standard error, transformed to the
scale of kappa.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.errors import DataError
from pneumoscope.evaluation.proportions import Patients, patient_codes, score_interval
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray, checked_labels
from pneumoscope.records import Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two raters.

    Attributes:
        images: number of images rated by both.
        counts: images rated positive by both, by the first only, by the second only, by neither.
        observed: share of images on which they agree.
        expected: share expected by chance, from the raters' marginal frequencies.
        kappa: `None` if both raters give the same rating to all images.
        error: standard error of kappa, likewise.
    """

    images: int
    counts: tuple[int, int, int, int]
    observed: float
    expected: float
    kappa: Estimate
    error: float | None


def cohen_kappa(first: ArrayLike, second: ArrayLike, patients: Patients, level: float) -> Agreement:
    """Agreement of two raters beyond chance.

    Args:
        first: int, (n,), 0 or 1.
        second: int, (n,), 0 or 1.
        patients: (n,), patient ids.
        level: confidence level, such as 0.95.

    Raises:
        DataError: there is no image, shapes differ, or a rating is not 0 or 1.
    """
    one, other = checked_labels(first), checked_labels(second)
    if one.shape != other.shape or not one.size:
        raise DataError(
            f"kappa: found ratings of shapes {one.shape} and {other.shape}, wanted two for each of "
            "one or more images."
        )
    n = one.size
    a, b = one.astype(np.float64), other.astype(np.float64)
    agree = (one == other).astype(np.float64)
    observed = float(agree.mean())
    yes = (float(a.mean()), float(b.mean()))
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    counts = _cells(one, other)
    if expected >= 1.0:
        return Agreement(n, counts, observed, expected, Estimate(None), None)
    kappa = (observed - expected) / (1 - expected)
    moved = (2 * yes[1] - 1) * (a - yes[0]) + (2 * yes[0] - 1) * (b - yes[1])
    influence = (agree - observed) / (1 - expected) - (1 - kappa) / (1 - expected) * moved
    codes, patient_count = patient_codes(patients, n)
    if patient_count < 2:
        return Agreement(n, counts, observed, expected, Estimate(kappa), None)
    error = _error(influence, codes, patient_count)
    spread = observed * (1 - observed)
    independent = spread / ((1 - expected) ** 2 * error**2) if error > 0 else float(patient_count)
    ends = score_interval(observed, min(independent, float(n)), level)
    low, high = (
        None if end is None else (end - expected) / (1 - expected) for end in (ends.low, ends.high)
    )
    return Agreement(n, counts, observed, expected, Estimate(kappa, low, high), error)


def _cells(one: IntArray, other: IntArray) -> tuple[int, int, int, int]:
    both, first, second = one & other, one & (1 - other), (1 - one) & other
    found = [int(cell.sum()) for cell in (both, first, second)]
    return found[0], found[1], found[2], one.size - sum(found)


def _error(influence: FloatArray, codes: ArrayLike, patients: int) -> float:
    """Standard error of a mean over images, clustered by patient."""
    sums = np.bincount(np.asarray(codes), influence, patients)
    return float(np.sqrt(sums @ sums * patients / (patients - 1)) / influence.size)
