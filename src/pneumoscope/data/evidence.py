"""The three analyses of an audit that need all films at once, one after the other.

Comes in: `Films`. Goes out: `Evidence`. Knows nothing of files or pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_evidence import Evidence
from pneumoscope.data.label_noise import review_labels
from pneumoscope.data.patient_similarity import likenesses
from pneumoscope.data.split_shift import comparisons, split_tests
from pneumoscope.data.thumbnails import Films
from pneumoscope.progress import SILENT, Progress


def gather_evidence(
    films: Films,
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
        alike = likenesses(films, seed)
        task.advance()
        told = split_tests(films, seed, task)
        reviewed = review_labels(films, seed, answers)
        task.advance()
    return Evidence(alike, told, reviewed)
