"""Choose the calibration and the threshold of a new model, or apply those of a plan to a model.

A new model gets them on the validation images alone. A threshold chosen on images of the training
hospital depends on the exposure and framing that are usual there. To reduce this, modified copies
of the images can take part: copies with matched framing, in which the lungs fill the same share of
the frame (`images/lungs.py`), and copies with each plausible perturbation of
`images/perturbation_sweeps.py`.

A plan recalibrates a model on images of a site, and writes it with a new threshold. The weights of
the model never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float64Array
from pneumoscope.config import PlanConfig, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.errors import BundleError, ImageRefusedError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.operating_point import (
    SHOWN,
    choose_threshold,
    moved_probabilities,
    recalibrate,
)
from pneumoscope.images.lungs import MATCHED_SHARES, USUAL_SHARE, match_framing, reliable_box
from pneumoscope.images.perturbation_sweeps import PLAUSIBLE
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import (
    Abstention,
    Bundle,
    BundleManifest,
    OperatingPoint,
    check_bundle_target,
    load_bundle,
    model_fingerprint,
    write_revised,
)
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.records import ImageRecord
from pneumoscope.report.content import PlanContent
from pneumoscope.report.formatting import unrounded
from pneumoscope.workflows.evaluation_folder import SavedEvaluation
from pneumoscope.workflows.run_folder import announce
from pneumoscope.workflows.scoring import Scored, score_all
from pneumoscope.workflows.seen import seen_by

Image = NDArray[np.float32]

_ADJUSTED_ON = "the images that the model was adjusted on"
"""Where the metrics of a changed model come from, in its manifest and in results."""


@dataclass(frozen=True, slots=True)
class _Points:
    """Scored images and copies.

    Attributes:
        records: (n) the images, or those that the copies are of.
        logits: (n,).
        conditions: (n,), 0 for unmodified images, k for copies under the k-th change.
    """

    records: list[ImageRecord]
    logits: Float64Array
    conditions: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), 0 or 1."""
        return np.array([record.label for record in self.records], np.int64)

    @property
    def patients(self) -> list[str]:
        """(n) ids."""
        return [record.patient for record in self.records]


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
    records = [scored.records[k] for k in scored.ok]
    points = _Points(records, scored.logits(), np.zeros(len(records), np.int64))
    if config.perturb_val or config.match_val:
        points = _with_copies(points, predictor, config, progress)
    calibration = fit_calibration(points.labels, points.logits, points.patients, config.seed)
    probabilities = calibration.apply(points.logits)
    chosen = choose_threshold(points.labels, probabilities, config.threshold, points.conditions)
    images = len({record.path for record in points.records})
    patients = len(set(points.patients))
    where = f"{images} validation images of {patients} patients{_copies_in_words(config)}"
    return replace(
        manifest,
        calibration=calibration,
        threshold=OperatingPoint(chosen.value, chosen.rule, where),
    )


def _copies_in_words(config: TrainConfig) -> str:
    perturbed = f"in {len(PLAUSIBLE)} perturbed copies"
    if config.match_val:
        shares = ", ".join(f"{share:g}" for share in MATCHED_SHARES)
        matched = f", each cropped so that the lungs fill {shares} of the frame"
        return matched + f" and {perturbed} of the {USUAL_SHARE:g} one" * config.perturb_val
    return f", each as it is and {perturbed}" * config.perturb_val


