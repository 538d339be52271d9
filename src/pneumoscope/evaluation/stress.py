"""What a change of the images costs a model, on the same images, with intervals; and the verdict.

Comes in: labels, patient ids, the model's threshold, probabilities of the images as they are and of
changed copies (NaN where there was no answer). Goes out: one `Paired` per change, a `Judgement` of
it. Knows nothing of images, of models, or of what a change is.

Sensitivity, specificity and AUC are those of the images that had an answer both ways; so is what
they are compared with. Every resample of patients is drawn once and scores both ways: the interval
of a change is that of the paired difference, far narrower than the two intervals beside each other
say.

Controls: how far the classes can be told apart by what is not pneumonia, without the model.

Comes in: one row of numbers per image (a thumbnail, file properties, a lung outline), labels,
patient ids. Goes out: out-of-sample probabilities, and their AUC with its interval. Knows nothing
of images.

A logistic regression on standardised numbers, in folds that part no patient: weak on purpose, and
its strength is fixed, not chosen. What it can use, a network can use as well; an AUC beside the
model's says that a good score is no proof of having read the lungs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals import (
    bootstrap_metrics,
    checked_interval,
    delong_interval,
    fewest_patients,
    percentile_interval,
    resampled_weights,
)
from pneumoscope.evaluation.paired import paired_share_interval
from pneumoscope.evaluation.proportions import (
    Patients,
    at_edge,
    clustered_interval,
    collapsed,
    patient_codes,
    reported_difference,
    reported_limits,
)
from pneumoscope.evaluation.ranked_metrics import (
    FloatArray,
    IntArray,
    RankedScores,
    auc_values,
    checked_labels,
    ratio,
)
from pneumoscope.records import Estimate

Metric = Literal["sensitivity", "specificity", "auc"]
METRICS: tuple[Metric, ...] = ("sensitivity", "specificity", "auc")

Judgement = Literal["holds", "unsure", "fails", "shown"]
"""`unsure`: within the limit, but the interval of the fall reaches beyond. `shown`: not judged."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Paired:
    """One change of the images, compared with the same images as they are.

    Attributes:
        images: those with an answer both ways; all below is of them.
        patients: how many patients they are of.
        positives: PNEUMONIA images among them.
        refused: images with an answer as they are, but none when changed.
        plain: each metric of the images as they are, with its interval.
        changed: of the changed copies.
        difference: changed minus plain; below 0 is worse.
    """

    images: int
    patients: int
    positives: int
    refused: int
    plain: dict[Metric, Estimate]
    changed: dict[Metric, Estimate]
    difference: dict[Metric, Estimate]

    @property
    def fall(self) -> float:
        """The larger of the falls of sensitivity and specificity; below 0 if both rise."""
        falls = [-(self.difference[m].value or 0.0) for m in ("sensitivity", "specificity")]
        return max(falls)


