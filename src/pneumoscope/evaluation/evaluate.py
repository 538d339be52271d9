"""Evaluate a set of predictions: metrics, intervals, curves, calibration, and `metrics.json`.

An `Evaluation` is written as `metrics.json` and can be read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.arrays import Int64Array
from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.calibration import BrierParts, CalibrationAssessment, assess_calibration
from pneumoscope.evaluation.groups import GroupColumn
from pneumoscope.evaluation.intervals import METRICS_METHOD, bootstrap_metrics, delong_interval
from pneumoscope.evaluation.metrics import (
    ConfusionMatrix,
    Curve,
    Reliability,
    ScoreHistogram,
    confusion_matrix,
    reliability,
    roc_and_precision_recall,
    score_histogram,
)
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.evaluation.proportions import (
    Patients,
    clustered_interval,
    patient_codes,
    wilson_interval,
)
from pneumoscope.evaluation.ranked_metrics import METRIC_NAMES, checked_scores
from pneumoscope.records import CLASS_NAMES, Estimate

SCHEMA_VERSION = 1

PROBABILITY_METRICS = ("brier", "ece")
"""Metrics that are defined only for probabilities."""

_INTERVAL = IntervalConfig()


@dataclass(frozen=True, slots=True)
class SubgroupSensitivity:
    """Sensitivity on the PNEUMONIA images of one subtype.

    Attributes:
        images: number of PNEUMONIA images of the subtype.
        patients: number of their patients.
        sensitivity: with the interval of `clustered_interval`.
        wilson: with Wilson's interval, which assumes independent images.
    """

    images: int
    patients: int
    sensitivity: Estimate
    wilson: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The evaluation of a set of predictions.

    Attributes:
        n: number of images with a result.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        refused: number of further images without a result, which are in no metric.
        threshold: PNEUMONIA is predicted if the score is at least this.
        rule: how the threshold was chosen, in words.
        confusion_matrix: numbers of images by label and predicted class.
        interval: level, resamples and seed.
        metrics: the metrics of `metrics.json` with bootstrap intervals over patients.
        dropped: per metric, the number of resamples in which it is undefined.
        wilson: accuracy, sensitivity, specificity, ppv and npv with Wilson intervals.
        delong: AUC with DeLong's interval, clustered by patient.
        roc: `None` if a class is missing.
        precision_recall: `None` without PNEUMONIA images.
        reliability: the reliability diagram.
        histogram: scores per class.
        calibration: slope, intercept, calibration in the large, Brier decomposition; `None` if the
            score is not a probability.
        subgroups: sensitivity by subtype (`bacteria`, `virus`), sorted by name.
        classification_report: scikit-learn's text.
        groups: rates by further columns; added by the workflow.
        scale: of the scores, for `threshold` and the edges of `histogram`.

    Examples:
        >>> found = evaluate([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9])
        >>> found.metrics["auc"].value, found.confusion_matrix.fp
        (1.0, 1)
        >>> print(found.classification_report)
                      precision    recall  f1-score   support
        ...
    """

    n: int
    patients: int
    positives: int
    refused: int
    threshold: float
    rule: str
    confusion_matrix: ConfusionMatrix
    interval: IntervalConfig
    metrics: Mapping[str, Estimate]
    dropped: Mapping[str, int]
    wilson: Mapping[str, Estimate]
    delong: Estimate
    roc: Curve | None
    precision_recall: Curve | None
    reliability: Reliability
    histogram: ScoreHistogram
    calibration: CalibrationAssessment | None
    subgroups: Mapping[str, SubgroupSensitivity]
    classification_report: str
    groups: tuple[GroupColumn, ...] = ()
    scale: ScoreScale = field(default_factory=ScoreScale)

    def __repr__(self) -> str:
        area = self.metrics["auc"].value
        shown = "undefined" if area is None else f"{area:.3f}"
        return f"<Evaluation: {self.n} images of {self.patients} patients, AUC {shown}>"

    @property
    def why_no_intervals(self) -> str:
        """Why values have no interval; `""` if they have one."""
        if self.patients > 1:
            return ""
        return (
            f"All {self.n} images have the same patient id, so the variation between patients is "
            "unknown, and values other than 0 and 1 have no interval. If the id does not identify "
            "a patient, omit it or provide real patient ids."
        )

    def to_metrics_json(self) -> dict[str, Any]:
        """The document of `metrics.json`: plain values, `None` where undefined, never NaN."""
        return {
            "schema_version": SCHEMA_VERSION,
            "n": self.n,
            "patients": self.patients,
            "positives": self.positives,
            "refused": self.refused,
            "threshold": {"value": self.threshold, "rule": self.rule},
            "confusion_matrix": self.confusion_matrix.to_dict(),
            "interval": {
                "level": self.interval.level,
                "method": METRICS_METHOD,
                "resamples": self.interval.resamples,
                "seed": self.interval.seed,
                "dropped": dict(self.dropped),
                "note": self.why_no_intervals,
            },
            "metrics": _estimates_document(self.metrics),
            "wilson": _estimates_document(self.wilson),
            "delong": _estimate_document(self.delong),
            "curves": {
                "roc": self.roc.to_dict() if self.roc else None,
                "precision_recall": (
                    self.precision_recall.to_dict() if self.precision_recall else None
                ),
                "reliability": self.reliability.to_dict(),
                "histogram": self.histogram.to_dict(),
            },
            "calibration": _calibration_document(self.calibration) if self.calibration else None,
            "subgroups": {
                name: {
                    "images": group.images,
                    "patients": group.patients,
                    "sensitivity": _estimate_document(group.sensitivity),
                    "wilson": _estimate_document(group.wilson),
                }
                for name, group in self.subgroups.items()
            },
            "classification_report": self.classification_report,
            "groups": [column.to_dict() for column in self.groups if column.groups],
            "ungrouped": {c.name: c.note for c in self.groups if not c.groups},
            "scale": self.scale.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """A metric as a row of a table; `None` means undefined."""

    name: str
    value: float | None
    low: float | None
    high: float | None


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Patients | None = None,
    threshold: float = 0.5,
    rule: str = "given",
    interval: IntervalConfig = _INTERVAL,
    refused: int = 0,
    subtypes: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate a set of predictions.

    Args:
        labels: int, (n,), 0 or 1, of the images with a result.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids; `None`: every image is from another patient.
        threshold: PNEUMONIA is predicted if the probability is at least this; choose it on other
            images.
        rule: how the threshold was chosen, in words.
        interval: level, resamples and seed.
        refused: number of further images without a result.
        subtypes: (n,), `bacteria`, `virus` or `""`; only those of PNEUMONIA images are used.

    Raises:
        DataError: there is no image, shapes differ, or values are out of range.
        UsageError: the threshold, the level or the number of resamples is impossible.

    Examples:
        >>> found = evaluate([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], threshold=0.65)
        >>> accuracy = found.metrics["accuracy"]
        >>> accuracy.value
        1.0
        >>> accuracy.low < accuracy.value
        True
    """
    if not 0.0 <= threshold <= 1.0:
        raise UsageError(f"threshold: found {threshold}, wanted a probability from 0 to 1.")
    truth, scores = checked_scores(labels, probabilities)
    if not truth.size:
        raise DataError(
            f"evaluation: found no image with a result ({refused} rejected), wanted at least one. "
            "See the column 'reason' of predictions.csv."
        )
    patients = np.arange(truth.size) if patients is None else patients
    _, patient_count = patient_codes(patients, truth.size)
    bootstrap = bootstrap_metrics(truth, scores, patients, threshold, interval)
    roc, precision_recall = roc_and_precision_recall(truth, scores, patients, interval)
    matrix = confusion_matrix(truth, scores, threshold)
    return Evaluation(
        n=truth.size,
        patients=patient_count,
        positives=int(truth.sum()),
        refused=refused,
        threshold=float(threshold),
        rule=rule,
        confusion_matrix=matrix,
        interval=interval,
        metrics=bootstrap.estimates,
        dropped=bootstrap.dropped,
        wilson=wilson_intervals(matrix, interval.level),
        delong=delong_interval(truth, scores, interval.level, patients),
        roc=roc,
        precision_recall=precision_recall,
        reliability=reliability(truth, scores, interval.level),
        histogram=score_histogram(truth, scores),
        calibration=assess_calibration(truth, scores, patients, interval.level),
        subgroups=_subgroups(truth, scores >= threshold, patients, subtypes, interval),
        classification_report=_classification_report(truth, scores >= threshold),
    )


def in_own_units(found: Evaluation, scale: ScoreScale, threshold: float) -> Evaluation:
    """Convert an evaluation of scores that were scaled to 0–1 back to the scores' own units.

    Brier score, ECE, reliability and calibration are undefined for a score that is not a
    probability.

    Args:
        found: the evaluation of the scaled scores.
        scale: of the scores.
        threshold: in the scores' own units.
    """
    if scale.probability:
        return found
    edges = tuple(float(edge) for edge in scale.from_unit(found.histogram.edges))
    absent = {name: Estimate(None) for name in PROBABILITY_METRICS}
    return replace(
        found,
        threshold=threshold,
        metrics={**found.metrics, **absent},
        histogram=replace(found.histogram, edges=edges),
        reliability=Reliability((), (), (), (), ()),
        calibration=None,
        scale=scale,
    )


def wilson_intervals(matrix: ConfusionMatrix, level: float) -> dict[str, Estimate]:
    """Wilson intervals of the five metrics that are proportions of images."""
    tn, fp, fn, tp = matrix.tn, matrix.fp, matrix.fn, matrix.tp
    return {
        "accuracy": wilson_interval(tp + tn, tn + fp + fn + tp, level),
        "sensitivity": wilson_interval(tp, tp + fn, level),
        "specificity": wilson_interval(tn, tn + fp, level),
        "ppv": wilson_interval(tp, tp + fp, level),
        "npv": wilson_interval(tn, tn + fn, level),
    }


def headline(evaluation: Evaluation) -> list[HeadlineRow]:
    """One row per metric for tables, in the order of `metrics.json`."""
    rows = [(name, evaluation.metrics[name]) for name in METRIC_NAMES]
    return [HeadlineRow(name, found.value, found.low, found.high) for name, found in rows]


def from_metrics_json(document: Mapping[str, Any]) -> Evaluation:
    """Read the document that `Evaluation.to_metrics_json` wrote.

    Raises:
        DataError: the schema version differs, a key is missing, or a value has the wrong type.
    """
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"metrics.json: found schema_version {version!r}, wanted {SCHEMA_VERSION}. "
            "Evaluate again with this version of pneumoscope."
        )
    try:
        return _read(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"metrics.json: can't be read: {type(error).__name__} {error}. "
            "It is incomplete or was changed. Evaluate again."
        ) from error


def _read(document: Mapping[str, Any]) -> Evaluation:
    interval, curves = document["interval"], document["curves"]
    roc, precision_recall = curves["roc"], curves["precision_recall"]
    metrics = _estimates(document["metrics"])
    return Evaluation(
        n=int(document["n"]),
        patients=int(document["patients"]),
        positives=int(document["positives"]),
        refused=int(document["refused"]),
        threshold=float(document["threshold"]["value"]),
        rule=str(document["threshold"]["rule"]),
        confusion_matrix=ConfusionMatrix(**document["confusion_matrix"]),
        interval=IntervalConfig(
            float(interval["level"]), int(interval["resamples"]), int(interval["seed"])
        ),
        metrics={name: metrics[name] for name in METRIC_NAMES},
        dropped={name: int(count) for name, count in interval["dropped"].items()},
        wilson=_estimates(document["wilson"]),
        delong=_estimate(document["delong"]),
        roc=Curve.from_dict(roc) if roc else None,
        precision_recall=Curve.from_dict(precision_recall) if precision_recall else None,
        reliability=Reliability.from_dict(curves["reliability"]),
        histogram=ScoreHistogram.from_dict(curves["histogram"]),
        calibration=_calibration(document["calibration"]) if document["calibration"] else None,
        subgroups={
            name: SubgroupSensitivity(
                int(group["images"]),
                int(group["patients"]),
                _estimate(group["sensitivity"]),
                _estimate(group["wilson"]),
            )
            for name, group in document["subgroups"].items()
        },
        classification_report=str(document["classification_report"]),
        groups=(
            *(GroupColumn.from_dict(column) for column in document.get("groups", ())),
            *(GroupColumn(n, (), 0, str(t)) for n, t in document.get("ungrouped", {}).items()),
        ),
        scale=ScoreScale(**document.get("scale", {})),
    )


def _subgroups(
    truth: Int64Array,
    called: NDArray[np.bool_],
    patients: Patients,
    subtypes: Sequence[str] | None,
    interval: IntervalConfig,
) -> dict[str, SubgroupSensitivity]:
    if subtypes is None:
        return {}
    names, ids = np.asarray(subtypes, dtype=np.str_), np.asarray(patients)
    if names.shape != truth.shape:
        raise DataError(f"subtypes: found shape {names.shape}, wanted {truth.shape}, one per image")
    groups = {}
    for name in sorted({str(name) for name in names[truth == 1]} - {""}):
        inside = (truth == 1) & (names == name)
        hits = called[inside]
        groups[name] = SubgroupSensitivity(
            images=hits.size,
            patients=np.unique(ids[inside]).size,
            sensitivity=clustered_interval(hits, ids[inside], interval.level),
            wilson=wilson_interval(int(hits.sum()), hits.size, interval.level),
        )
    return groups


def _classification_report(truth: Int64Array, called: NDArray[np.bool_]) -> str:
    """scikit-learn's classification report; undefined values are `nan`."""
    from sklearn.metrics import classification_report

    return str(
        classification_report(
            truth,
            called.astype(np.int64),
            labels=[0, 1],
            target_names=list(CLASS_NAMES),
            digits=4,
            zero_division=np.nan,
        )
    )


def _estimate_document(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _estimates_document(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: _estimate_document(estimate) for name, estimate in estimates.items()}


def _estimate(document: Mapping[str, Any]) -> Estimate:
    numbers = (document["value"], document["low"], document["high"])
    return Estimate(*(None if number is None else float(number) for number in numbers))


def _estimates(document: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: _estimate(estimate) for name, estimate in document.items()}


def _calibration_document(assessed: CalibrationAssessment) -> dict[str, Any]:
    return {
        "slope": _estimate_document(assessed.slope),
        "intercept": _estimate_document(assessed.intercept),
        "in_the_large": _estimate_document(assessed.in_the_large),
        "mean_probability": assessed.mean_probability,
        "prevalence": assessed.prevalence,
        "brier": assessed.brier.to_dict(),
    }


def _calibration(document: Mapping[str, Any]) -> CalibrationAssessment:
    return CalibrationAssessment(
        _estimate(document["slope"]),
        _estimate(document["intercept"]),
        _estimate(document["in_the_large"]),
        float(document["mean_probability"]),
        float(document["prevalence"]),
        BrierParts(**{name: float(part) for name, part in document["brier"].items()}),
    )
