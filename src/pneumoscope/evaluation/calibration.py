"""Calibrate probabilities, assess calibration, and compute intervals of the calibration error.

Calibrate on validation images and assess on others.

The interval of the expected calibration error (`GapResamples`) is not a percentile interval. The
calibration error is a mean of absolute gaps, which sampling noise can only increase: all resamples
of a perfectly calibrated model are above 0, so percentiles would never cover the true value. Each
bin's absolute gap is therefore corrected for the expected contribution of noise, the mean of a
folded normal variable minus its location (Leone, Nelson & Nottingham 1961,
doi:10.1080/00401706.1961.10489974), with the noise estimated by resampling patients. The corrected
value is resampled in the same way. The interval extends to 0 if a perfectly calibrated model would
often show as large an error (consistency resampling, Bröcker & Smith 2007, doi:10.1175/WAF993.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import BundleError, DataError
from pneumoscope.evaluation.proportions import Patients, patient_codes
from pneumoscope.evaluation.ranked_metrics import (
    RankedScores,
    bin_index,
    checked_labels,
    checked_scores,
    equal_mass_bins,
)
from pneumoscope.records import Estimate

Method: TypeAlias = Literal["none", "temperature", "platt"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Simplest first: 0, 1 and 2 fitted parameters."""

FOLDS = 5
_MOST_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10
_LEAST_STEP = 1e-8
_RIDGE = 1e-12
_CLIP = 1e-7
"""Probabilities are clipped to [this, 1 - this] before the logit; float32 can output 0 and 1."""

_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line on the logit scale: probability = sigmoid(slope × logit + intercept).

    Attributes:
        method: `none` (1, 0), `temperature` (slope 1/T, 0; Guo et al. 2017) or `platt` (both
            fitted; Platt 1999).
        slope: above 0, so that the ranking of the images is unchanged.
        intercept: in logits.
    """

    method: Method = "none"
    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, logits: ArrayLike) -> Float64Array:
        """Calibrated probabilities, float64 in [0, 1], in the shape of `logits`."""
        return sigmoid(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def to_dict(self) -> dict[str, str | float]:
        """For `bundle.json`."""
        return {"method": self.method, "slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        """Read the document that `to_dict` wrote.

        Raises:
            BundleError: the method is unknown, the slope is not a number above 0, or the intercept
                is not a number.
        """
        found = tuple(document.get(key) for key in ("method", "slope", "intercept"))
        method, slope, intercept = found
        numbers = all(
            isinstance(number, int | float)
            and not isinstance(number, bool)
            and math.isfinite(number)
            for number in (slope, intercept)
        )
        if method not in METHODS or not numbers or cast(float, slope) <= 0.0:
            raise BundleError(
                f"calibration: found method, slope and intercept {found!r}, wanted one of "
                f"{', '.join(METHODS)}, a number above 0, and a number. Fetch the model again."
            )
        return cls(method, float(cast(float, slope)), float(cast(float, intercept)))


@dataclass(frozen=True, slots=True)
class BrierParts:
    """Decomposition of the Brier score: reliability - resolution + uncertainty + within_bin.

    Attributes:
        reliability: mean squared gap between probability and observed frequency; 0 is best.
        resolution: variance of the observed frequency between bins; higher is better.
        uncertainty: prevalence × (1 - prevalence); independent of the model.
        within_bin: remainder from replacing the probabilities in a bin by their mean (near 0).
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "reliability": self.reliability,
            "resolution": self.resolution,
            "uncertainty": self.uncertainty,
            "within_bin": self.within_bin,
        }


@dataclass(frozen=True, slots=True)
class CalibrationAssessment:
    """Agreement of predicted probabilities with observed frequencies.

    Attributes:
        slope: ideal is 1; below 1, probabilities are too extreme. `None` if the classes are
            perfectly separated.
        intercept: fitted together with the slope; ideal is 0. `None` likewise.
        in_the_large: intercept with the slope fixed at 1; ideal is 0, below 0 probabilities are too
            high on average. `None` if a class is missing.
        mean_probability: mean predicted probability.
        prevalence: share of PNEUMONIA images.
        brier: decomposition of the Brier score.
    """

    slope: Estimate
    intercept: Estimate
    in_the_large: Estimate
    mean_probability: float
    prevalence: float
    brier: BrierParts


def sigmoid(logits: Float64Array) -> Float64Array:
    """`1 / (1 + exp(-logits))`, any shape, without overflow."""
    values: Float64Array = np.exp(-np.logaddexp(0.0, -logits))
    return values


