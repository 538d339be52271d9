"""Two models on the same images: tests and limits against other implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from pneumoscope.config import CompareConfig, IntervalConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.intervals import (
    bootstrap_metrics,
    delong_auc,
    fewest_patients,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.metrics import auc
from pneumoscope.evaluation.paired import (
    mcnemar,
    mcnemar_p,
    paired_auc,
    paired_differences,
    paired_share_interval,
    tango_lower,
)
from pneumoscope.evaluation.proportions import patient_codes
from pneumoscope.records import Estimate
from support.known import limits

CONFIG = IntervalConfig(resamples=80, seed=5)


def simulated(
    n: int = 160, seed: int = 0
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(int)
    base = 1.6 * (labels - 0.5) + rng.normal(size=n)
    old, new = (1 / (1 + np.exp(-base - 0.5 * rng.normal(size=n))) for _ in range(2))
    return labels, (old, new), [f"p{k // 2}" for k in range(n)]


def test_paired_delong_is_the_textbooks() -> None:
    labels, (old, new), _ = simulated()
    positive, negative = labels == 1, labels == 0

    def wins(scores: np.ndarray) -> np.ndarray:
        one, other = scores[positive][:, None], scores[negative]
        return np.asarray((one > other) + 0.5 * (one == other))

    # DeLong, DeLong & Clarke-Pearson 1988, equations 4 to 6, with every pair written out.
    v10 = np.array([wins(s).mean(axis=1) for s in (old, new)])
    v01 = np.array([wins(s).mean(axis=0) for s in (old, new)])
    s = np.cov(v10) / positive.sum() + np.cov(v01) / negative.sum()
    gap = v10[1].mean() - v10[0].mean()
    error = np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    found = paired_auc(labels, old, new, 0.95, np.arange(len(labels)))
    assert found.difference.value == pytest.approx(gap)
    assert found.error == pytest.approx(error)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(gap) / error))
    assert found.difference.low == pytest.approx(gap - 1.959964 * error, abs=1e-7)
    assert (found.old, found.new) == pytest.approx((auc(labels, old), auc(labels, new)))


def test_copies_of_patients_make_no_auc_surer() -> None:
    labels, (old, new), _ = simulated()
    once = paired_auc(labels, old, new, 0.95, np.arange(160))
    y, before, after = (np.repeat(part, 3) for part in (labels, old, new))
    often = paired_auc(y, before, after, 0.95, np.repeat(np.arange(160), 3))
    assert often.error == pytest.approx(once.error)
    assert often.p == pytest.approx(once.p)


def test_variance_of_one_auc_is_unchanged() -> None:
    labels, (old, _), patients = simulated()
    _, variance = delong_auc(labels, old, patients)
    assert 0 < variance < 0.01


def test_equal_models_have_no_test() -> None:
    labels, (old, _), patients = simulated()
    found = paired_auc(labels, old, old, 0.95, patients)
    assert (found.difference.value, found.p, found.difference.low) == (0.0, None, None)
    assert paired_auc([1, 1], [0.1, 0.2], [0.1, 0.3], 0.95, ["a", "b"]).old is None


def test_mcnemar_of_a_published_example() -> None:
    """Fagerland, Lydersen & Laake 2013, airway hyper-responsiveness: 1 and 7 discordant."""
    exact, mid = mcnemar_p(1, 7)
    assert (round(exact, 3), round(mid, 3)) == (0.070, 0.039)


@pytest.mark.parametrize("counts", [(0, 0), (3, 3), (0, 5), (12, 4), (200, 260), (1500, 1400)])
def test_mcnemar_is_statsmodels_and_scipys(counts: tuple[int, int]) -> None:
    exact, mid = mcnemar_p(*counts)
    b, c = counts
    wanted = reference_mcnemar([[10, b], [c, 10]], exact=True).pvalue if b + c else 1.0
    assert exact == pytest.approx(min(wanted, 1.0))
    if b + c:
        # Half the chance of what was seen, and all that is less likely, on either side.
        point = stats.binom.pmf(min(b, c), b + c, 0.5)
        below = stats.binom.cdf(min(b, c) - 1, b + c, 0.5)
        assert mid == pytest.approx(2 * below + point if b != c else 1 - point / 2)


def test_mcnemar_counts_who_was_right() -> None:
    found = mcnemar([True, True, False, False, True], [True, False, True, True, False])
    assert (found.only_old, found.only_new) == (2, 2)


def test_share_limit_of_a_published_example() -> None:
    """Fagerland, Lydersen & Laake 2014 (doi:10.1002/sim.6148): Tango's interval of 1, 7 of 21."""
    low, high = tango_lower(7, 1, 21, 0.975), -tango_lower(1, 7, 21, 0.975)
    assert (round(low, 3), round(high, 3)) == (0.026, 0.517)


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 1, 44), (4, 9, 120), (0, 0, 30), (20, 5, 60)]
)
def test_share_limit_is_where_the_score_test_turns(gained: int, lost: int, n: int) -> None:
    limit = tango_lower(gained, lost, n, 0.95)

    def likelihood(loss: float) -> float:
        cells = np.array([loss + limit, loss, 1 - 2 * loss - limit])
        seen = np.array([gained, lost, n - gained - lost])
        return -float(special.xlogy(seen, np.maximum(cells, 1e-300)).sum())

    found = optimize.minimize_scalar(
        likelihood, bounds=(max(0.0, -limit), (1 - limit) / 2), options={"xatol": 1e-12}
    )
    spread = (2 * found.x + limit - limit**2) / n
    score = ((gained - lost) / n - limit) / np.sqrt(spread)
    assert score == pytest.approx(stats.norm.ppf(0.95), abs=1e-4)


