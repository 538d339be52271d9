"""The simulation of coverage on a few data sets: a broken interval would show even here."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from support.scripts import load_script


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    return load_script("benchmarks/coverage.py")


def test_truths_are_what_large_samples_show(coverage: ModuleType) -> None:
    from pneumoscope.evaluation.metrics import point_metrics

    world = coverage.WORLDS[1]
    sample = world.draw(np.random.default_rng(0), 60_000)
    p = coverage.probability(sample.scores)
    found = point_metrics(sample.labels, p, coverage.THRESHOLD)
    for name in ("auc", "average_precision", "brier", "ece"):
        assert found[name] == pytest.approx(coverage.truths()[name], abs=0.006), name
    for name in ("sensitivity", "specificity", "accuracy", "ppv", "npv", "f1"):
        assert found[name] == pytest.approx(coverage.truths()[name], abs=0.01), name


@pytest.mark.parametrize("which", [0, 1])
def test_intervals_hold_the_truth(coverage: ModuleType, which: int) -> None:
    sets = 24
    held, kept = coverage.measure(coverage.WORLDS[which], sets, 150, 120, seed=1)
    assert len(held) > 25
    # What happens in fewer than 1 of 10,000 runs of an interval that holds at 93 %.
    fewest = stats.binom.ppf(1e-4, sets, 0.93) / sets
    naive = {"Wilson: sensitivity", "Wilson: specificity"} if which else set()
    low = {name: share for name, share in held.items() if share < fewest and name not in naive}
    assert low == {}
    for name, share in kept.items():
        if "95 % or more" in name:
            assert share >= fewest, name
        if "conformal" in name:
            assert share > coverage.SETS - 0.03, name
        if "5 %" in name and "95 %" not in name and not (which and "one image each" in name):
            assert share <= 1 - fewest, name