def logit(probabilities: ArrayLike) -> Float64Array:
    """`log(p / (1 - p))`, any shape; p is first clipped to [1e-7, 1 - 1e-7]."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), _CLIP, 1.0 - _CLIP)
    values: Float64Array = np.log(clipped) - np.log1p(-clipped)
    return values


def fit_calibration(
    labels: ArrayLike, logits: ArrayLike, patients: Patients, seed: int
) -> Calibration:
    """Fit `none`, `temperature` and `platt`, and select the simplest that is good enough.

    Each method minimises the log-loss by Newton's method, with Platt's smoothed targets
    ((N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2)), so that the slope stays finite if the classes are perfectly
    separated. The methods are compared by their log-loss on the original labels in 5-fold
    cross-validation by patient. The simplest method whose mean loss is within one standard error
    (of the paired difference, clustered by patient) of the best is selected: the
    one-standard-error rule of Breiman et al. 1984.

    Returns `none` if a class is missing, if there are fewer than 2 patients, or if the fitted slope
    would reverse the ranking.

    Args:
        labels: int, (n,), 0 or 1.
        logits: float64, (n,), finite.
        patients: (n,), patient ids; all images of a patient are in the same fold.
        seed: of the assignment of patients to folds.

    Raises:
        DataError: shapes differ, a label is not 0 or 1, a logit is not finite.
    """
    truth, values = _checked_logits(labels, logits)
    codes, count = patient_codes(patients, truth.size)
    if truth.min(initial=1) == truth.max(initial=0) or count < 2:
        return Calibration()
    losses = held_out_losses(truth, values, patients, seed)
    best = min(METHODS, key=lambda method: float(losses[method].mean()))
    chosen = next(
        method
        for method in METHODS
        if _within_one_error(losses[method] - losses[best], codes, count)
    )
    fitted = fit_line(chosen, truth, values)
    return fitted if fitted.slope > 0.0 else Calibration()


def held_out_losses(
    labels: ArrayLike, logits: ArrayLike, patients: Patients, seed: int
) -> dict[Method, Float64Array]:
    """Cross-validated log-loss of every image, float64 (n,), by method.

    Arguments and errors are those of `fit_calibration`; there must be at least 2 patients.
    """
    truth, values = _checked_logits(labels, logits)
    codes, count = patient_codes(patients, truth.size)
    folds = _patient_folds(truth, codes, count, seed)[codes]
    return {method: _held_out_losses(method, truth, values, folds) for method in METHODS}


def _checked_logits(labels: ArrayLike, logits: ArrayLike) -> tuple[Int64Array, Float64Array]:
    truth = checked_labels(labels)
    values = np.asarray(logits, dtype=np.float64)
    if values.shape != truth.shape or not np.isfinite(values).all():
        raise DataError(
            f"logits: found shape {values.shape} with {np.count_nonzero(~np.isfinite(values))} "
            f"that are not finite, wanted {truth.shape}, all finite. Leave out rejected images."
        )
    return truth, values


def assess_calibration(
    labels: ArrayLike, probabilities: ArrayLike, patients: Patients, level: float
) -> CalibrationAssessment:
    """Calibration slope and intercept (Cox 1958), calibration in the large, Brier decomposition.

    Slope and intercept come from a logistic regression of the labels on the logits of the
    probabilities. Intervals are Wald intervals with the sandwich variance clustered by patient
    (Liang & Zeger 1986); there is none with fewer than two patients.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids.
        level: confidence level, such as 0.95.

    Raises:
        DataError: there is no image, shapes differ, or values are out of range.
    """
    truth, scores = checked_scores(labels, probabilities)
    if not truth.size:
        raise DataError("calibration: found no image, wanted at least one with a probability.")
    codes, count = patient_codes(patients, truth.size)
    x, ones = logit(scores), np.ones(truth.size)
    large, intercept, slope = Estimate(None), Estimate(None), Estimate(None)
    if 0 < truth.sum() < truth.size:
        (large,) = _wald(ones[:, np.newaxis], truth, x, codes, count, level)
        if not _separable(truth, x):
            design = np.column_stack([ones, x])
            intercept, slope = _wald(design, truth, 0.0 * x, codes, count, level)
    return CalibrationAssessment(
        slope,
        intercept,
        large,
        float(scores.mean()),
        float(truth.mean()),
        brier_parts(truth, scores),
    )


def brier_parts(labels: ArrayLike, probabilities: ArrayLike) -> BrierParts:
    """Murphy's decomposition (1973) of the Brier score over the bins of the calibration error.

    The within-bin remainder is that of Stephenson, Coelho & Jolliffe 2008. NaN without images.

    Raises:
        DataError: shapes differ or values are out of range.
    """
    truth, scores = checked_scores(labels, probabilities)
    if not truth.size:
        return BrierParts(math.nan, math.nan, math.nan, math.nan)
    bins = equal_mass_bins(RankedScores.of(truth, scores).counts_once())
    used = bins.mass[0] > 0
    weight = bins.mass[0, used] / truth.size
    share = bins.positives[0, used] / bins.mass[0, used]
    prevalence = float(truth.mean())
    reliability = float(weight @ bins.gaps()[0, used] ** 2)
    resolution = float(weight @ (share - prevalence) ** 2)
    uncertainty = prevalence * (1.0 - prevalence)
    brier = float(np.mean((scores - truth) ** 2))
    return BrierParts(
        reliability, resolution, uncertainty, brier - (reliability - resolution + uncertainty)
    )


def _patient_folds(truth: Int64Array, codes: Int64Array, patients: int, seed: int) -> Int64Array:
    """The fold of each patient, (patients,), stratified by whether a patient has PNEUMONIA."""
    has_positive = np.zeros(patients, dtype=np.int64)
    np.maximum.at(has_positive, codes, truth)
    shuffled = np.random.default_rng(seed).permutation(patients)
    ordered = shuffled[np.argsort(has_positive[shuffled], kind="stable")]
    folds = np.empty(patients, dtype=np.int64)
    folds[ordered] = np.arange(patients) % FOLDS
    return folds


def _held_out_losses(
    method: Method, truth: Int64Array, logits: Float64Array, folds: Int64Array
) -> Float64Array:
    losses = np.empty(truth.size)
    for fold in np.unique(folds):
        held_out = folds == fold
        fitted = fit_line(method, truth[~held_out], logits[~held_out])
        calibrated = fitted.slope * logits[held_out] + fitted.intercept
        losses[held_out] = np.logaddexp(0.0, calibrated) - truth[held_out] * calibrated
    return losses


def _within_one_error(excess: Float64Array, codes: Int64Array, patients: int) -> bool:
    """Whether a mean excess loss is at most its standard error, clustered by patient."""
    mean = float(excess.mean())
    sums = np.bincount(codes, weights=excess - mean, minlength=patients)
    error = math.sqrt(float(sums @ sums) * patients / (patients - 1)) / excess.size
    return mean <= error


def fit_line(method: Method, truth: Int64Array, logits: Float64Array) -> Calibration:
    """Fit one method to all images, with Platt's targets; see `fit_calibration`."""
    if method == "none":
        return Calibration()
    positives = int(truth.sum())
    negatives = truth.size - positives
    targets = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    columns = [logits, np.ones(truth.size)] if method == "platt" else [logits]
    coefficients = _newton(np.column_stack(columns), targets, np.zeros(truth.size))
    intercept = float(coefficients[1]) if method == "platt" else 0.0
    return Calibration(method, float(coefficients[0]), intercept)