def test_share_limit_never_collapses() -> None:
    assert tango_lower(0, 0, 10, 0.95) < -0.2
    assert tango_lower(0, 10, 10, 0.95) == -1.0


def test_share_interval_is_tangos_and_repeats_are_no_news() -> None:
    old, new = np.array([1] * 20 + [0] * 30), np.array([1] * 18 + [0] * 2 + [1] * 9 + [0] * 21)
    once = paired_share_interval(old, new, np.arange(50), 0.95)
    assert once.value == pytest.approx(7 / 50)
    low, high = limits(once)
    for limit, sign in ((low, 1), (high, -1)):
        assert score_statistic(9, 2, 50, limit) == pytest.approx(sign * 1.959964, abs=1e-6)
    back = paired_share_interval(new, old, np.arange(50), 0.95)
    assert limits(back) == pytest.approx((-high, -low))
    copied = paired_share_interval(
        np.tile(old, 4), np.tile(new, 4), np.tile(np.arange(50), 4), 0.95
    )
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)
    same = paired_share_interval(old, old, np.repeat(np.arange(10), 5), 0.95)
    assert same.value == 0.0
    low, high = limits(same)
    assert low < -0.2  # ten patients who all agree show little, and no point
    assert high == pytest.approx(-low)
    assert paired_share_interval([], [], [], 0.95) == Estimate(None)
    assert paired_share_interval([1, 0], [1, 1], ["a", "a"], 0.95) == Estimate(0.5)


def score_statistic(gained: int, lost: int, n: int, gap: float) -> float:
    """Tango's statistic, its nuisance parameter found by search rather than in closed form."""

    def less_likelihood(loss: float) -> float:
        rest = 1 - 2 * loss - gap
        terms = [(gained, loss + gap), (lost, loss), (n - gained - lost, rest)]
        if any(p <= 0 for _, p in terms):
            return math.inf
        return -sum(k * math.log(p) for k, p in terms)

    ends = (max(0.0, -gap) + 1e-12, (1 - gap) / 2 - 1e-12)
    options: Any = {"xatol": 1e-13}
    loss = optimize.minimize_scalar(less_likelihood, bounds=ends, method="bounded", options=options)
    spread = n * (2 * loss.x + gap - gap**2)
    return float((gained - lost - n * gap) / math.sqrt(spread))


