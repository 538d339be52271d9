"""Calibration and threshold of a new model, both chosen on validation and on nothing else.

A threshold chosen on images of the very hospital that was trained on relies on that hospital's
exposure and framing. So copies can take part: images re-cut until the lungs fill the same share of
all (`images/framing.py`), and each plausible perturbation of `images/perturbation_sweeps.py`.
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
from pneumoscope.images.framing import MATCHED_SHARES, USUAL_SHARE, match_framing, reliable_box
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
    """Labels (n,), logits (n,) and patients of the images that were scored.

    `conditions` (n,): 0 for images as they are, k for copies of the k-th kind.
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
    """The manifest with a calibration and a threshold.

    Args:
        manifest: of the model that answered.
        scored: the validation images.
        predictor: scores the copies, where `config` asks for some.
        config: `threshold`, `perturb_val`, `match_val`, `seed`.
        progress: is told of the copies.
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
    """The images with their copies; the copies alone, where they are to carry no framing cue."""
    records = [scored.records[k] for k in scored.ok]
    each = len(MATCHED_SHARES) * config.match_val + len(PLAUSIBLE) * config.perturb_val
    found: list[float] = []
    owners: list[tuple[ImageRecord, int]] = []
    with progress.task("copies of validation", len(records) * each, "images") as task:
        for result in predictor.predict_images(_copies(records, config, owners)):
            found.append(float("nan") if result.logit is None else result.logit)
            task.advance()
    fine = [(*owner, logit) for owner, logit in zip(owners, found, strict=True) if isfinite(logit)]
    copies = _Points(
        np.array([record.label for record, _, _ in fine], np.int64),
        np.array([logit for _, _, logit in fine]),
        [record.patient for record, _, _ in fine],
        np.array([condition for _, condition, _ in fine], np.int64),
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
    records: Sequence[ImageRecord], config: TrainConfig, owners: list[tuple[ImageRecord, int]]
) -> Iterator[tuple[str, Image]]:
    """Every copy of every image; `owners` gets record and condition of each, in step."""
    for record in records:
        try:
            pixels = read_image(record.path).pixels
        except ImageRefusedError:  # it was scored a moment ago; it is left out now
            continue
        for condition, (title, change) in enumerate(_changes(pixels, config), start=1):
            owners.append((record, condition))
            yield f"{record.path} ({title})", change()


def _changes(pixels: Image, config: TrainConfig) -> Iterator[tuple[str, Callable[[], Image]]]:
    """The kinds of copies of one image, with their titles."""
    if config.match_val:
        box = reliable_box(pixels)
        for share in MATCHED_SHARES:
            title = f"lungs fill {share:g} of the frame"
            yield title, partial(match_framing, pixels, box, share)
        pixels = match_framing(pixels, box, USUAL_SHARE)
    if config.perturb_val:
        for change in PLAUSIBLE:
            yield change.title, partial(change.apply, pixels, config.seed)
