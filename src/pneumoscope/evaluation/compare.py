"""Whether a new model may take the place of an old one: margins, limits, a verdict.

Comes in: labels (int, (n,)), both models' probabilities (float64, (n,)) and thresholds, patients,
a `CompareConfig`. Goes out: one frozen `Comparison`. Does not know of models, images or files.

Non-inferiority: the new model passes where the one-sided lower confidence limit of "new minus old"
lies above minus the margin (Piaggio et al. 2012, doi:10.1001/jama.2012.87802). What can't be told
is not passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import CompareConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import PROBABILITY_METRICS
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.paired import (
    McNemar,
    PairedAuc,
    PairedDifferences,
    is_correct,
    mcnemar,
    paired_auc,
    paired_differences,
    paired_share_lower,
)
from pneumoscope.evaluation.proportions import Patients, patient_codes
from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray, checked_scores
from pneumoscope.evaluation.recalibrate import ScoreScale
from pneumoscope.records import Estimate


@dataclass(frozen=True, slots=True)
class Check:
    """One question of the verdict.

    Attributes:
        name: `auc`, `sensitivity` or `specificity`.
        difference: new minus old; `None` where undefined.
        lower: one-sided lower limit of it.
        margin: the new model passes if `lower` is above minus this.
        passed: whether it does.
        reason: why not, in words; `""` if it does.
    """

    name: str
    difference: float | None
    lower: float | None
    margin: float
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        n: images that both answered.
        patients: how many they are of.
        positives: PNEUMONIA images among them.
        thresholds: of the old and the new model.
        old: metrics of the old model at its threshold.
        new: metrics of the new model at its own.
        carried: metrics of the new model at the old one's threshold.
        differences: new minus old, each at its own threshold.
        carried_differences: with the old threshold for both.
        auc: DeLong's paired test.
        disagreement: McNemar's tests of all images, of PNEUMONIA and of NORMAL ones.
        checks: the verdict's questions.
        passed: whether all are passed.
    """

    n: int
    patients: int
    positives: int
    thresholds: tuple[float, float]
    old: Mapping[str, Estimate]
    new: Mapping[str, Estimate]
    carried: Mapping[str, Estimate]
    differences: PairedDifferences
    carried_differences: PairedDifferences
    auc: PairedAuc
    disagreement: Mapping[str, McNemar]
    checks: tuple[Check, ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(
    labels: ArrayLike,
    scores: tuple[ArrayLike, ArrayLike],
    thresholds: tuple[float, float],
    patients: Patients,
    config: CompareConfig,
) -> Comparison:
    """Everything about two models on the same images.

    Args:
        labels: int, (n,), 0 or 1.
        scores: the old and the new model's probabilities, float64, (n,) each.
        thresholds: of the old and the new model.
        patients: (n,), ids.
        config: margins, confidence, intervals.

    Raises:
        DataError: there is no image, shapes differ or values are out of range.
    """
    truth, before = checked_scores(labels, scores[0])
    _, after = checked_scores(labels, scores[1])
    if not truth.size:
        raise DataError("compare: found no image that both models answered, wanted many.")
    intervals = config.intervals()
    pair = (before, after)
    at_old = (thresholds[0], thresholds[0])
    differences = paired_differences(
        truth, pair, thresholds, patients, intervals, config.confidence
    )
    right = (
        is_correct(truth, before, thresholds[0]),
        is_correct(truth, after, thresholds[1]),
    )
    kinds = {"all": truth >= 0, "PNEUMONIA": truth == 1, "NORMAL": truth == 0}
    auc = paired_auc(truth, before, after, config.level, patients)
    checks = _checks(truth, pair, right, differences, auc, np.asarray(patients), config)
    return Comparison(
        n=truth.size,
        patients=patient_codes(patients, truth.size)[1],
        positives=int(truth.sum()),
        thresholds=thresholds,
        old=bootstrap_metrics(truth, before, patients, thresholds[0], intervals).estimates,
        new=bootstrap_metrics(truth, after, patients, thresholds[1], intervals).estimates,
        carried=bootstrap_metrics(truth, after, patients, thresholds[0], intervals).estimates,
        differences=differences,
        carried_differences=paired_differences(
            truth, pair, at_old, patients, intervals, config.confidence
        ),
        auc=auc,
        disagreement={
            name: mcnemar(right[0][inside], right[1][inside]) for name, inside in kinds.items()
        },
        checks=checks,
        passed=all(check.passed for check in checks),
    )


def in_own_units(
    found: Comparison,
    scales: tuple[ScoreScale, ScoreScale],
    thresholds: tuple[float, float],
) -> Comparison:
    """A comparison of scores that were brought to 0–1, told in the scores' own units.

    Where one of the two is no probability there is no Brier score and ECE to compare, and one's
    threshold means nothing on the other's scale.
    """
    if all(scale.probability for scale in scales):
        return found

    def ranked(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        return {
            name: Estimate(None) if name in PROBABILITY_METRICS else estimate
            for name, estimate in estimates.items()
        }

    nothing = {name: Estimate(None) for name in found.carried}
    differences = replace(found.differences, two_sided=ranked(found.differences.two_sided))
    return replace(
        found,
        thresholds=thresholds,
        old=ranked(found.old),
        new=ranked(found.new),
        carried=nothing,
        differences=differences,
        carried_differences=PairedDifferences(
            nothing, dict.fromkeys(nothing, None), dict.fromkeys(nothing, None)
        ),
    )


def _checks(
    truth: IntArray,
    scores: tuple[FloatArray, FloatArray],
    right: tuple[Any, Any],
    differences: PairedDifferences,
    auc: PairedAuc,
    ids: Any,
    config: CompareConfig,
) -> tuple[Check, ...]:
    """AUC, sensitivity and specificity against their margins."""
    there = [int(np.unique(ids[truth == label]).size) for label in (0, 1)]
    found = []
    limits = {
        "auc": _least(
            differences.lower["auc"], _delong_lower(auc, truth, scores, ids, config.confidence)
        ),
        "sensitivity": _share_limit(truth == 1, right, differences, "sensitivity", config),
        "specificity": _share_limit(truth == 0, right, differences, "specificity", config),
    }
    margins = (config.auc_margin, config.sensitivity_margin, config.specificity_margin)
    for (name, lower), margin in zip(limits.items(), margins, strict=True):
        gap = differences.two_sided[name].value
        of = {"auc": min(there), "sensitivity": there[1], "specificity": there[0]}[name]
        reason = ""
        if gap is None or lower is None:
            reason = "not defined on these images"
        elif of < config.fewest:
            reason = f"{of} patients of the class are too few to tell, wanted {config.fewest}"
        elif lower <= -margin:
            worse = "is lower" if gap <= -margin else "could be lower"
            reason = f"{worse} by more than {margin:g}"
        found.append(Check(name, gap, lower, margin, not reason, reason))
    return tuple(found)


def _share_limit(
    inside: FloatArray | Any,
    right: tuple[Any, Any],
    differences: PairedDifferences,
    name: str,
    config: CompareConfig,
) -> float | None:
    """The lower of two limits: the bootstrap's allows for repeats, the other never collapses."""
    other = paired_share_lower(right[0][inside], right[1][inside], config.confidence)
    return _least(differences.lower[name], other)


def _delong_lower(
    auc: PairedAuc,
    truth: IntArray,
    scores: tuple[FloatArray, FloatArray],
    ids: Any,
    confidence: float,
) -> float | None:
    """One-sided; where DeLong's variance is 0, from the two AUCs' intervals (`paired_auc`)."""
    gap = auc.difference
    if gap.value is None:
        return None
    if auc.error is None:
        low = paired_auc(truth, *scores, 2 * confidence - 1, ids).difference.low
        return gap.value if low is None else low
    return gap.value - NormalDist().inv_cdf(confidence) * auc.error


def _least(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else min(first, second)