def test_differences_come_from_one_set_of_resamples() -> None:
    labels, (old, new), patients = simulated(n=60)
    found = paired_differences(labels, (old, new), (0.5, 0.4), patients, CONFIG, 0.95)
    codes, count = patient_codes(patients, 60)
    gaps = []
    for weights in np.concatenate(list(resampled_weights(codes, count, CONFIG))):
        images = np.repeat(np.arange(60), weights.astype(int))
        y = labels[images]
        if 0 < y.sum() < y.size:
            gaps.append(auc(y, new[images]) - auc(y, old[images]))
    two_sided = found.two_sided["auc"]
    fewest = fewest_patients(labels, codes)
    wanted = percentile_interval(np.array(gaps), 0.95, fewest)[:2]
    assert (two_sided.low, two_sided.high) == pytest.approx(wanted)
    low, high, _ = percentile_interval(np.array(gaps), 0.9, fewest)
    assert (found.lower["auc"], found.upper["auc"]) == pytest.approx((low, high))
    single = bootstrap_metrics(labels, new, patients, 0.4, CONFIG).estimates["f1"].value
    other = bootstrap_metrics(labels, old, patients, 0.5, CONFIG).estimates["f1"].value
    assert found.two_sided["f1"].value == pytest.approx((single or 0) - (other or 0))


def test_the_same_model_passes_only_on_enough_images() -> None:
    config = CompareConfig(resamples=50)
    labels, (old, _), _ = simulated(n=1200)
    many = compare(labels, (old, old), (0.5, 0.5), np.arange(1200), config)
    assert many.passed
    assert [check.difference for check in many.checks] == [0.0, 0.0, 0.0]
    few = compare(labels[:100], (old[:100], old[:100]), (0.5, 0.5), np.arange(100), config)
    assert {c.name: c.passed for c in few.checks} == {
        "auc": True,
        "sensitivity": False,
        "specificity": False,
    }
    assert "could be lower by more than 0.02" in few.checks[1].reason
    tiny = compare(labels[:40], (old[:40], old[:40]), (0.5, 0.5), np.arange(40), config)
    assert "has only" in tiny.checks[0].reason


def test_a_worse_model_fails_and_states_by_what() -> None:
    config = CompareConfig(resamples=50)
    labels, (old, _), _ = simulated(n=1200)
    worse = np.where(labels == 1, old * 0.6, old)
    found = compare(labels, (old, worse), (0.5, 0.5), np.arange(1200), config)
    failed = {check.name: check.reason for check in found.checks if not check.passed}
    assert set(failed) == {"auc", "sensitivity"}
    assert failed["auc"] == "is lower by more than 0.01"
    assert not found.passed
    # At its own threshold it may be as sensitive; at the carried threshold it is less so.
    own = compare(labels, (old, worse), (0.5, 0.3), np.arange(1200), config)
    assert own.new["sensitivity"].value == own.old["sensitivity"].value
    assert (own.carried["sensitivity"].value or 0) < (own.old["sensitivity"].value or 0)


def changed_calls(
    losses: list[int], patients: int = 40, each: int = 10
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """PNEUMONIA patients with `each` images, all called by the old model, `losses[k]` lost of k's.

    As many NORMAL patients are called right by both.
    """
    labels = np.repeat([1, 0], patients * each)
    old = np.where(labels == 1, 0.9, 0.1)
    new = old.copy()
    for k, lost in enumerate(losses):
        new[k * each : k * each + lost] = 0.2
    return labels, (old, new), np.repeat(np.arange(2 * patients), each)


def test_lost_images_of_one_patient_count_as_one_patients() -> None:
    config = CompareConfig(resamples=200)
    labels, scores, patients = changed_calls([2])
    found = compare(labels, scores, (0.5, 0.5), patients, config)
    check = next(check for check in found.checks if check.name == "sensitivity")
    inside = labels == 1
    correct = [values[inside] >= 0.5 for values in scores]
    clustered = paired_share_interval(correct[0], correct[1], patients[inside], 0.9)
    assert check.lower == pytest.approx(clustered.low)
    assert not check.passed
    assert "could be lower by more than 0.02" in check.reason
    # The same two losses in two patients of one image each: Tango's limit for independent images.
    labels, scores, patients = changed_calls([1, 1], patients=400, each=1)
    found = compare(labels, scores, (0.5, 0.5), patients, config)
    check = next(check for check in found.checks if check.name == "sensitivity")
    assert check.lower == pytest.approx(tango_lower(0, 2, 400, 0.95))
    assert check.passed


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="result from both models"):
        compare([], ([], []), (0.5, 0.5), [], CompareConfig())


def test_mcnemar_rejects_results_of_different_images() -> None:
    with pytest.raises(DataError, match="1 results of the old model and 3 of the new one"):
        mcnemar([True], [True, False, True])
