"""Which labels to look at again: films that everything else speaks against.

Comes in: `ThumbnailSet`, and a model's probabilities if there are any. Goes out: a `LabelReview`.
Knows nothing of files, pages or models, and changes no label.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty
in Dataset Labels" (doi:10.1613/jair.1.12125). The mean probability of a class over the films that
bear it is that class's bar; a film that clears the bar of the other class, and not that of its own
by more, is a candidate. The counts so made, scaled to the numbers of labels, estimate how many are
wrong. Hard films are among the candidates: only a reader of films can tell them from wrong labels.

The three analyses of an audit that need all films at once, one after the other.

Comes in: `ThumbnailSet`. Goes out: `Evidence`. Knows nothing of files or pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import Evidence, LabelCandidate, LabelReview
from pneumoscope.data.duplicates import roc_area
from pneumoscope.data.patient_similarity import patient_similarities
from pneumoscope.data.split_shift import comparisons, split_tests
from pneumoscope.data.thumbnails import ThumbnailSet, cross_validated, standardised
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES

_FEWEST_PER_CLASS = 50
_LEAST_AUC = 0.75
"""A judge that tells the classes worse than this names films at random."""

_HIGHEST_BAR = 0.9
"""Ours: where classes part almost without error, a wrong label would miss its bar by a hair."""

_COMPONENTS = 120
_PENALTY = 10.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """What confident learning says of labels 0 and 1.

    Attributes:
        places: (m,) int64, the candidates, most doubtful first.
        margins: (m,) float64, probability of the other class less that of the label.
        expected: labels 0 and labels 1 that may be wrong.
    """

    places: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]
    expected: tuple[float, float]


def review_labels(
    films: ThumbnailSet, seed: int, answers: npt.NDArray[np.float64] | None = None
) -> LabelReview | None:
    """Judge every label; `None` with fewer than 50 films of a class, or too few patients.

    Where the judge tells the classes with an AUC below 0.75, nothing is said of single labels.

    Args:
        films: readable films.
        seed: of the deal to folds.
        answers: (n,) float64, probabilities of pneumonia from a model that was not trained on
            these films, NaN where it gave none; else classifiers on thumbnails judge, each film by
            one that never saw its patient.
    """
    from scipy.special import expit

    judged = np.arange(len(films.labels)) if answers is None else np.flatnonzero(~np.isnan(answers))
    labels = films.labels[judged]
    if min((labels == label).sum() for label in (0, 1)) < _FEWEST_PER_CLASS:
        return None
    if answers is None:
        scores = cross_validated(
            standardised(films.small),
            labels,
            films.patients,
            seed,
            components=_COMPONENTS,
            penalty=_PENALTY,
        )
        if scores is None:
            return None
        probabilities = expit(scores.logits)
    else:
        probabilities = answers[judged]
    auc = roc_area(probabilities[labels == 0], probabilities[labels == 1])
    source: Literal["thumbnails", "predictions"]
    source = "thumbnails" if answers is None else "predictions"
    if auc < _LEAST_AUC:
        return LabelReview(source, len(labels), round(auc, 4), (), ())
    found = confident_candidates(labels, probabilities)
    doubts = []
    for place, margin in zip(found.places, found.margins, strict=True):
        member = films.members[judged[place]]
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
    """Off the diagonal of the confident joint.

    Args:
        labels: (n,) 0 or 1; both occur.
        probabilities: (n,) float64 of class 1, from models that did not see the film's label.
    """
    of_class = np.stack([1 - probabilities, probabilities])  # (2, n)
    bars = [min(of_class[label, labels == label].mean(), _HIGHEST_BAR) for label in (0, 1)]
    clears = np.stack([of_class[label] >= bars[label] for label in (0, 1)])
    # A film above both bars counts for the likelier class, one above none for neither.
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


def gather_evidence(
    films: ThumbnailSet,
    answers: npt.NDArray[np.float64] | None = None,
    progress: Progress = SILENT,
    seed: int = 0,
) -> Evidence:
    """Likeness of patients, tests of splits, review of labels.

    Args:
        films: readable films.
        answers: (n,) a model's probabilities for the review of labels, NaN where there is none.
        progress: told of each comparison.
        seed: of everything random in it.
    """
    with progress.task("Comparing", comparisons() + 2, "analyses") as task:
        alike = patient_similarities(films, seed)
        task.advance()
        told = split_tests(films, seed, task)
        reviewed = review_labels(films, seed, answers)
        task.advance()
    return Evidence(alike, told, reviewed)
