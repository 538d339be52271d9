"""Compute all metrics from sorted scores, for many weightings of the images at a time.

Scores are sorted once. Image weights are integers of shape (b, n), one row per bootstrap resample;
metrics are arrays of shape (b,), NaN where undefined. Point estimates are the case of one row of
ones, so each formula exists once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import DataError

METRIC_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "auc",
    "average_precision",
    "brier",
    "ece",
)
"""The metrics of `metrics.json`, in the order of every table."""

MOST_BINS = 15
FEWEST_PER_BIN = 20
FEWEST_FOR_ECE = 2 * FEWEST_PER_BIN
"""Fewer images make one bin, which compares means only: 0 however the probabilities are spread."""


def checked_labels(labels: ArrayLike) -> Int64Array:
    """Check labels and return them as int64, (n,).

    Raises:
        DataError: not one-dimensional, or a value other than 0 (NORMAL) and 1 (PNEUMONIA).
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"labels: found shape {array.shape}, wanted one label per image, (n,).")
    wrong = array[(array != 0) & (array != 1)]
    if wrong.size:
        raise DataError(
            f"labels: found {wrong[0].item()!r}, wanted 0 (NORMAL) or 1 (PNEUMONIA). "
            "Convert the class names to these numbers first."
        )
    return array.astype(np.int64)