def compare_paired(
    labels: ArrayLike,
    patients: Patients,
    plain: ArrayLike,
    changed: ArrayLike,
    threshold: float,
    config: IntervalConfig,
) -> Paired:
    """Metrics both ways and their difference, with expanded percentile intervals over patients.

    Where a rate is 0 or 1 either way, or no resample shows a difference, limits are those of
    `edges`; of a difference of shares Tango's (`paired.paired_share_interval`).

    The paired cluster bootstrap: patients are drawn with replacement (Davison & Hinkley 1997,
    section 3.8), and each resample weighs the same images both ways.

    Args:
        labels: int, (n,), 0 or 1.
        patients: (n,), ids.
        plain: float64, (n,), probabilities of the images as they are; NaN: no answer.
        changed: float64, (n,), of their changed copies; NaN: no answer.
        threshold: PNEUMONIA is the answer from here up.
        config: level, resamples, seed.

    Returns:
        Values that are `None` where they are undefined (a class is missing, no image is left).

    Raises:
        DataError: shapes differ or a label is neither 0 nor 1.
        UsageError: the configuration's level or number of resamples is impossible.
    """
    truth = checked_labels(labels)
    before, after = np.asarray(plain, np.float64), np.asarray(changed, np.float64)
    if before.shape != truth.shape or after.shape != truth.shape:
        raise DataError(
            f"probabilities: found shapes {before.shape} and {after.shape}, wanted {truth.shape}, "
            "one per label."
        )
    answered = ~np.isnan(before)
    both = answered & ~np.isnan(after)
    ids = np.asarray(patients)[both]
    columns = (_Column(truth[both], before[both], threshold),
               _Column(truth[both], after[both], threshold))  # fmt: skip
    points = [column.values(np.ones((1, column.labels.size))) for column in columns]
    drawn: list[dict[Metric, list[FloatArray]]] = [{m: [] for m in METRICS} for _ in columns]
    for weights in _resamples(ids, checked_interval(config)):
        for column, collected in zip(columns, drawn, strict=True):
            for metric, values in column.values(weights).items():
                collected[metric].append(values)
    plain_rows, changed_rows = (
        {m: np.concatenate([*collected[m], np.empty(0)]) for m in METRICS} for collected in drawn
    )
    fewest = fewest_patients(truth[both], patient_codes(ids, ids.size)[0])

    def told(point: float, resampled: FloatArray) -> Estimate:
        return _estimate(point, resampled, config.level, fewest)

    found: list[dict[Metric, Estimate]] = []
    for column, point, rows in zip(columns, points, (plain_rows, changed_rows), strict=True):
        edges = _edges(column, ids, config.level)
        own = {m: told(point[m][0], rows[m]) for m in METRICS}
        found.append(
            {
                m: Estimate(own[m].value, *reported_limits(own[m], edges[m], [own[m].value]))
                for m in METRICS
            }
        )
    pair = (columns[0], columns[1])
    gaps = {
        m: told(points[1][m][0] - points[0][m][0], changed_rows[m] - plain_rows[m]) for m in METRICS
    }

    return Paired(
        images=int(both.sum()),
        patients=len(set(ids.tolist())),
        positives=int(truth[both].sum()),
        refused=int((answered & ~both).sum()),
        plain=found[0],
        changed=found[1],
        difference={
            m: _held_gap(m, gaps[m], pair, ids, (found[0][m], found[1][m]), config) for m in METRICS
        },
    )


def judge(found: Paired, largest_fall: float, *, plausible: bool) -> Judgement:
    """Whether sensitivity and specificity fall by no more than `largest_fall` (0 to 1)."""
    if not plausible or not found.images:
        return "shown"
    if found.fall > largest_fall + _ROUNDING:
        return "fails"
    lows = [found.difference[m].low for m in ("sensitivity", "specificity")]
    reaches = any(low is None or -low > largest_fall + _ROUNDING for low in lows)
    return "unsure" if reaches else "holds"


class _Column:
    """One set of probabilities, sorted once: the three metrics of any weighting of its images."""

    def __init__(self, labels: IntArray, probabilities: FloatArray, threshold: float) -> None:
        self.labels = labels
        self._ranked = RankedScores.of(labels, probabilities)
        called = probabilities >= threshold
        self.scores = probabilities
        self.called = called
        self._positive = (labels == 1).astype(np.float64)
        self._found = self._positive * called
        self._cleared = (1 - self._positive) * ~called

    def values(self, weights: NDArray[np.float64]) -> dict[Metric, FloatArray]:
        """Metrics (b,) of weights (b, n), NaN where undefined."""
        positives, negatives = weights @ self._positive, weights @ (1 - self._positive)
        counts = self._ranked.counts(weights[:, self._ranked.order])
        return {
            "sensitivity": ratio(weights @ self._found, positives),
            "specificity": ratio(weights @ self._cleared, negatives),
            "auc": auc_values(counts) if self.labels.size else np.full(len(weights), np.nan),
        }


