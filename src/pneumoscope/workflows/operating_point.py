"""Choose the calibration and the threshold of a new model, on the validation images alone.

A threshold chosen on images of the training hospital depends on the exposure and framing that are
usual there. To reduce this, modified copies of the images can take part: copies with matched
framing, in which the lungs fill the same share of the frame (`images/lungs.py`), and copies with
each plausible perturbation of `images/perturbation_sweeps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.threshold import choose_threshold
from pneumoscope.images.lungs import MATCHED_SHARES, USUAL_SHARE, match_framing, reliable_box
from pneumoscope.images.perturbation_sweeps import PLAUSIBLE
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.scoring import Scored

FloatArray = NDArray[np.float64]
Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Points:
    """Scored images and copies.

    Attributes:
        labels: (n,), 0 or 1.
        logits: (n,).
        patients: (n) ids.
        conditions: (n,), 0 for unmodified images, k for copies under the k-th change.
    """

    labels: NDArray[np.int64]
    logits: FloatArray
    patients: list[str]
    conditions: NDArray[np.int64]


def with_operating_point(
    manifest: BundleManifest,
    scored: Scored,
    predictor: Predictor,
    config: TrainConfig,
    progress: Progress,
) -> BundleManifest:
    """Return the manifest with a calibration and a threshold fitted to validation.

    Args:
        manifest: of the model that produced `scored`.
        scored: the validation images and their results.
        predictor: scores the copies, if `config` requests any.
        config: `threshold`, `perturb_val`, `match_val` and `seed` are used.
        progress: advances by one for each copy.
    """
    labels = scored.labels()
    count = len(labels)
    points = _Points(labels, scored.logits(), scored.patients(), np.zeros(count, np.int64))
    if config.perturb_val or config.match_val:
        points = _with_copies(points, scored, predictor, config, progress)
    calibration = fit_calibration(points.labels, points.logits, points.patients, config.seed)
    probabilities = calibration.apply(points.logits)
    chosen = choose_threshold(points.labels, probabilities, config.threshold, points.conditions)
    patients = len(set(points.patients))
    where = f"{count} validation images of {patients} patients{_copies_in_words(config)}"
    return replace(
        manifest,
        calibration=calibration,
        threshold=OperatingPoint(chosen.value, chosen.rule, where),
    )


def _copies_in_words(config: TrainConfig) -> str:
    perturbed = f"in {len(PLAUSIBLE)} perturbed copies"
    if config.match_val:
        shares = ", ".join(f"{share:g}" for share in MATCHED_SHARES)
        matched = f", each re-cut so that the lungs fill {shares} of the frame"
        return matched + f" and {perturbed} of the {USUAL_SHARE:g} one" * config.perturb_val
    return f", each as it is and {perturbed}" * config.perturb_val


def _with_copies(
    plain: _Points,
    scored: Scored,
    predictor: Predictor,
    config: TrainConfig,
    progress: Progress,
) -> _Points:
    """The images and their copies; with `match_val` the copies alone, without a framing cue."""
    records = [scored.records[k] for k in scored.ok]
    each = len(MATCHED_SHARES) * config.match_val + len(PLAUSIBLE) * config.perturb_val
    logits: list[float] = []
    sources: list[tuple[ImageRecord, int]] = []
    with progress.task("copies of validation", len(records) * each, "images") as task:
        for result in predictor.predict_images(_copies(records, config, sources)):
            logits.append(float("nan") if result.logit is None else result.logit)
            task.advance()
    scored_copies = [
        (*source, logit) for source, logit in zip(sources, logits, strict=True) if isfinite(logit)
    ]
    copies = _Points(
        np.array([record.label for record, _, _ in scored_copies], np.int64),
        np.array([logit for _, _, logit in scored_copies]),
        [record.patient for record, _, _ in scored_copies],
        np.array([condition for _, condition, _ in scored_copies], np.int64),
    )
    if config.match_val:
        return copies
    return _Points(
        np.append(plain.labels, copies.labels),
        np.append(plain.logits, copies.logits),
        plain.patients + copies.patients,
        np.append(plain.conditions, copies.conditions),
    )


def _copies(
    records: Sequence[ImageRecord], config: TrainConfig, sources: list[tuple[ImageRecord, int]]
) -> Iterator[tuple[str, Image]]:
    """Yield every copy of every image; appends the record and condition of each to `sources`."""
    for record in records:
        try:
            pixels = read_image(record.path).pixels
        except ImageRefusedError:  # removed since it was scored
            continue
        for condition, (title, change) in enumerate(_changes(pixels, config), start=1):
            sources.append((record, condition))
            yield f"{record.path} ({title})", change()


def _changes(pixels: Image, config: TrainConfig) -> Iterator[tuple[str, Callable[[], Image]]]:
    """Yield the changes of one image with their titles."""
    if config.match_val:
        box = reliable_box(pixels)
        for share in MATCHED_SHARES:
            title = f"lungs fill {share:g} of the frame"
            yield title, partial(match_framing, pixels, box, share)
        pixels = match_framing(pixels, box, USUAL_SHARE)
    if config.perturb_val:
        for change in PLAUSIBLE:
            yield change.title, partial(change.apply, pixels, config.seed)
