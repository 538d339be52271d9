"""Do the intervals hold what they promise: coverage over simulated data sets of known truth.

    python benchmarks/coverage.py [--sets 1000] [--resamples 1000] [--patients 300] [--quick]

In one world every patient has one image, in the other one to six whose scores share an effect of
the patient. Scores are normal within each class, so that the truth of every number is known; the
probabilities made of them are too extreme by a known factor. For every interval at 95 % the share
of data sets whose interval holds the truth is printed; 93 to 97 % is wanted. Then come the
promises that are one-sided or an average: thresholds, bands, conformal sets, tests. `--quick` only
proves that it runs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, stats

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import CompareConfig, IntervalConfig, PlanConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.abstention import choose_band, choose_sets
from pneumoscope.evaluation.calibration import assess_calibration, logit, sigmoid
from pneumoscope.evaluation.compare import compare
from pneumoscope.evaluation.decision import decision_curve
from pneumoscope.evaluation.intervals import bootstrap_metrics, delong_interval
from pneumoscope.evaluation.paired import mcnemar, paired_auc
from pneumoscope.evaluation.plan import confident_threshold, threshold_table
from pneumoscope.evaluation.proportions import clustered_interval, difference, wilson_interval
from pneumoscope.records import Estimate

PREVALENCE = 0.6
ELSEWHERE = 0.1
MEANS = (-1.15, 1.15)
EXTREME = 1.4
THRESHOLD = 0.55
WANTED = 0.8
RISK = 0.1
SETS = 0.9
ACT_FROM = 0.3


@dataclass(frozen=True, slots=True)
class World:
    """Where data sets come from.

    Attributes:
        name: for the table.
        most_images: a patient has 1 to so many.
        effect: standard deviation of what a patient's scores share; all together it is 1.
    """

    name: str
    most_images: int
    effect: float

    def draw(self, generator: np.random.Generator, patients: int) -> Sample:
        """One data set."""
        diseased = generator.random(patients) < PREVALENCE
        owner = np.repeat(
            np.arange(patients), generator.integers(1, self.most_images + 1, patients)
        )
        own = math.sqrt(1 - self.effect**2)
        labels = diseased[owner].astype(np.int64)
        shared = self.effect * generator.standard_normal(patients)[owner]
        scores = np.array(MEANS)[labels] + shared + own * generator.standard_normal(owner.size)
        group = (generator.random(patients) < 0.4)[owner]
        noise = generator.standard_normal((2, owner.size))
        return Sample(labels, scores, owner, group, noise)


@dataclass(frozen=True, slots=True)
class Sample:
    """Labels, scores, patients, a group without meaning, and noise (2, n) for other models."""

    labels: Int64Array
    scores: Float64Array
    patients: Int64Array
    group: NDArray[np.bool_]
    noise: Float64Array


WORLDS = (World("one image per patient", 1, 0.0), World("1 to 6 images per patient", 6, 0.75))


def probability(scores: Float64Array | float, extreme: float = EXTREME) -> Float64Array:
    """The model's probability of a score; at `extreme` 1 it would be the true one."""
    odds = (MEANS[1] - MEANS[0]) * np.asarray(scores) + math.log(PREVALENCE / (1 - PREVALENCE))
    return sigmoid(extreme * odds)


def score_at(chance: float) -> float:
    """The score that has this probability."""
    odds = float(logit(chance)) / EXTREME - math.log(PREVALENCE / (1 - PREVALENCE))
    return odds / (MEANS[1] - MEANS[0])


def above(at: float, label: int, spread: float = 1.0) -> float:
    """Share of a class with a score of at least `at`."""
    return float(stats.norm.sf((at - MEANS[label]) / spread))


@cache
def truths() -> dict[str, float]:
    """What every interval should hold, by closed form or by quadrature."""
    at = score_at(THRESHOLD)
    sensitivity, specificity = above(at, 1), 1 - above(at, 0)
    ppv = _bayes(sensitivity, 1 - specificity, PREVALENCE)
    found = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": PREVALENCE * sensitivity + (1 - PREVALENCE) * specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "ppv": ppv,
        "npv": _bayes(specificity, 1 - sensitivity, 1 - PREVALENCE),
        "f1": 2 * ppv * sensitivity / (ppv + sensitivity),
        "auc": float(stats.norm.cdf((MEANS[1] - MEANS[0]) / math.sqrt(2))),
        "average_precision": _over(1, lambda x: _bayes(above(x, 1), above(x, 0), PREVALENCE)),
        "slope": 1 / EXTREME,
        "intercept": 0.0,
        "ppv elsewhere": _bayes(sensitivity, 1 - specificity, ELSEWHERE),
        "npv elsewhere": _bayes(specificity, 1 - sensitivity, 1 - ELSEWHERE),
    }
    mixed = {}
    positives, negatives = _over(1, _squared_error), _over(0, _squared_error)
    mixed["brier"] = PREVALENCE * positives + (1 - PREVALENCE) * negatives
    mixed["ece"] = _true_error(EXTREME)
    # The model's own scale is that of PREVALENCE: elsewhere one acts from another score.
    odds = float(logit(ACT_FROM)) - float(logit(ELSEWHERE)) + float(logit(PREVALENCE))
    acts = score_at(float(sigmoid(np.array(odds))))
    weight = ACT_FROM / (1 - ACT_FROM)
    benefit = ELSEWHERE * above(acts, 1) - (1 - ELSEWHERE) * above(acts, 0) * weight
    return {**found, **mixed, "net benefit": benefit}


