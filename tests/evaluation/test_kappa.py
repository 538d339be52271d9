"""Cohen's kappa against statsmodels and scikit-learn; its interval by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from pneumoscope.errors import DataError
from pneumoscope.evaluation.pilot import cohen_kappa


def raters(n: int, cells: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two raters; cells: both yes, first only, second only, neither."""
    drawn = np.random.default_rng(seed).choice(4, n, p=cells)
    return (drawn < 2).astype(int), np.isin(drawn, (0, 2)).astype(int)


@pytest.mark.parametrize("seed", range(4))
def test_value_and_error_are_those_of_the_libraries(seed: int) -> None:
    first, second = raters(80, (0.3, 0.1, 0.15, 0.45), seed)
    found = cohen_kappa(first, second, np.arange(80), 0.95)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(first, second))
    table = [[found.counts[3], found.counts[2]], [found.counts[1], found.counts[0]]]
    theirs = cohens_kappa(table)
    assert found.kappa.value == pytest.approx(theirs.kappa)
    # Theirs divides by n, ours by n - 1, as for any sum of patients.
    assert found.error == pytest.approx(theirs.std_kappa * np.sqrt(80 / 79))
    assert sum(found.counts) == found.images == 80
    low, high = found.kappa.low, found.kappa.high
    assert low is not None
    assert high is not None
    assert low == pytest.approx(theirs.kappa_low, abs=0.05)
    assert high == pytest.approx(theirs.kappa_upp, abs=0.05)


@pytest.mark.parametrize(
    ("n", "images_each", "prevalence", "sensitivity", "specificity"),
    [
        (100, 1, 0.5, 0.9, 0.9),
        (100, 1, 0.3, 0.8, 0.9),
        (300, 1, 0.1, 0.9, 0.95),
        (100, 1, 0.5, 0.7, 0.6),
        (200, 2, 0.3, 0.8, 0.9),
        (400, 1, 0.5, 0.99, 0.99),
    ],
)
def test_the_interval_covers(
    n: int, images_each: int, prevalence: float, sensitivity: float, specificity: float
) -> None:
    cells = (
        prevalence * sensitivity,
        prevalence * (1 - sensitivity),
        (1 - prevalence) * (1 - specificity),
        (1 - prevalence) * specificity,
    )
    yes = (cells[0] + cells[1], cells[0] + cells[2])
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    true = (cells[0] + cells[3] - expected) / (1 - expected)
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(n // images_each), images_each)
    hits, runs = 0, 1200
    for _ in range(runs):
        drawn = rng.choice(4, n, p=cells)
        if images_each > 1:  # images of a patient are often rated alike
            copied = np.repeat(rng.choice(4, n // images_each, p=cells), images_each)
            drawn = np.where(rng.random(n) < 0.6, copied, drawn)
        first, second = (drawn < 2).astype(int), np.isin(drawn, (0, 2)).astype(int)
        kappa = cohen_kappa(first, second, patients, 0.95).kappa
        hits += (kappa.low or 0.0) <= true <= (kappa.high or 0.0)
    assert 0.93 <= hits / runs <= 0.97


def test_full_agreement_does_not_collapse_and_nothing_runs_beyond_one() -> None:
    same = [0, 1] * 15
    kappa = cohen_kappa(same, same, np.arange(30), 0.95).kappa
    assert (kappa.value, kappa.high) == (1.0, 1.0)
    assert kappa.low is not None
    assert 0.7 < kappa.low < 0.8
    nearly = cohen_kappa(same, [1, *same[1:]], np.arange(30), 0.95).kappa
    assert nearly.high is not None
    assert nearly.high < 1.0


def test_what_has_no_kappa() -> None:
    assert cohen_kappa([1, 1], [1, 1], ["p", "q"], 0.95).kappa.value is None
    one_patient = cohen_kappa([0, 1], [0, 1], ["p", "p"], 0.95).kappa
    assert (one_patient.value, one_patient.low) == (1.0, None)
    with pytest.raises(DataError, match="wanted two for each"):
        cohen_kappa([0, 1], [0], ["p", "q"], 0.95)


def test_raters_who_never_agree() -> None:
    found = cohen_kappa([1, 1, 0], [0, 0, 1], ["a", "b", "c"], 0.95)
    assert found.observed == 0.0
    low, value, high = found.kappa.low, found.kappa.value, found.kappa.high
    assert low is not None
    assert value is not None
    assert high is not None
    assert low == value < 0 < high  # nothing lies below no agreement
    # Ten patients say more than three.
    more = cohen_kappa([1, 0] * 5, [0, 1] * 5, np.arange(10), 0.95)
    assert more.kappa.value == -1.0
    assert more.kappa.high is not None
    assert more.kappa.high < high
