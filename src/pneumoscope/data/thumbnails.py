"""Thumbnails of a data set, and what classifiers on them show: shift between splits, label noise.

`ThumbnailSet` holds the readable images of a data set as arrays. `cross_validated` computes scores
from classifiers that were not trained on the image's patient; `area` and `interval_of_area` compute
the area under the ROC curve of these scores and its interval.

`split_tests` are classifier two-sample tests. If a classifier can determine from which split an
image comes, the splits differ by more than chance: they were acquired differently. The result is
one `SplitTest` per class and pair of splits. Method: Lopez-Paz and Oquab 2017, "Revisiting
classifier two-sample tests" (arXiv:1610.06545). Folds keep patients together.

`review_labels` finds label-noise candidates by confident learning: Northcutt, Jiang and Chuang
2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (doi:10.1613/jair.1.12125). The
threshold of a class is the mean probability of that class over the images with its label. An image
is a candidate if it exceeds the threshold of the other class and the other class is more probable.
The counts, scaled to the number of labels, estimate how many labels are wrong. Hard images are
among the candidates; only a radiologist can distinguish them from wrong labels. No label is
changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from pneumoscope.arrays import Float32Array, Float64Array, Int64Array
from pneumoscope.data.audit_record import (
    LEVEL,
    Driver,
    LabelCandidate,
    LabelReview,
    Member,
    Property,
    SplitTest,
)
from pneumoscope.data.duplicates import QUANTITIES, roc_area
from pneumoscope.progress import Task
from pneumoscope.records import CLASS_NAMES, SPLITS

THUMBNAIL_SIDE = 32
SMALL_SIDE = 16

_RING = 4
"""Width in pixels of a thumbnail's border: the outer eighth of the image on each side."""

_TINY = 1e-6


FOLDS = 5
_RESAMPLES = 300
_STEPS = 500
_ROWS_PER_COMPONENT = 5

_MIN_IMAGES = 20
_MAX_DRIVERS = 3
_SKEWED = ("width", "height", "file_bytes")
"""The classifier gets their logarithms, since ratios matter, not differences."""

PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))
"""The comparisons, in this order; the names are those of SPLITS."""

MIN_PER_CLASS = 50
"""Fewest images of a class for a label review."""

_MIN_AUC = 0.75
"""With a lower AUC the scores name images at random."""

_HIGHEST_BAR = 0.9
"""Our addition: if the classes are almost separable, a wrong label just misses the threshold."""

_COMPONENTS = 120
_PENALTY = 10.0


@dataclass(frozen=True, slots=True)
class ThumbnailSet:
    """The readable images of a data set, all arrays in the same order.

    Attributes:
        thumbnails: (n, 1024) uint8, 32×32 pixels each.
        numbers: (n, len(QUANTITIES)) float64, the columns of `duplicates.QUANTITIES`.
        labels: (n,) int64, 0 or 1.
        patients: (n,) str.
        splits: (n,) str.
        digests: SHA-256 of each file.
        members: path, split, label and patient of each image, for the records.
    """

    thumbnails: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    digests: tuple[str, ...]
    members: tuple[Member, ...]

    @property
    def small(self) -> Float32Array:
        """(n, 256) float32 in [0, 1]: the thumbnails at 16×16."""
        factor = THUMBNAIL_SIDE // SMALL_SIDE
        cut = self.thumbnails.reshape(-1, SMALL_SIDE, factor, SMALL_SIDE, factor)
        mean: Float32Array = cut.mean(axis=(2, 4), dtype=np.float32).reshape(-1, SMALL_SIDE**2)
        return mean / np.float32(255)

    @property
    def border(self) -> Float32Array:
        """(n,) float32 in [0, 1]: mean brightness of the outer ring."""
        return self._mean_where(_ring())

    @property
    def centre(self) -> Float32Array:
        """(n,) float32 in [0, 1]: mean brightness inside the outer ring."""
        return self._mean_where(~_ring())

    def _mean_where(self, mask: npt.NDArray[np.bool_]) -> Float32Array:
        if not len(self.thumbnails):
            return np.zeros(0, np.float32)
        mean: Float32Array = self.thumbnails[:, mask].mean(axis=1, dtype=np.float32)
        return mean / np.float32(255)


