"""Sample size for an exact binomial test that a proportion is above a minimum.

The exact one-sided binomial test rejects "the proportion is at most `least`" if at least c of n
patients are hits, where c is the smallest number with P(X ≥ c | n, least) ≤ 1 - confidence. Its
power is P(X ≥ c | n, expected). Because c changes in steps, the power is not monotonic in n; the
sample size is the smallest n for which it and all larger n have the power (Chernick & Liu 2002,
doi:10.1198/000313002317572835). One image per patient is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray

_MOST = 200_000
"""Largest sample size considered; if more are needed, the result is `None`."""

FORMULA = (
    "exact one-sided binomial test: smallest n, with c the smallest count for which "
    "P(X >= c | n, least) <= 1 - confidence, such that P(X >= c | n, expected) >= power for it "
    "and every larger n"
)


@dataclass(frozen=True, slots=True)
class Verification:
    """The sample size of a test on local patients.

    Attributes:
        expected: the assumed true proportion.
        least: the minimum to be demonstrated.
        confidence: of the one-sided test.
        power: probability that the test succeeds if `expected` is true.
        patients: required patients of the class; `None` if 200,000 are not enough.
        hits: the minimum number of correct predictions among them.
    """

    expected: float
    least: float
    confidence: float
    power: float
    patients: int | None
    hits: int | None


def patients_to_verify(
    expected: float, least: float, confidence: float, power: float
) -> Verification:
    """Patients of a class required to show, with `power`, that a proportion is above `least`.

    Args:
        expected: the assumed true proportion, in [0, 1].
        least: the minimum to be demonstrated, in (0, 1).
        confidence: in (0, 1), such as 0.95.
        power: in (0, 1), such as 0.9.

    Raises:
        UsageError: a number is out of its range.
    """
    for name, value in (("least", least), ("confidence", confidence), ("power", power)):
        if not 0.0 < value < 1.0:
            raise UsageError(f"{name}: found {value}, wanted a share above 0 and below 1")
    if not 0.0 <= expected <= 1.0:
        raise UsageError(f"expected: found {expected}, wanted a share from 0 to 1")
    if expected <= least:
        return Verification(expected, least, confidence, power, None, None)
    # An upper bound: twice the normal approximation (Fleiss 1981, section 2.2) plus a margin.
    z1, z2 = (NormalDist().inv_cdf(level) for level in (confidence, power))
    spread = z1 * math.sqrt(least * (1 - least)) + abs(z2) * math.sqrt(expected * (1 - expected))
    reach = 2 * (spread / (expected - least)) ** 2 + 10 * math.log(1 - confidence) / math.log(least)
    if reach > _MOST:
        return Verification(expected, least, confidence, power, None, None)
    sizes = np.arange(1, math.ceil(reach) + 50)
    counts, powers = critical_counts(sizes, expected, least, confidence)
    short = np.flatnonzero(powers < power)
    first = int(short[-1]) + 1 if short.size else 0
    return Verification(expected, least, confidence, power, int(sizes[first]), int(counts[first]))


def critical_counts(
    sizes: IntArray, expected: float, least: float, confidence: float
) -> tuple[IntArray, FloatArray]:
    """For each sample size, int64 (c,): the smallest count that rejects, and the power."""
    from scipy.stats import binom

    # The smallest count whose probability of being reached is at most 1 - confidence.
    counts = np.asarray(binom.isf(1.0 - confidence, sizes, least), np.int64) + 1
    powers = np.where(counts <= sizes, binom.sf(counts - 1, sizes, expected), 0.0)
    return counts, powers