def _edges(column: _Column, ids: NDArray[np.str_], level: float) -> dict[Metric, Estimate]:
    """Intervals that hold at 0 and 1."""
    positive = column.labels == 1
    return {
        "sensitivity": clustered_interval(column.called[positive], ids[positive], level),
        "specificity": clustered_interval(~column.called[~positive], ids[~positive], level),
        "auc": delong_interval(column.labels, column.scores, level, ids),
    }


def _held_gap(
    metric: Metric,
    gap: Estimate,
    columns: tuple[_Column, _Column],
    ids: NDArray[np.str_],
    values: tuple[Estimate, Estimate],
    config: IntervalConfig,
) -> Estimate:
    """A difference whose limits hold where the bootstrap's collapse."""
    before, after = values
    if np.array_equal(columns[0].scores, columns[1].scores):
        return gap  # the same scores: nothing differs, whoever the patients are
    if gap.value is None or not (collapsed(gap) or at_edge(before.value) or at_edge(after.value)):
        return gap
    if metric == "auc":
        return reported_difference(gap, after, before)
    inside = columns[0].labels == (1 if metric == "sensitivity" else 0)
    before_right, after_right = (
        column.called[inside] == (metric == "sensitivity") for column in columns
    )
    return paired_share_interval(before_right, after_right, ids[inside], config.level)


def _resamples(ids: NDArray[np.str_], config: IntervalConfig) -> Iterator[FloatArray]:
    codes, count = patient_codes(ids, ids.size)
    if count > 1:  # with one patient nothing can be resampled
        yield from resampled_weights(codes, count, config)


def _estimate(point: float, resampled: FloatArray, level: float, patients: int) -> Estimate:
    if np.isnan(point):
        return Estimate(None)
    low, high, _ = percentile_interval(resampled, level, patients)
    return Estimate(float(point), low, high)


_STRENGTH = 0.1
"""scikit-learn's C, the inverse of the penalty's weight."""


@dataclass(frozen=True, slots=True)
class ShortcutBaseline:
    """What one control reached: its images and patients, and its AUC."""

    images: int
    patients: int
    auc: Estimate


def shortcut_baseline(
    numbers: ArrayLike, labels: ArrayLike, patients: Patients, folds: int, config: IntervalConfig
) -> ShortcutBaseline | None:
    """A control's cross-validated AUC, with the bootstrap's interval over patients.

    Args:
        numbers: float, (n, d), finite.
        labels: int, (n,), 0 or 1.
        patients: (n,), ids; no patient is in two folds.
        folds: at most; fewer where a class has fewer patients.
        config: level, resamples, seed (of the folds too).

    Returns:
        `None` where a class has fewer than two patients, so that nothing can be held out.
    """
    truth, ids = checked_labels(labels), np.asarray(patients)
    scores = cross_validated(numbers, truth, ids, folds, config.seed)
    if scores is None:
        return None
    found = bootstrap_metrics(truth, scores, ids, 0.5, config).estimates["auc"]
    return ShortcutBaseline(truth.size, len(set(ids.tolist())), found)


def cross_validated(
    numbers: ArrayLike, labels: ArrayLike, patients: Patients, folds: int, seed: int
) -> FloatArray | None:
    """Each image's probability, (n,), by a model that saw none of its patient's images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, truth = np.asarray(numbers, np.float64), checked_labels(labels)
    ids = np.asarray(patients)
    fewest = min(len(set(ids[truth == label].tolist())) for label in (0, 1))
    parts = min(folds, fewest)
    if parts < 2:
        return None
    scores = np.full(truth.size, np.nan)
    dealer = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    for learned, held_out in dealer.split(rows, truth, ids):
        if len(set(truth[learned].tolist())) < 2:
            return None
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=5000))
        model.fit(rows[learned], truth[learned])
        scores[held_out] = model.predict_proba(rows[held_out])[:, 1]
    return scores