def _ring() -> npt.NDArray[np.bool_]:
    """(1024,) bool: the border of a thumbnail."""
    mask = np.ones((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.bool_)
    mask[_RING:-_RING, _RING:-_RING] = False
    return mask.ravel()


def standardised(rows: Float32Array) -> Float32Array:
    """Scale each row to mean 0 and length 1 (constant rows to 0), so products are Pearson's r."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    unit: Float32Array = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _TINY)
    return unit


def residuals_from_mean(rows: Float32Array) -> Float32Array:
    """Standardised rows minus their common mean, standardised again.

    All chest X-rays look alike; the residuals are the differences from the mean image. On the
    Kermany training images they separate pairs of one patient from pairs of different patients with
    AUC 0.71; without this step, 0.62.
    """
    once = standardised(rows)
    return standardised(once - once.mean(axis=0))


@dataclass(frozen=True, slots=True)
class Scores:
    """Cross-validated scores.

    Attributes:
        logits: (n,) float64, from the fold in which the row was held out.
        fold: (n,) int64, number of that fold; the scores of different folds differ in scale.
    """

    logits: Float64Array
    fold: Int64Array


def cross_validated(
    features: Float32Array | Float64Array,
    classes: Int64Array,
    patients: npt.NDArray[np.str_],
    seed: int,
    *,
    folds: int = FOLDS,
    components: int = 0,
    penalty: float = 100.0,
    iterations: int = _STEPS,
) -> Scores | None:
    """Logits of a logistic regression on standardised features, cross-validated by patient.

    Args:
        features: (n, d) float32.
        classes: (n,) 0 or 1.
        patients: (n,) str; a patient's rows are held out together.
        seed: of the assignment to folds.
        folds: number of folds.
        components: principal components taken first, 0 for none; of few rows, a fifth of them.
        penalty: of squared weights (1 / C).
        iterations: limit of the solver's iterations.

    Returns:
        The scores, or `None` if a class has fewer patients than there are folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if any(len(np.unique(patients[classes == c])) < folds for c in (0, 1)):
        return None
    logits = np.zeros(len(classes), np.float64)
    fold = np.zeros(len(classes), np.int64)
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (seen, held) in enumerate(dealer.split(features, classes, patients)):
        if len(np.unique(classes[seen])) < 2:
            return None
        most = min(components, features.shape[1], max(1, len(seen) // _ROWS_PER_COMPONENT))
        model = make_pipeline(
            PCA(most, random_state=seed) if components else "passthrough",
            StandardScaler(),
            LogisticRegression(C=1 / penalty, max_iter=iterations),
        )
        model.fit(features[seen], classes[seen])
        logits[held] = model.decision_function(features[held])
        fold[held] = number
    return Scores(logits, fold)


def area(scores: Scores, classes: Int64Array) -> float:
    """Area under the ROC curve over pairs within one fold."""
    return float(_areas(scores, classes, np.ones((1, len(classes)), np.float64))[0])


def interval_of_area(
    scores: Scores, classes: Int64Array, patients: npt.NDArray[np.str_], seed: int
) -> tuple[float, float]:
    """The 95 % interval of `area` by bootstrap of patients, with fixed classifiers.

    The Bayesian bootstrap (Rubin 1981, doi:10.1214/aos/1176345338): each patient gets a random
    weight, so that every resample has both classes.
    """
    rng = np.random.default_rng(seed)
    _, codes = np.unique(patients, return_inverse=True)
    weights = rng.exponential(size=(_RESAMPLES, int(codes.max()) + 1))[:, codes]
    low, high = np.quantile(_areas(scores, classes, weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _areas(scores: Scores, classes: Int64Array, weights: Float64Array) -> Float64Array:
    """Weighted areas (r,), one per row of `weights` (r, n); ties count half."""
    won = np.zeros(len(weights), np.float64)
    pairs = np.zeros(len(weights), np.float64)
    for number in np.unique(scores.fold):
        own = scores.fold == number
        logits, weight = scores.logits[own], weights[:, own]
        positive = classes[own] == 1
        order = np.argsort(logits[~positive])
        negatives = logits[~positive][order]
        of_negatives = weight[:, ~positive][:, order]
        below = np.concatenate(
            [np.zeros((len(weights), 1)), np.cumsum(of_negatives, axis=1)], axis=1
        )
        left = np.searchsorted(negatives, logits[positive], side="left")
        right = np.searchsorted(negatives, logits[positive], side="right")
        of_positives = weight[:, positive]
        won += (of_positives * (below[:, left] + below[:, right]) / 2).sum(axis=1)
        pairs += of_positives.sum(axis=1) * below[:, -1]
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), 0.5)


def split_tests(images: ThumbnailSet, seed: int, task: Task) -> tuple[SplitTest, ...]:
    """Run one test per class and pair of splits that both have 20 images of five patients.

    Args:
        images: readable images.
        seed: of the assignment to folds and of the bootstrap.
        task: reports each comparison.
    """
    found = []
    for label, (first, second) in itertools.product(range(len(CLASS_NAMES)), PAIRS):
        of_class = images.labels == label
        places = np.flatnonzero(of_class & np.isin(images.splits, (first, second)))
        classes = (images.splits[places] == second).astype(np.int64)
        if min(classes.sum(), len(classes) - classes.sum()) >= _MIN_IMAGES:
            found.append(_test(images, places, classes, (label, first, second), seed))
        task.advance()
    return tuple(test for test in found if test is not None)


def comparisons() -> int:
    """The maximum number of comparisons of `split_tests`."""
    return len(CLASS_NAMES) * len(list(itertools.combinations(SPLITS, 2)))


def _test(
    images: ThumbnailSet,
    places: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    named: tuple[int, str, str],
    seed: int,
) -> SplitTest | None:
    label, first, second = named
    patients = images.patients[places]
    properties = {name: values[places] for name, values in _properties(images).items()}
    columns = _columns(properties)
    small = images.small[places]
    whole = cross_validated(np.hstack([small, columns]), classes, patients, seed)
    shape = cross_validated(standardised(small), classes, patients, seed)
    alone = cross_validated(columns, classes, patients, seed) if columns.shape[1] else None
    if whole is None or shape is None:
        return None
    low, high = interval_of_area(whole, classes, patients, seed)
    drivers = sorted(_drivers(properties, classes), key=lambda driver: -driver.auc)
    return SplitTest(
        label=CLASS_NAMES[label],
        first=first,
        second=second,
        images=len(places),
        patients=len(np.unique(patients)),
        auc=round(area(whole, classes), 4),
        low=round(low, 4),
        high=round(high, 4),
        shape_auc=round(area(shape, classes), 4),
        property_auc=round(area(alone, classes), 4) if alone is not None else 0.5,
        drivers=tuple(drivers[:_MAX_DRIVERS]),
    )


def _properties(images: ThumbnailSet) -> Mapping[Property, npt.NDArray[np.float64]]:
    """Every property of every image, (n,) float64 each."""
    found: dict[Property, npt.NDArray[np.float64]] = {
        cast("Property", name): images.numbers[:, column] for column, name in enumerate(QUANTITIES)
    }
    found["border"] = images.border.astype(np.float64)
    found["centre"] = images.centre.astype(np.float64)
    return found


def _columns(properties: Mapping[Property, npt.NDArray[np.float64]]) -> Float32Array:
    """(n, k) float32: the properties that vary, skewed ones as logarithms."""
    varying = [
        np.log(np.maximum(values, 1.0)) if name in _SKEWED else values
        for name, values in properties.items()
        if np.ptp(values) > 0
    ]
    if not varying:
        return np.zeros((len(next(iter(properties.values()))), 0), np.float32)
    return np.stack(varying, axis=1).astype(np.float32)


def _drivers(
    properties: Mapping[Property, npt.NDArray[np.float64]], classes: npt.NDArray[np.int64]
) -> Iterator[Driver]:
    for name, values in properties.items():
        if np.ptp(values) > 0:
            one, other = values[classes == 0], values[classes == 1]
            alone = roc_area(one, other)
            yield Driver(
                name,
                round(max(alone, 1 - alone), 4),
                round(float(np.median(one)), 4),
                round(float(np.median(other)), 4),
            )


@dataclass(frozen=True, slots=True)
class Candidates:
    """The result of confident learning for the labels 0 and 1.

    Attributes:
        places: (m,) int64, the candidates, most doubtful first.
        margins: (m,) float64, probability of the other class minus that of the label.
        expected: expected number of wrong labels 0 and wrong labels 1.
    """

    places: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]
    expected: tuple[float, float]


def review_labels(
    images: ThumbnailSet, seed: int, predictions: npt.NDArray[np.float64] | None = None
) -> LabelReview | None:
    """Score every label; `None` with fewer than 50 images of a class, or too few patients.

    If the scores have an AUC below 0.75, no single label is reported.

    Args:
        images: readable images.
        seed: of the assignment to folds.
        predictions: (n,) float64, probabilities of pneumonia from a model that was not trained on
            these images, NaN where there is none. Without them, classifiers on thumbnails are used,
            cross-validated by patient.
    """
    from scipy.special import expit

    scored = (
        np.arange(len(images.labels))
        if predictions is None
        else np.flatnonzero(~np.isnan(predictions))
    )
    labels = images.labels[scored]
    if min((labels == label).sum() for label in (0, 1)) < MIN_PER_CLASS:
        return None
    if predictions is None:
        scores = cross_validated(
            standardised(images.small),
            labels,
            images.patients,
            seed,
            components=_COMPONENTS,
            penalty=_PENALTY,
        )
        if scores is None:
            return None
        probabilities = expit(scores.logits)
    else:
        probabilities = predictions[scored]
    auc = roc_area(probabilities[labels == 0], probabilities[labels == 1])
    source: Literal["thumbnails", "predictions"]
    source = "thumbnails" if predictions is None else "predictions"
    if auc < _MIN_AUC:
        return LabelReview(source, len(labels), round(auc, 4), (), ())
    found = confident_candidates(labels, probabilities)
    doubts = []
    for place, margin in zip(found.places, found.margins, strict=True):
        member = images.members[scored[place]]
        doubts.append(
            LabelCandidate(
                path=member.path,
                split=member.split,
                label=member.label,
                patient=member.patient,
                probability=round((1 - float(margin)) / 2, 4),
                margin=round(float(margin), 4),
            )
        )
    return LabelReview(
        source=source,
        judged=len(labels),
        auc=round(auc, 4),
        expected=tuple(
            (name, round(wrong, 1)) for name, wrong in zip(CLASS_NAMES, found.expected, strict=True)
        ),
        doubts=tuple(doubts),
    )


def confident_candidates(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]
) -> Candidates:
    """The off-diagonal candidates of the confident joint.

    Args:
        labels: (n,) 0 or 1; both occur.
        probabilities: (n,) float64 of class 1, from models that were not trained on the image.
    """
    of_class = np.stack([1 - probabilities, probabilities])  # (2, n)
    bars = [min(of_class[label, labels == label].mean(), _HIGHEST_BAR) for label in (0, 1)]
    clears = np.stack([of_class[label] >= bars[label] for label in (0, 1)])
    # An image above both thresholds counts for the likelier class, one above none for neither.
    likelier = (probabilities >= 0.5).astype(np.int64)
    counted = np.where(clears.all(axis=0), likelier, np.where(clears[1], 1, 0))
    counts = clears.any(axis=0)
    wrong = counts & (counted != labels)
    expected = []
    for label in (0, 1):
        own = counts & (labels == label)
        share = float((wrong & own).sum() / own.sum()) if own.any() else 0.0
        expected.append(share * float((labels == label).sum()))
    margins = np.where(labels == 1, 1 - 2 * probabilities, 2 * probabilities - 1)
    places = np.flatnonzero(wrong & (margins > 0))
    places = places[np.argsort(-margins[places], kind="stable")]
    return Candidates(places, margins[places], (expected[0], expected[1]))
