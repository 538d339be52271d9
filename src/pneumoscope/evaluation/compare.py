"""Test whether a new model is non-inferior to an old one on the same images.

The new model passes a criterion if the one-sided lower confidence limit of the difference, new
minus old, is above minus the margin (Piaggio et al. 2012, doi:10.1001/jama.2012.87802). A criterion
that is undefined, or rests on too few patients, is not passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.config import CompareConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import PROBABILITY_METRICS
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.evaluation.paired import (
    McNemar,
    PairedAuc,
    PairedDifferences,
    is_correct,
    mcnemar,
    paired_auc,
    paired_differences,
    paired_share_interval,
)
from pneumoscope.evaluation.proportions import Patients, patient_codes
from pneumoscope.evaluation.ranked_metrics import checked_scores
from pneumoscope.records import Estimate


@dataclass(frozen=True, slots=True)
class Check:
    """One criterion of the verdict.

    Attributes:
        name: `auc`, `sensitivity` or `specificity`.
        difference: new minus old; `None` if undefined.
        lower: its one-sided lower confidence limit.
        margin: the criterion is passed if `lower` is above minus this.
        passed: whether the criterion is passed.
        reason: why it is not passed, in words; `""` if it is.
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
        n: number of images with a result from both models.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        thresholds: of the old and the new model.
        old: metrics of the old model at its threshold.
        new: metrics of the new model at its threshold.
        carried: metrics of the new model at the old model's threshold.
        differences: new minus old, each at its own threshold.
        carried_differences: new minus old, both at the old threshold.
        auc: DeLong's paired test.
        disagreement: McNemar's tests on all, on PNEUMONIA and on NORMAL images.
        checks: the criteria of the verdict.
        passed: whether all criteria are passed.
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
    """Compare two models on the same images.

    Args:
        labels: int, (n,), 0 or 1.
        scores: probabilities of the old and of the new model, each float64, (n,), in [0, 1].
        thresholds: of the old and the new model, in [0, 1].
        patients: (n,), patient ids.
        config: margins, confidence and intervals.

    Raises:
        DataError: there is no image, shapes differ or values are out of range.
    """
    truth, before = checked_scores(labels, scores[0])
    _, after = checked_scores(labels, scores[1])
    if not truth.size:
        raise DataError(
            "compare: found no image with a result from both models, wanted at least one. Compare "
            "on other images."
        )
    intervals = config.intervals()
    pair = (before, after)
    at_old = (thresholds[0], thresholds[0])
    differences = paired_differences(
        truth, pair, thresholds, patients, intervals, config.confidence
    )
    correct = (
        is_correct(truth, before, thresholds[0]),
        is_correct(truth, after, thresholds[1]),
    )
    subsets = {"all": truth >= 0, "PNEUMONIA": truth == 1, "NORMAL": truth == 0}
    auc = paired_auc(truth, before, after, config.level, patients)
    checks = _checks(truth, pair, correct, differences, auc, np.asarray(patients), config)
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
            name: mcnemar(correct[0][inside], correct[1][inside])
            for name, inside in subsets.items()
        },
        checks=checks,
        passed=all(check.passed for check in checks),
    )


def in_own_units(
    found: Comparison,
    scales: tuple[ScoreScale, ScoreScale],
    thresholds: tuple[float, float],
) -> Comparison:
    """Convert a comparison of scores that were scaled to 0–1 back to the scores' own units.

    If one of the scores is not a probability, the Brier score and the ECE are undefined, and so are
    the metrics at the other model's threshold.

    Args:
        found: the comparison of the scaled scores.
        scales: of the old and the new score.
        thresholds: of the old and the new score, in their own units.
    """
    if all(scale.probability for scale in scales):
        return found

    def ranked(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
        return {
            name: Estimate(None) if name in PROBABILITY_METRICS else estimate
            for name, estimate in estimates.items()
        }

    def limits(found: Mapping[str, float | None]) -> dict[str, float | None]:
        return {name: None if name in PROBABILITY_METRICS else at for name, at in found.items()}

    nothing = {name: Estimate(None) for name in found.carried}
    gaps = found.differences
    differences = PairedDifferences(ranked(gaps.two_sided), limits(gaps.lower), limits(gaps.upper))
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
    truth: Int64Array,
    scores: tuple[Float64Array, Float64Array],
    correct: tuple[Any, Any],
    differences: PairedDifferences,
    auc: PairedAuc,
    ids: Any,
    config: CompareConfig,
) -> tuple[Check, ...]:
    """Test AUC, sensitivity and specificity against their margins."""
    counts = [int(np.unique(ids[truth == label]).size) for label in (0, 1)]
    found = []
    limits = {
        "auc": _least(
            differences.lower["auc"], _delong_lower(auc, truth, scores, ids, config.confidence)
        ),
        "sensitivity": _share_limit(truth == 1, correct, ids, differences, "sensitivity", config),
        "specificity": _share_limit(truth == 0, correct, ids, differences, "specificity", config),
    }
    margins = (config.auc_margin, config.sensitivity_margin, config.specificity_margin)
    for (name, lower), margin in zip(limits.items(), margins, strict=True):
        gap = differences.two_sided[name].value
        of = {"auc": min(counts), "sensitivity": counts[1], "specificity": counts[0]}[name]
        reason = ""
        if gap is None or lower is None:
            reason = "is not defined on these images"
        elif of < config.fewest:
            reason = f"has only {of} patients of the class, wanted at least {config.fewest}"
        elif lower <= -margin:
            worse = "is lower" if gap <= -margin else "could be lower"
            reason = f"{worse} by more than {margin:g}"
        found.append(Check(name, gap, lower, margin, not reason, reason))
    return tuple(found)


def _share_limit(
    inside: Float64Array | Any,
    correct: tuple[Any, Any],
    ids: Any,
    differences: PairedDifferences,
    name: str,
    config: CompareConfig,
) -> float | None:
    """The lower of two limits, both clustered by patient: the bootstrap's and Tango's.

    The bootstrap's is too high where few patients change, Tango's never collapses.
    """
    pair = correct[0][inside], correct[1][inside], ids[inside]
    # A one-sided limit at confidence c is a limit of the two-sided interval at 2c - 1.
    other = paired_share_interval(*pair, 2 * config.confidence - 1)
    return _least(differences.lower[name], other.low)


def _delong_lower(
    auc: PairedAuc,
    truth: Int64Array,
    scores: tuple[Float64Array, Float64Array],
    ids: Any,
    confidence: float,
) -> float | None:
    """DeLong's one-sided lower limit; if the variance is 0, from both AUCs' own intervals."""
    gap = auc.difference
    if gap.value is None:
        return None
    if auc.error is None:
        low = paired_auc(truth, *scores, 2 * confidence - 1, ids).difference.low
        return gap.value if low is None else low
    return gap.value - NormalDist().inv_cdf(confidence) * auc.error


def _least(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else min(first, second)
