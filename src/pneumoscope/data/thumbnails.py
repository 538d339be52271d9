"""Thumbnails of a data set as feature arrays, and cross-validated classifiers on them.

`ThumbnailSet` holds the readable images of a data set as arrays. `cross_validated` computes scores
from classifiers that were not trained on the image's patient; `area` and `interval_of_area` compute
the area under the ROC curve of these scores and its interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import LEVEL, Member

THUMBNAIL_SIDE = 32
SMALL_SIDE = 16

_RING = 4
"""Width in pixels of a thumbnail's border: the outer eighth of the image on each side."""

_TINY = 1e-6

Floats = npt.NDArray[np.float32]

FOLDS = 5
_RESAMPLES = 300
_STEPS = 500
_ROWS_PER_COMPONENT = 5


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
    def small(self) -> Floats:
        """(n, 256) float32 in [0, 1]: the thumbnails at 16×16."""
        factor = THUMBNAIL_SIDE // SMALL_SIDE
        cut = self.thumbnails.reshape(-1, SMALL_SIDE, factor, SMALL_SIDE, factor)
        mean: Floats = cut.mean(axis=(2, 4), dtype=np.float32).reshape(-1, SMALL_SIDE**2)
        return mean / np.float32(255)

    @property
    def border(self) -> Floats:
        """(n,) float32 in [0, 1]: mean brightness of the outer ring."""
        return self._mean_where(_ring())

    @property
    def centre(self) -> Floats:
        """(n,) float32 in [0, 1]: mean brightness inside the outer ring."""
        return self._mean_where(~_ring())

    def _mean_where(self, mask: npt.NDArray[np.bool_]) -> Floats:
        if not len(self.thumbnails):
            return np.zeros(0, np.float32)
        mean: Floats = self.thumbnails[:, mask].mean(axis=1, dtype=np.float32)
        return mean / np.float32(255)


def _ring() -> npt.NDArray[np.bool_]:
    """(1024,) bool: the border of a thumbnail."""
    mask = np.ones((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.bool_)
    mask[_RING:-_RING, _RING:-_RING] = False
    return mask.ravel()


def standardised(rows: Floats) -> Floats:
    """Scale each row to mean 0 and length 1 (constant rows to 0), so products are Pearson's r."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    unit: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _TINY)
    return unit


def residuals_from_mean(rows: Floats) -> Floats:
    """Standardised rows minus their common mean, standardised again.

    All chest X-rays look alike; the residuals are the differences from the mean image. On the
    Kermany training images they separate pairs of one patient from pairs of different patients with
    AUC 0.71; without this step, 0.62.
    """
    once = standardised(rows)
    return standardised(once - once.mean(axis=0))


Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Cross-validated scores.

    Attributes:
        logits: (n,) float64, from the fold in which the row was held out.
        fold: (n,) int64, number of that fold; the scores of different folds differ in scale.
    """

    logits: Doubles
    fold: Ints


def cross_validated(
    features: Floats | Doubles,
    classes: Ints,
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


def area(scores: Scores, classes: Ints) -> float:
    """Area under the ROC curve over pairs within one fold."""
    return float(_areas(scores, classes, np.ones((1, len(classes)), np.float64))[0])


def interval_of_area(
    scores: Scores, classes: Ints, patients: npt.NDArray[np.str_], seed: int
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


def _areas(scores: Scores, classes: Ints, weights: Doubles) -> Doubles:
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
