"""How many patients it takes to see, with stated power, that a share is at least as wanted.

Comes in: the share that is expected, the least that is wanted, confidence and power. Goes out: a
number of patients, or `None` where no number would do. Does not know what the share is of.

The test is the exact one-sided binomial test: "the share is at most `least`" is rejected when
at least c of n patients are hits, c being the smallest number with P(X ≥ c | n, least) ≤
1 - confidence. Its power is P(X ≥ c | n, expected). Since c moves in steps, power does not grow
evenly with n: the answer is the smallest n from which on every larger one has the power too
(Chernick & Liu 2002, doi:10.1198/000313002317572835). One image per patient is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray

_MOST = 200_000
"""No one collects more; where more were needed the answer is `None`."""

FORMULA = (
    "exact one-sided binomial test: smallest n, with c the smallest count for which "
    "P(X >= c | n, least) <= 1 - confidence, such that P(X >= c | n, expected) >= power for it "
    "and every larger n"
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check on local patients would take.

    Attributes:
        expected: the true share that is hoped for.
        least: what is to be shown.
        confidence: of the test, one-sided.
        power: chance that the check succeeds if `expected` is true.
        patients: how many of the class are needed; `None`: no number below 200,000 would do.
        hits: at least so many of them must be answered rightly.
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
    """How many patients of a class show, with `power`, that the share is above `least`.

    Args:
        expected: the true share, in [0, 1].
        least: what is to be shown, in (0, 1).
        confidence: as 0.95.
        power: as 0.9.

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
    # Twice the normal approximation (Fleiss 1981, section 2.2) and some hold the exact answer.
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
    """For each number of patients (c,): the count that rejects, and the power."""
    from scipy.stats import binom

    # The smallest count whose chance of being reached is small enough.
    counts = np.asarray(binom.isf(1.0 - confidence, sizes, least), np.int64) + 1
    powers = np.where(counts <= sizes, binom.sf(counts - 1, sizes, expected), 0.0)
    return counts, powers