def checked_scores(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Int64Array, Float64Array]:
    """Check labels and probabilities; return them as int64 and float64, both (n,).

    Raises:
        DataError: shapes differ, a label is not 0 or 1, a probability is not in [0, 1].
    """
    truth = checked_labels(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape != truth.shape:
        raise DataError(
            f"probabilities: found shape {scores.shape}, wanted {truth.shape}, one per label."
        )
    wrong = np.flatnonzero(~((scores >= 0.0) & (scores <= 1.0)))
    if wrong.size:
        raise DataError(
            f"probabilities: found {scores[wrong[0]]} at position {wrong[0]}, "
            "wanted a number from 0 to 1. Leave out rejected images."
        )
    return truth, scores


@dataclass(frozen=True, slots=True)
class RankedCounts:
    """Weighted images per distinct score and class.

    Attributes:
        scores: (g,), the distinct probabilities, decreasing.
        positives: (b, g), weight of the PNEUMONIA images with that score.
        negatives: (b, g), weight of the NORMAL images with that score.
        true_positives: (b, g), weight of the PNEUMONIA images with at least that score.
        false_positives: (b, g), weight of the NORMAL images with at least that score.
    """

    scores: Float64Array
    positives: Float64Array
    negatives: Float64Array
    true_positives: Float64Array
    false_positives: Float64Array

    @property
    def all_positives(self) -> Float64Array:
        """Weight of all PNEUMONIA images, (b,)."""
        total: Float64Array = self.positives.sum(axis=1)
        return total

    @property
    def all_negatives(self) -> Float64Array:
        """Weight of all NORMAL images, (b,)."""
        total: Float64Array = self.negatives.sum(axis=1)
        return total


@dataclass(frozen=True, slots=True)
class RankedScores:
    """Images sorted by decreasing probability, with ties grouped.

    Attributes:
        order: (n,), the sorting permutation; weights must be in this order.
        labels: (n,), 0.0 or 1.0, sorted.
        scores: (g,), the distinct probabilities, decreasing.
        starts: (g,), index of the first image with each score.
    """

    order: Int64Array
    labels: Float64Array
    scores: Float64Array
    starts: Int64Array

    @classmethod
    def of(cls, labels: Int64Array, probabilities: Float64Array) -> RankedScores:
        """Sort checked labels and probabilities, each of shape (n,)."""
        order = np.argsort(-probabilities, kind="stable")
        ranked = probabilities[order]
        new = np.ones(ranked.size, dtype=bool)
        new[1:] = ranked[1:] != ranked[:-1]
        starts = np.flatnonzero(new)
        return cls(order, labels[order].astype(np.float64), ranked[starts], starts)

    def counts(self, weights: Float64Array) -> RankedCounts:
        """Count the images with weights (b, n): integers as float64, columns in `order`."""
        positives = weights * self.labels
        negatives = weights - positives
        if self.starts.size < self.labels.size:
            positives = np.add.reduceat(positives, self.starts, axis=1)
            negatives = np.add.reduceat(negatives, self.starts, axis=1)
        return RankedCounts(
            self.scores,
            positives,
            negatives,
            np.cumsum(positives, axis=1),
            np.cumsum(negatives, axis=1),
        )

    def counts_once(self) -> RankedCounts:
        """Count every image once; b is 1."""
        return self.counts(np.ones((1, self.labels.size)))


def ratio(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    """Element-wise quotient; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    quotient: Float64Array = np.full(shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def confusion_counts(
    counts: RankedCounts, threshold: float
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """`(tn, fp, fn, tp)`, each (b,); PNEUMONIA is predicted if probability >= threshold."""
    called = int(np.count_nonzero(counts.scores >= threshold))
    if called:
        tp = counts.true_positives[:, called - 1]
        fp = counts.false_positives[:, called - 1]
    else:
        tp = fp = np.zeros(len(counts.positives))
    return counts.all_negatives - fp, fp, counts.all_positives - tp, tp


def auc_values(counts: RankedCounts) -> Float64Array:
    """Area under the ROC curve, (b,), as the Mann–Whitney statistic; ties count half."""
    wins = np.einsum("bg,bg->b", counts.positives, _negatives_below(counts))
    return ratio(wins, counts.all_positives * counts.all_negatives)


def win_shares(counts: RankedCounts) -> tuple[Float64Array, Float64Array]:
    """Per distinct score, shares of the other class that it is ranked correctly against.

    Returns:
        Two arrays (b, g): the share of NORMAL images with a lower score, and the share of
        PNEUMONIA images with a higher score. Ties count half. NaN if that class is missing.
    """
    above = counts.true_positives - 0.5 * counts.positives
    return (
        ratio(_negatives_below(counts), counts.all_negatives[:, np.newaxis]),
        ratio(above, counts.all_positives[:, np.newaxis]),
    )


def _negatives_below(counts: RankedCounts) -> Float64Array:
    """Weight of the NORMAL images with a lower score, (b, g); equal scores count half."""
    below = counts.all_negatives[:, np.newaxis] - counts.false_positives
    below += 0.5 * counts.negatives
    return below


def average_precision_values(counts: RankedCounts) -> Float64Array:
    """Sum over decreasing thresholds of (increase of recall) × precision, (b,), in [0, 1].

    This is scikit-learn's definition, without interpolation between the steps.
    """
    # Weights are integers, so a total below 1 is 0 and contributes nothing.
    called = np.maximum(counts.true_positives + counts.false_positives, 1.0)
    steps = np.einsum("bg,bg->b", counts.positives, counts.true_positives / called)
    return ratio(steps, counts.all_positives)


def brier_values(counts: RankedCounts) -> Float64Array:
    """Mean squared difference of probability and label, (b,), 0 is best (Brier 1950)."""
    squares = counts.positives @ (1.0 - counts.scores) ** 2 + counts.negatives @ counts.scores**2
    return ratio(squares, counts.all_positives + counts.all_negatives)


@dataclass(frozen=True, slots=True)
class BinCounts:
    """Weighted images per bin of near-equal mass, each (b, `MOST_BINS`); unused bins are 0."""

    mass: Float64Array
    positives: Float64Array
    score_sum: Float64Array

    def gaps(self) -> Float64Array:
        """Mean probability minus share of PNEUMONIA, (b, k); 0 in empty bins."""
        return (self.score_sum - self.positives) / np.maximum(self.mass, 1.0)

    def noise(self) -> Float64Array:
        """Sampling variance of the share of PNEUMONIA in each bin, (b, k)."""
        share = self.positives / np.maximum(self.mass, 1.0)
        return share * (1.0 - share) / np.maximum(self.mass - 1.0, 1.0)


def bin_index(counts: RankedCounts) -> Int64Array:
    """The bin of each distinct score, int64 (b, g), from 0; at most `MOST_BINS` of near-equal mass.

    Fewer bins are used if they would contain fewer than `FEWEST_PER_BIN` images each. Equal scores
    share a bin: the one that contains the middle of their run.
    """
    mass = counts.positives + counts.negatives
    total = counts.all_positives + counts.all_negatives
    wanted = np.clip(total // FEWEST_PER_BIN, 1, MOST_BINS)
    middle = counts.true_positives + counts.false_positives
    middle -= 0.5 * mass
    middle *= (wanted / np.maximum(total, 1.0))[:, np.newaxis]
    index = middle.astype(np.int64)
    np.minimum(index, MOST_BINS - 1, out=index)  # only a run without weight can be at the end
    return index


def equal_mass_bins(counts: RankedCounts) -> BinCounts:
    """Divide the ranking into bins, see `bin_index`."""
    mass = counts.positives + counts.negatives
    rows = len(mass)
    index = bin_index(counts)
    index += MOST_BINS * np.arange(rows)[:, np.newaxis]
    flat = index.ravel()

    def per_bin(values: Float64Array) -> Float64Array:
        sums: Float64Array = np.bincount(
            flat, weights=values.ravel(), minlength=rows * MOST_BINS
        ).astype(np.float64, copy=False)
        return sums.reshape(rows, MOST_BINS)

    return BinCounts(per_bin(mass), per_bin(counts.positives), per_bin(mass * counts.scores))


def ece_values(counts: RankedCounts, noise_sources: int = 1) -> Float64Array:
    """Expected calibration error with bins of equal mass, debiased, (b,), in [0, 1], 0 is best.

    The mean over images of |mean probability - share of PNEUMONIA| in their bin. Without
    correction, it is positive even for a perfectly calibrated model, because the share in each bin
    is a noisy sample. The sampling variance `q (1 - q) / (n - 1)` of a bin with n images and share
    q is therefore subtracted from the squared gap, and negative differences are set to 0 (Bröcker
    2012, doi:10.1007/s00382-011-1191-1; Kumar, Liang & Ma 2019, arXiv:1909.10155, for the squared
    error). A small upward bias remains because of the truncation at 0. It is NaN for fewer than
    `FEWEST_FOR_ECE` images.

    `noise_sources` is the number of times that sampling noise entered: 1 for a sample, 2 for a
    bootstrap resample of it. Subtracting it that often centres the resamples on the sample's value.
    """
    bins = equal_mass_bins(counts)
    squares = bins.gaps() ** 2 - noise_sources * bins.noise()
    errors = np.sqrt(np.maximum(squares, 0.0))
    images = bins.mass.sum(axis=1)
    found = ratio(np.einsum("bk,bk->b", bins.mass, errors), images)
    return np.where(images < FEWEST_FOR_ECE, np.nan, found)


def metric_values(
    counts: RankedCounts, threshold: float, noise_sources: int | None = 1
) -> dict[str, Float64Array]:
    """All `METRIC_NAMES`, each (b,), NaN if undefined; no `ece` if `noise_sources` is None.

    - accuracy: share of correct predictions; balanced_accuracy: mean of sensitivity and specificity
    - sensitivity (recall): share of PNEUMONIA images that are predicted PNEUMONIA
    - specificity: share of NORMAL images that are predicted NORMAL
    - ppv (precision), npv: share of correct PNEUMONIA and NORMAL predictions, at this prevalence
    - f1: harmonic mean of sensitivity and ppv, `2 tp / (2 tp + fp + fn)`
    - auc, average_precision, brier, ece: `auc_values`, `average_precision_values`, `brier_values`,
      `ece_values`
    """
    tn, fp, fn, tp = confusion_counts(counts, threshold)
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    return {
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "auc": auc_values(counts),
        "average_precision": average_precision_values(counts),
        "brier": brier_values(counts),
        **({} if noise_sources is None else {"ece": ece_values(counts, noise_sources)}),
    }
