"""Controls: how far the classes can be told apart by what is not pneumonia, without the model.

Comes in: one row of numbers per image (a thumbnail, file properties, a lung outline), labels,
patient ids. Goes out: out-of-sample probabilities, and their AUC with its interval. Knows nothing
of images.

A logistic regression on standardised numbers, in folds that part no patient: weak on purpose, and
its strength is fixed, not chosen. What it can use, a network can use as well; an AUC beside the
model's says that a good score is no proof of having read the lungs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.proportions import Patients
from pneumoscope.evaluation.ranked_metrics import FloatArray, checked_labels
from pneumoscope.records import Estimate

_STRENGTH = 0.1
"""scikit-learn's C, the inverse of the penalty's weight."""


@dataclass(frozen=True, slots=True)
class Control:
    """What one control reached: its images and patients, and its AUC."""

    images: int
    patients: int
    auc: Estimate


def control(
    numbers: ArrayLike, labels: ArrayLike, patients: Patients, folds: int, config: IntervalConfig
) -> Control | None:
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
    return Control(truth.size, len(set(ids.tolist())), found)


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
