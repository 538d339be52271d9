"""Calibration and threshold of a new model, both chosen on validation and on nothing else.

Comes in: the validation images' answers and, if asked for, those of copies with each plausible
change of `images/sweeps.py`: a threshold chosen on films of the very site that was trained on is
too sure of that site's exposure and framing. Goes out: the manifest with both filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.threshold import choose_threshold
from pneumoscope.images.read import read_image
from pneumoscope.images.sweeps import PLAUSIBLE
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.answering import Answered

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Labels (n,), logits (n,) and patients of what was answered.

    `conditions` (n,): 0 for films as they are, k for the copies that the k-th change made.
    """

    labels: NDArray[np.int64]
    logits: FloatArray
    patients: list[str]
    conditions: NDArray[np.int64]


def with_operating_point(
    manifest: BundleManifest,
    answered: Answered,
    predictor: Predictor,
    config: TrainConfig,
    progress: Progress,
) -> BundleManifest:
    """The manifest with a calibration and a threshold.

    Args:
        manifest: of the model that answered.
        answered: the validation images.
        predictor: answers for the perturbed copies, if `config.perturb_val`.
        config: `threshold`, `perturb_val`, `seed`.
        progress: is told of the copies.
    """
    labels = answered.labels()
    count, copies = len(labels), ""
    scored = _Scored(labels, answered.logits(), answered.patients(), np.zeros(count, np.int64))
    if config.perturb_val:
        scored = _with_copies(scored, answered, predictor, config.seed, progress)
        copies = f", each as it is and in {len(PLAUSIBLE)} perturbed copies"
    calibration = fit_calibration(scored.labels, scored.logits, scored.patients, config.seed)
    probabilities = calibration.apply(scored.logits)
    chosen = choose_threshold(scored.labels, probabilities, config.threshold, scored.conditions)
    where = f"{count} validation images of {len(set(scored.patients))} patients{copies}"
    return replace(
        manifest,
        calibration=calibration,
        threshold=OperatingPoint(chosen.value, chosen.rule, where),
    )


def _with_copies(
    plain: _Scored, answered: Answered, predictor: Predictor, seed: int, progress: Progress
) -> _Scored:
    records = [answered.records[k] for k in answered.ok]
    found: list[float] = []
    owners: list[tuple[ImageRecord, int]] = []
    with progress.task("perturbed copies", len(records) * len(PLAUSIBLE), "images") as task:
        for answer in predictor.predict_images(_copies(records, seed, owners)):
            found.append(float("nan") if answer.logit is None else answer.logit)
            task.advance()
    fine = [(*owner, logit) for owner, logit in zip(owners, found, strict=True) if isfinite(logit)]
    return _Scored(
        np.append(plain.labels, [record.label for record, _, _ in fine]).astype(np.int64),
        np.append(plain.logits, [logit for _, _, logit in fine]),
        plain.patients + [record.patient for record, _, _ in fine],
        np.append(plain.conditions, [condition for _, condition, _ in fine]).astype(np.int64),
    )


def _copies(
    records: Sequence[ImageRecord], seed: int, owners: list[tuple[ImageRecord, int]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every perturbed copy of every image; `owners` gets record and condition of each, in step."""
    for record in records:
        try:
            pixels = read_image(record.path).pixels
        except ImageRefusedError:  # it was answered for a moment ago; it is left out now
            continue
        for condition, change in enumerate(PLAUSIBLE, start=1):
            owners.append((record, condition))
            yield f"{record.path} ({change.title})", change.apply(pixels, seed)
