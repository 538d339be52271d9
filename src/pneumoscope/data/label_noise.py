"""Find label-noise candidates.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels" (doi:10.1613/jair.1.12125). The threshold of a class is the mean probability of that
class over the images with its label. An image is a candidate if it exceeds the threshold of the
other class and the other class is more probable. The counts, scaled to the number of labels,
estimate how many labels are wrong. Hard images are among the candidates; only a radiologist can
distinguish them from wrong labels. No label is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import LabelCandidate, LabelReview
from pneumoscope.data.duplicates import roc_area
from pneumoscope.data.thumbnails import ThumbnailSet, cross_validated, standardised
from pneumoscope.records import CLASS_NAMES

_MIN_PER_CLASS = 50
_MIN_AUC = 0.75
"""With a lower AUC the scores name images at random."""

_HIGHEST_BAR = 0.9
"""Our addition: if the classes are almost separable, a wrong label just misses the threshold."""

_COMPONENTS = 120
_PENALTY = 10.0


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
    if min((labels == label).sum() for label in (0, 1)) < _MIN_PER_CLASS:
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