def _squared_error(x: float) -> float:
    stated, true = float(probability(x)), float(probability(x, 1.0))
    return true * (1 - stated) ** 2 + (1 - true) * stated**2


def _bayes(right: float, wrong: float, share: float) -> float:
    return right * share / (right * share + wrong * (1 - share))


def _over(label: int, function: Callable[[float], float]) -> float:
    """Mean of a function of the score over a class."""

    def weighed(x: float) -> float:
        return float(function(x)) * float(stats.norm.pdf(x, MEANS[label]))

    return float(integrate.quad(weighed, MEANS[label] - 8, MEANS[label] + 8, limit=200)[0])


def intervals(sample: Sample, config: IntervalConfig) -> Iterator[tuple[str, Estimate, float]]:
    """Every two-sided interval of one data set: its name, itself, the truth."""
    truth = truths()
    y, p, who = sample.labels, probability(sample.scores), sample.patients
    for name, found in bootstrap_metrics(y, p, who, THRESHOLD, config).estimates.items():
        yield f"bootstrap: {name}", found, truth[name]
    yield "DeLong: auc", delong_interval(y, p, config.level, who), truth["auc"]
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        inside = y == side
        right = (p[inside] >= THRESHOLD) == (side == 1)
        yield (
            f"Wilson, effective: {name}",
            clustered_interval(right, who[inside], 0.95),
            truth[name],
        )
        wilson = wilson_interval(int(right.sum()), right.size, 0.95)
        yield f"Wilson: {name}", wilson, truth[name]
        parts = [
            clustered_interval(right[of], who[inside][of], 0.95)
            for of in (sample.group[inside], ~sample.group[inside])
        ]
        yield f"gap of groups: {name}", difference(parts[0], parts[1]), 0.0
    assessed = assess_calibration(y, p, who, config.level)
    yield "Wald, clustered: slope", assessed.slope, truth["slope"]
    yield "Wald, clustered: intercept", assessed.intercept, truth["intercept"]
    table = threshold_table(y, p, who, config, keep=THRESHOLD)
    row = table.row(table.nearest(THRESHOLD), ELSEWHERE)
    yield "plan: ppv at another prevalence", row.ppv, truth["ppv elsewhere"]
    yield "plan: npv at another prevalence", row.npv, truth["npv elsewhere"]
    # The decision curve moves probabilities by the sample's prevalence: extreme ones are set right.
    curve = decision_curve(y, p, who, ELSEWHERE, config)
    at = curve.probability.index(ACT_FROM)
    benefit = Estimate(curve.model[at], curve.low[at], curve.high[at])
    yield "plan: net benefit", benefit, truth["net benefit"]
    yield from paired(sample, config)


def calibration_errors(
    sample: Sample, config: IntervalConfig
) -> Iterator[tuple[str, Estimate, float]]:
    """The calibration error where there is none, and where there is much."""
    for name, extreme in (("none there is, 97.5 %", 1.0), ("much there is", 2.0)):
        y, p = sample.labels, probability(sample.scores, extreme)
        found = bootstrap_metrics(y, p, sample.patients, THRESHOLD, config).estimates["ece"]
        yield f"bootstrap: ece, of which {name}", found, _true_error(extreme)


@cache
def _true_error(extreme: float) -> float:
    def error(x: float) -> float:
        return abs(float(probability(x, extreme)) - float(probability(x, 1.0)))

    return PREVALENCE * _over(1, error) + (1 - PREVALENCE) * _over(0, error)


def paired(sample: Sample, config: IntervalConfig) -> Iterator[tuple[str, Estimate, float]]:
    """Intervals of the difference to a model whose scores have more noise."""
    spread = math.sqrt(1.25)
    y, who = sample.labels, sample.patients
    noisy = sample.scores + 0.5 * sample.noise[0]
    pair = (probability(sample.scores), probability(noisy))
    margins = CompareConfig(resamples=config.resamples, seed=config.seed)
    found = compare(y, pair, (THRESHOLD, THRESHOLD), who, margins)
    at = score_at(THRESHOLD)
    auc = float(stats.norm.cdf((MEANS[1] - MEANS[0]) / (spread * math.sqrt(2))))
    gaps = {
        "auc": auc - truths()["auc"],
        "sensitivity": above(at, 1, spread) - above(at, 1),
        "specificity": above(at, 0) - above(at, 0, spread),
    }
    for name, truth in gaps.items():
        yield f"compare, bootstrap: change of {name}", found.differences.two_sided[name], truth
    yield "compare, DeLong: change of auc", found.auc.difference, gaps["auc"]