def _newton(design: Float64Array, targets: Float64Array, offset: Float64Array) -> Float64Array:
    """Minimise the mean log-loss of sigmoid(offset + design @ coefficients); (n, k) → (k,).

    Newton's method with step halving (Lin, Lin & Weng 2007). The loss is convex.
    """
    count, size = design.shape
    coefficients = np.zeros(size)

    def loss(at: Float64Array) -> float:
        logits = offset + design @ at
        return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))

    for _ in range(_MOST_STEPS):
        p = sigmoid(offset + design @ coefficients)
        gradient = design.T @ (p - targets) / count
        if np.abs(gradient).max() < _GRADIENT_TOLERANCE:
            break
        hessian = _information(design, p) / count + _RIDGE * np.eye(size)
        step = np.linalg.solve(hessian, gradient)
        scale, now = 1.0, loss(coefficients)
        while scale > _LEAST_STEP and loss(coefficients - scale * step) > now:
            scale /= 2
        if scale <= _LEAST_STEP:  # only rounding error is left
            break
        coefficients = coefficients - scale * step
    return coefficients


def _information(design: Float64Array, p: Float64Array) -> Float64Array:
    weighted: Float64Array = (design * (p * (1.0 - p))[:, np.newaxis]).T @ design
    return weighted


def _separable(truth: Int64Array, x: Float64Array) -> bool:
    """Whether a threshold separates the classes, except for ties, so that no finite slope is best.

    `x` is float64, (n,); both classes are present.
    """
    positive, negative = x[truth == 1], x[truth == 0]
    return bool(positive.min() >= negative.max() or positive.max() <= negative.min())


