"""Calibration and threshold of a new model, both chosen on validation and on nothing else.

Comes in: the validation images' answers and, if asked for, those of perturbed copies: a threshold
chosen on films of the very site that was trained on is too sure of that site's exposure and
framing. Goes out: the manifest with both filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.threshold import choose_threshold
from pneumoscope.images.perturb import PERTURBATIONS
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.answering import Answered

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Labels (n,), logits (n,) and patients of what was answered."""

    labels: NDArray[np.int64]
    logits: FloatArray
    patients: list[str]


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
    scored = _Scored(answered.labels(), answered.logits(), answered.patients())
    count, copies = len(scored.labels), ""
    if config.perturb_val:
        scored = _with_copies(scored, answered, predictor, config.seed, progress)
        copies = f", each as it is and in {len(PERTURBATIONS)} perturbed copies"
    calibration = fit_calibration(scored.labels, scored.logits, scored.patients, config.seed)
    chosen = choose_threshold(scored.labels, calibration.apply(scored.logits), config.threshold)
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
    total = len(records) * len(PERTURBATIONS)
    labels, logits, patients = [plain.labels], [plain.logits], list(plain.patients)
    found: list[float] = []
    with progress.task("perturbed copies", total, "images") as task:
        owners: list[ImageRecord] = []
        for answer in predictor.predict_images(_copies(records, seed, owners)):
            found.append(float("nan") if answer.logit is None else answer.logit)
            task.advance()
    finite = np.isfinite(found)
    labels.append(np.array([r.label for r in owners], np.int64)[finite])
    logits.append(np.array(found, np.float64)[finite])
    patients += [r.patient for r, fine in zip(owners, finite, strict=True) if fine]
    return _Scored(np.concatenate(labels), np.concatenate(logits), patients)


def _copies(
    records: Sequence[ImageRecord], seed: int, owners: list[ImageRecord]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every perturbed copy of every image; `owners` gets the record of each, in step."""
    for record in records:
        try:
            pixels = read_image(record.path).pixels
        except ImageRefusedError:  # it was answered for a moment ago; it is left out now
            continue
        for perturbation in PERTURBATIONS:
            owners.append(record)
            yield f"{record.path} ({perturbation.title})", perturbation.apply(pixels, seed)