def promises(sample: Sample, config: IntervalConfig) -> Iterator[tuple[str, float]]:
    """One-sided promises and tests of one data set: 1 where kept (or rejected), else 0."""
    y, p, who = sample.labels, probability(sample.scores), sample.patients
    plan = PlanConfig(resamples=config.resamples, seed=config.seed)
    for kind, label in (("sensitivity", 1), ("specificity", 0)):
        try:
            chosen = confident_threshold(y, p, who, kind, WANTED, plan)  # type: ignore[arg-type]
        except DataError:
            continue
        positive = above(score_at(chosen.value), label)
        rate = positive if label else 1 - positive
        yield f"plan: true {kind} reaches the wanted one (95 % or more)", float(rate >= WANTED)
    try:
        band = choose_band(y, p, who, THRESHOLD, RISK, 0.95)
        yield (
            "plan: true risk outside the band is low enough (95 % or more)",
            float(_risk(band.low, band.high) <= RISK),
        )
    except DataError:
        pass
    sets = choose_sets(y, p, who, THRESHOLD, SETS)
    for name, held in (
        ("PNEUMONIA", above(score_at(sets.low), 1)),
        ("NORMAL", 1 - above(score_at(min(sets.high, 1 - 1e-9)), 0)),
    ):
        yield f"plan: conformal coverage of {name} ({SETS:.0%} or more, mean)", held
    yield from null_tests(sample, config)


def null_tests(sample: Sample, config: IntervalConfig) -> Iterator[tuple[str, float]]:
    """How often equally good models are called different, and a model at the margin passes."""
    y, who = sample.labels, sample.patients
    pair = tuple(probability(sample.scores + 0.5 * noise) for noise in sample.noise)
    tested = paired_auc(y, pair[0], pair[1], 0.95, who)
    if tested.p is not None:
        yield "compare: DeLong's p < 0.05 where nothing differs (5 %)", float(tested.p < 0.05)
    right = [(one >= THRESHOLD) == (y == 1) for one in pair]
    test = mcnemar(right[0], right[1])
    for name, p in (("exact", test.exact), ("mid-p", test.mid)):
        told = f"compare: McNemar's {name} < 0.05 where nothing differs (5 %, one image each)"
        yield told, float(p < 0.05)
    # The same scores cut higher, by so much that the sensitivity is lower by just the margin.
    at, margin = score_at(THRESHOLD), 0.05
    lower = above(at, 1) - margin
    moved = float(probability(MEANS[1] + float(stats.norm.isf(lower))))
    scores = probability(sample.scores)
    margins = CompareConfig(
        sensitivity_margin=margin, resamples=config.resamples, seed=config.seed, fewest=2
    )
    found = compare(y, (scores, scores), (THRESHOLD, moved), who, margins)
    passed = {check.name: check.passed for check in found.checks}
    yield (
        "compare: passes a sensitivity lower by the margin (5 % or less)",
        float(passed["sensitivity"]),
    )


def _risk(low: float, high: float) -> float:
    """True share of wrong predictions among those given."""
    below, over = score_at(low), score_at(high)
    missed = PREVALENCE * (1 - above(below, 1))
    alarms = (1 - PREVALENCE) * above(over, 0)
    given = missed + alarms + PREVALENCE * above(over, 1) + (1 - PREVALENCE) * (1 - above(below, 0))
    return (missed + alarms) / given


def measure(
    world: World, sets: int, patients: int, resamples: int, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Coverage of every interval, and the share of promises kept, over `sets` data sets."""
    held: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, list[float]] = defaultdict(list)
    for k in range(sets):
        sample = world.draw(np.random.default_rng([seed, k]), patients)
        config = IntervalConfig(resamples=resamples, seed=k)
        for name, found, truth in intervals(sample, config):
            if found.low is not None and found.high is not None:
                held[name].append(float(found.low <= truth <= found.high))
        for name, found, truth in calibration_errors(sample, config):
            held[name].append(float((found.low or 0.0) <= truth <= (found.high or 0.0)))
        for name, value in promises(sample, config):
            kept[name].append(value)
    return (
        {name: float(np.mean(values)) for name, values in held.items()},
        {name: float(np.mean(values)) for name, values in kept.items()},
    )


def main() -> None:
    """Run both worlds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    sets, resamples = (4, 50) if asked.quick else (asked.sets, asked.resamples)
    print(
        f"{sets} data sets of {asked.patients} patients, {resamples} resamples each, "
        f"{date.today().isoformat()}, Python {platform.python_version()}. Chance alone moves a "
        f"share of 95 % by ± {196 * math.sqrt(0.95 * 0.05 / sets):.1f} points."
    )
    found = [measure(world, sets, asked.patients, resamples) for world in WORLDS]
    for title, part in (("interval at 95 % holds the truth", 0), ("promise", 1)):
        print(f"\n| {title} | {' | '.join(world.name for world in WORLDS)} |\n| --- | --- | --- |")
        for name in found[0][part]:
            shares = [f"{one[part][name]:.1%}" if name in one[part] else "–" for one in found]
            print(f"| {name} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