def _wald(
    design: Float64Array,
    truth: Int64Array,
    offset: Float64Array,
    codes: Int64Array,
    patients: int,
    level: float,
) -> list[Estimate]:
    """Logistic regression coefficients with intervals clustered by patient."""
    coefficients = _newton(design, truth.astype(np.float64), offset)
    if patients < 2:
        return [Estimate(float(value)) for value in coefficients]
    p = sigmoid(offset + design @ coefficients)
    scores = np.zeros((patients, design.shape[1]))
    np.add.at(scores, codes, design * (truth - p)[:, np.newaxis])
    bread = np.linalg.inv(_information(design, p))
    variance = bread @ (scores.T @ scores) @ bread * patients / (patients - 1)
    half = NormalDist().inv_cdf((1.0 + level) / 2) * np.sqrt(np.diag(variance))
    return [
        Estimate(float(value), float(value - h), float(value + h))
        for value, h in zip(coefficients, half, strict=True)
    ]


@dataclass(slots=True)
class GapResamples:
    """Calibration gaps of a sample's bins, and of bootstrap resamples in the same bins.

    Attributes:
        starts: (k,), index of each bin's first image in the ranking.
        excess: (n,), probability minus label of each image, in the order of the ranking.
        own: (k,), expected variance of the gaps of a perfectly calibrated model.
        mass: blocks (b, k), weight of each bin in each resample.
        sums: blocks (b, k), weighted sum of the excess.
    """

    starts: Int64Array
    excess: Float64Array
    own: Float64Array
    mass: list[Float64Array] = field(default_factory=list)
    sums: list[Float64Array] = field(default_factory=list)

    @classmethod
    def of(cls, ranked: RankedScores) -> GapResamples:
        """The gaps of a sample, without resamples yet."""
        images = np.diff(np.append(ranked.starts, ranked.labels.size))
        scores = np.repeat(ranked.scores, images)
        bins = np.repeat(bin_index(ranked.counts_once())[0], images)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        mass = np.diff(np.append(starts, scores.size))
        own = np.add.reduceat(scores * (1.0 - scores), starts) / mass**2 if scores.size else scores
        return cls(starts, scores - ranked.labels, own)

    def add(self, weights: Float64Array) -> None:
        """Add resamples: weights (b, n), columns in the order of the ranking."""
        self.mass.append(np.add.reduceat(weights, self.starts, axis=1))
        self.sums.append(np.add.reduceat(weights * self.excess, self.starts, axis=1))

    def interval(self, point: float, reach: float) -> tuple[float, float]:
        """The interval of the calibration error.

        Args:
            point: the calibration error; the interval always contains it.
            reach: standard normal quantile, such as 1.96 for an interval at 0.95.
        """
        mass, images = np.concatenate(self.mass), np.diff(np.append(self.starts, self.excess.size))
        gaps = np.concatenate(self.sums) / np.maximum(mass, 1.0)
        gap, share = np.add.reduceat(self.excess, self.starts) / images, images / images.sum()
        noise = gaps.std(axis=0)
        centre = float(share @ _unfolded(gap, noise))
        shares = mass / mass.sum(axis=1, keepdims=True)
        moved = np.einsum("bk,bk->b", shares, _unfolded(gaps, noise))
        tail = 0.5 * math.erfc(reach / math.sqrt(2.0))
        low, high = np.quantile(moved, [tail, 1.0 - tail], method="weibull") - moved.mean()
        low, high = centre + float(low), centre + float(high)
        if float(share @ np.abs(gap)) <= self._consistent(share, noise, reach):
            low = 0.0
        return min(max(low, 0.0), point), min(max(high, point), 1.0)

    def _consistent(self, share: Float64Array, noise: Float64Array, reach: float) -> float:
        """Upper limit, at quantile `reach`, of a perfectly calibrated model's mean absolute gap.

        The sum of folded normal gaps is approximated as normal. The noise of a bin is estimated by
        resampling, which gives 0 if all labels agree, or from the probabilities if that is larger.
        """
        spread = np.sqrt(np.maximum(noise**2, self.own))
        mean = math.sqrt(2.0 / math.pi) * float(share @ spread)
        variance = (1.0 - 2.0 / math.pi) * float(share**2 @ spread**2)
        return mean + reach * math.sqrt(variance)


def _unfolded(gaps: Float64Array, noise: Float64Array) -> Float64Array:
    """Absolute gaps (…, k) minus the mean contribution of noise with standard deviation (k,)."""
    from scipy.special import ndtr

    sizes = np.abs(gaps)
    ratio = sizes / np.maximum(noise, _LEAST)
    density = np.exp(-0.5 * ratio**2) * math.sqrt(2.0 / math.pi)
    folded = sizes * (2.0 * ndtr(ratio) - 1.0) + noise * density
    less: Float64Array = 2.0 * sizes - folded
    return less