def _with_copies(
    plain: _Points,
    predictor: Predictor,
    config: TrainConfig,
    progress: Progress,
) -> _Points:
    """The images and their copies; with `match_val` the copies alone, without a framing cue."""
    records = plain.records
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
        [record for record, _, _ in scored_copies],
        np.array([logit for _, _, logit in scored_copies]),
        np.array([condition for _, condition, _ in scored_copies], np.int64),
    )
    if config.match_val:
        return copies
    return _Points(
        plain.records + copies.records,
        np.append(plain.logits, copies.logits),
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


def evaluated_bundle(model: str, saved: SavedEvaluation) -> Bundle:
    """Load the bundle and check that the evaluation is of this model.

    Raises:
        BundleError: the evaluation is of another model.
    """
    bundle = load_bundle(model)
    found = model_fingerprint(bundle.manifest)
    if saved.model and saved.model != found:
        raise BundleError(
            f"--model {model}: has the fingerprint {found[:16]}…, but {saved.folder} evaluates "
            f"{saved.model_name or 'another model'} ({saved.model[:16]}…). Give that model, or "
            "evaluate this one."
        )
    if not saved.model and bundle.manifest.threshold.value != saved.threshold:
        raise BundleError(
            f"--model {model}: has the threshold {bundle.manifest.threshold.value}, but the "
            f"evaluation in {saved.folder} has {saved.threshold}, so it is of another model. "
            "Evaluate this one."
        )
    return bundle


def recalibrated(
    data: Path, saved: SavedEvaluation, bundle: Bundle, config: PlanConfig, progress: Progress
) -> tuple[SavedEvaluation, Bundle, dict[str, Any], TrainingOverlap]:
    """Fit a new calibration to labelled images of a site.

    Args:
        data: the images: a folder with class folders, or a CSV manifest.
        saved: the evaluation to move to the new calibration.
        bundle: the evaluated model.
        config: confidence level and number of resamples.
        progress: advances by one for each image.

    Returns:
        The evaluation and the bundle under the new calibration (unchanged if the images show no
        need of one), the entry `recalibration` of plan.json, and how many of the images the
        model was trained on.
    """
    dataset = index(data, progress=progress)
    announce(dataset)
    predictor = Predictor.load(bundle.folder)
    seen = seen_by(predictor, dataset.records, progress)
    scored = score_all(dataset.records, predictor, "calibration sample", progress)
    old = bundle.manifest.calibration
    found = recalibrate(
        scored.labels(), scored.logits(), scored.patients(), old, config.intervals()
    )
    document = {
        "data": str(data),
        "images": found.images,
        "patients": found.patients,
        "positives": found.positives,
        "changed": found.changed,
        "calibration": found.calibration.to_dict(),
        "slope_before": asdict(found.before.slope),
        "in_the_large_before": asdict(found.before.in_the_large),
        "log_loss_before": found.loss,
        "log_loss_gain": asdict(found.gain),
        "moved": [
            {"before": before, **asdict(after)}
            for before, after in zip(SHOWN, found.moved, strict=True)
        ],
        "seen": seen.to_dict(),
    }
    if not found.changed:
        return saved, bundle, document, seen
    new = found.calibration
    manifest = bundle.manifest
    carried = float(moved_probabilities([manifest.threshold.value], old, new)[0])
    chosen_on = (
        f"{manifest.threshold.chosen_on}; carried over to a calibration fitted to {found.images} "
        f"images of {found.patients} patients of {data.name}"
    )
    threshold = replace(manifest.threshold, value=carried, chosen_on=chosen_on)
    # The abstention band is carried over too: its risk holds at the transformed limits.
    ends = moved_probabilities([manifest.abstention.low, manifest.abstention.high], old, new)
    band = replace(manifest.abstention, low=float(ends[0]), high=float(ends[1]))
    if band.method == "none":
        band = manifest.abstention
    changed = replace(manifest, calibration=new, threshold=threshold, abstention=band)
    scores = moved_probabilities(saved.probabilities, old, new)
    on_scale = float(moved_probabilities([saved.threshold], old, new)[0])
    return (
        replace(saved, probabilities=scores, threshold=on_scale),
        replace(bundle, manifest=changed),
        document,
        seen,
    )


def apply_plan(
    folder: Path,
    bundle: Bundle,
    saved: SavedEvaluation,
    content: PlanContent,
    config: PlanConfig,
) -> dict[str, Any]:
    """Write a bundle with the threshold, abstention band and calibration of the plan.

    Args:
        folder: of the new bundle; an existing bundle there is replaced.
        bundle: the evaluated model, recalibrated if requested.
        saved: the evaluation, on the same calibration.
        content: the plan.
        config: confidence level and number of resamples.

    Returns:
        The entry `applied` of plan.json.

    Raises:
        UsageError: `folder` exists and is not a bundle.
    """
    check_bundle_target(folder)
    manifest = bundle.manifest
    if content.chosen:
        manifest = replace(manifest, threshold=content.chosen)
        if manifest.abstention.method != "none" and not content.abstention:
            # An abstention band is only valid with the threshold that it was chosen for.
            manifest = replace(manifest, abstention=Abstention())
    if content.abstention:
        found = content.abstention
        where = f"{saved.labels.size} images of {content.patients} patients"
        band: Any = found.method
        manifest = replace(
            manifest, abstention=Abstention(band, found.low, found.high, found.rule, where)
        )
    point = manifest.threshold
    measured = evaluate(
        saved.labels,
        saved.probabilities,
        saved.patients,
        point.value,
        point.rule,
        config.intervals(),
    )
    # Precision certificates are only valid at the threshold that they were measured at.
    stated = measured.to_metrics_json() | {"on": _ADJUSTED_ON}
    manifest = replace(manifest, validation=stated, certificates=())
    card = bundle.card.read_text(encoding="utf-8").rstrip("\n") + _card_note(content, point)
    made = write_revised(folder, bundle, manifest, card)
    return {
        "bundle": str(folder),
        "threshold": asdict(made.manifest.threshold),
        "abstention": asdict(made.manifest.abstention),
        "calibration": made.manifest.calibration.to_dict(),
    }


def _card_note(content: PlanContent, point: OperatingPoint) -> str:
    lines = [
        "",
        "",
        "## Changed since",
        "",
        "`pneumoscope plan` changed this model; its weights are unchanged. Numbers above that "
        "depend on the threshold or the calibration were measured before the change.",
        "",
        f"- Threshold {unrounded(point.value, 4)}: {point.rule}. Chosen on {point.chosen_on}.",
        "- Computed in float32 until `pneumoscope certify` is run again.",
    ]
    if content.recalibration and content.recalibration["changed"]:
        sample = content.recalibration
        lines.append(
            f"- Calibration fitted to {sample['images']} images of {sample['patients']} patients."
        )
    if content.abstention:
        found = content.abstention
        lines.append(
            f"- `uncertain` is predicted from {unrounded(found.low, 4)} to "
            f"{unrounded(found.high, 4)}: {found.rule}."
        )
    return "\n".join(lines) + "\n"
