"""How many patients a check needs: against published tables and a plain search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.pilot import critical_counts, patients_to_verify


@pytest.mark.parametrize(
    ("least", "expected", "power", "n", "hits"),
    [(0.05, 0.2, 0.8, 27, 4), (0.2, 0.4, 0.8, 35, 12), (0.2, 0.4, 0.9, 47, 15)],
)
def test_first_size_is_that_of_published_tables(
    least: float, expected: float, power: float, n: int, hits: int
) -> None:
    """A'Hern 2001 (Statistics in Medicine 20:859-866), one-sided 5 %."""
    sizes = np.arange(1, 100)
    counts, powers = critical_counts(sizes, expected, least, 0.95)
    first = int(np.argmax(powers >= power))
    assert (sizes[first], counts[first]) == (n, hits)


@pytest.mark.parametrize(("expected", "least"), [(0.95, 0.9), (0.4, 0.2), (1.0, 0.9)])
def test_power_stays_from_the_found_size_on(expected: float, least: float) -> None:
    found = patients_to_verify(expected, least, 0.95, 0.9)
    assert found.patients is not None
    assert found.hits is not None

    def power(n: int) -> float:
        counts = np.arange(n + 2)
        critical = int(counts[stats.binom.sf(counts - 1, n, least) <= 0.05][0])
        return float(stats.binom.sf(critical - 1, n, expected))

    assert power(found.patients - 1) < 0.9
    assert min(power(n) for n in range(found.patients, found.patients + 300)) >= 0.9
    test = stats.binomtest(found.hits, found.patients, least, alternative="greater")
    assert test.pvalue <= 0.05
    almost = stats.binomtest(found.hits - 1, found.patients, least, alternative="greater")
    assert almost.pvalue > 0.05


def test_what_no_number_shows() -> None:
    assert patients_to_verify(0.9, 0.9, 0.95, 0.9).patients is None
    assert patients_to_verify(0.9001, 0.9, 0.95, 0.9).patients is None


@pytest.mark.parametrize("bad", [(0.9, 0.0, 0.95, 0.9), (0.9, 0.8, 1.0, 0.9), (1.1, 0.8, 0.9, 0.9)])
def test_numbers_out_of_range(bad: tuple[float, float, float, float]) -> None:
    with pytest.raises(UsageError, match="wanted"):
        patients_to_verify(*bad)
