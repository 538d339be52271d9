"""Scores of films by classifiers that never saw the film's patient, and their area under the curve.

Comes in: features, classes, patients. Goes out: cross-validated logits; areas with intervals.
Knows nothing of what is classified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_evidence import LEVEL
from pneumoscope.data.thumbnails import Floats

FOLDS = 5

_RESAMPLES = 300
_STEPS = 500
_ROWS_PER_COMPONENT = 5

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Cross-validated scores.

    Attributes:
        logits: (n,) float64, from the fold in which the row was held out.
        fold: (n,) int64, which one that was: scores of different folds have different scales.
    """

    logits: Doubles
    fold: Ints


def cross_validated(
    features: Floats,
    classes: Ints,
    patients: npt.NDArray[np.str_],
    seed: int,
    *,
    components: int = 0,
    penalty: float = 100.0,
) -> Scores | None:
    """Logits of logistic regression on standardised features, held out by patient.

    Args:
        features: (n, d) float32.
        classes: (n,) 0 or 1.
        patients: (n,) str; a patient's rows are held out together.
        seed: of the deal to folds.
        components: principal components taken first, 0 for none; of few rows, a fifth of them.
        penalty: of squared weights (1 / C).

    Returns:
        The scores, or `None` where a class has fewer patients than there are folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if any(len(np.unique(patients[classes == c])) < FOLDS for c in (0, 1)):
        return None
    logits = np.zeros(len(classes), np.float64)
    fold = np.zeros(len(classes), np.int64)
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (seen, held) in enumerate(dealer.split(features, classes, patients)):
        if len(np.unique(classes[seen])) < 2:
            return None
        most = min(components, features.shape[1], max(1, len(seen) // _ROWS_PER_COMPONENT))
        model = make_pipeline(
            PCA(most, random_state=seed) if components else "passthrough",
            StandardScaler(),
            LogisticRegression(C=1 / penalty, max_iter=_STEPS),
        )
        model.fit(features[seen], classes[seen])
        logits[held] = model.decision_function(features[held])
        fold[held] = number
    return Scores(logits, fold)


def area(scores: Scores, classes: Ints) -> float:
    """Area under the ROC curve, pairs of one fold alone counting."""
    return float(_areas(scores, classes, np.ones((1, len(classes)), np.float64))[0])


def interval_of_area(
    scores: Scores, classes: Ints, patients: npt.NDArray[np.str_], seed: int
) -> tuple[float, float]:
    """The 95 % interval of `area` by bootstrap of patients, the classifiers as they are.

    The Bayesian bootstrap (Rubin 1981, doi:10.1214/aos/1176345338): each patient gets a random
    weight, so no resample lacks a class.
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
