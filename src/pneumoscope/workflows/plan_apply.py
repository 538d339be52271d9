"""Apply a plan to a model: recalibrate it on images of a site, and write it with a new threshold.

The weights of the model never change.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pneumoscope.config import PlanConfig
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.recalibrate import SHOWN, moved_probabilities, recalibrate
from pneumoscope.inference.bundle import (
    Abstention,
    Bundle,
    OperatingPoint,
    load_bundle,
    write_revised,
)
from pneumoscope.inference.identity import model_fingerprint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.report.plan_content import PlanContent
from pneumoscope.workflows.evaluation_folder import SavedEvaluation
from pneumoscope.workflows.run_folder import announce
from pneumoscope.workflows.scoring import score_all
from pneumoscope.workflows.seen import seen_by


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
    if folder.exists() and not (folder / "bundle.json").is_file():
        raise UsageError(f"--apply {folder}: exists and is not a bundle. Give a new folder.")
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
    manifest = replace(manifest, validation=measured.to_metrics_json(), certificates=())
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
        f"- Threshold {point.value:.4f}: {point.rule}. Chosen on {point.chosen_on}.",
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
            f"- `uncertain` is predicted from {found.low:.4f} to {found.high:.4f}: {found.rule}."
        )
    return "\n".join(lines) + "\n"
