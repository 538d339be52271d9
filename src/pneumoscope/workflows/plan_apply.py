"""What `plan` changes in a model: its calibration, by a sample of the site, and its threshold.

Comes in: a bundle, the evaluation that it is of, a plan. Goes out: a bundle on disk with the same
weights.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pneumoscope.config import PlanConfig
from pneumoscope.data.index import index
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
from pneumoscope.report.plan_page import PlanContent
from pneumoscope.workflows.evaluation_folder import SavedEvaluation
from pneumoscope.workflows.run_folder import announce
from pneumoscope.workflows.scoring import score_all


def evaluated_bundle(model: str, saved: SavedEvaluation) -> Bundle:
    """The bundle, if it is the one that the evaluation is of."""
    bundle = load_bundle(model)
    found = model_fingerprint(bundle.manifest)
    if saved.model and saved.model != found:
        raise BundleError(
            f"--model {model}: fingerprint {found[:16]}…, but {saved.folder} is an evaluation of "
            f"{saved.model_name or 'another model'} ({saved.model[:16]}…). Give that model, or "
            "evaluate this one."
        )
    if not saved.model and bundle.manifest.threshold.value != saved.threshold:
        raise BundleError(
            f"--model {model}: has the threshold {bundle.manifest.threshold.value}, the evaluation "
            f"in {saved.folder} {saved.threshold}: it is of another model. Evaluate this one."
        )
    return bundle


def recalibrated(
    data: Path, saved: SavedEvaluation, bundle: Bundle, config: PlanConfig, progress: Progress
) -> tuple[SavedEvaluation, Bundle, dict[str, Any]]:
    """The evaluation and the bundle on the scale of a calibration fitted to `data`."""
    dataset = index(data, progress=progress)
    announce(dataset)
    scored = score_all(dataset.records, Predictor.load(bundle.folder), "sample", progress)
    old = bundle.manifest.calibration
    found = recalibrate(
        scored.labels(), scored.logits(), scored.patients(), old, config.intervals()
    )
    told = {
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
    }
    if not found.changed:
        return saved, bundle, told
    new = found.calibration
    manifest = bundle.manifest
    carried = float(moved_probabilities([manifest.threshold.value], old, new)[0])
    chosen_on = (
        f"{manifest.threshold.chosen_on}; carried over to a calibration fitted to {found.images} "
        f"images of {found.patients} patients of {data.name}"
    )
    threshold = replace(manifest.threshold, value=carried, chosen_on=chosen_on)
    # A band was chosen on the old scale: what it promised of risk holds where it is carried to.
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
        told,
    )


def apply_plan(
    folder: Path,
    bundle: Bundle,
    saved: SavedEvaluation,
    content: PlanContent,
    config: PlanConfig,
) -> dict[str, Any]:
    """Write the bundle that uses the plan."""
    if folder.exists() and not (folder / "bundle.json").is_file():
        raise UsageError(f"--apply {folder}: is there and no bundle. Give a new folder.")
    manifest = bundle.manifest
    if content.chosen:
        manifest = replace(manifest, threshold=content.chosen)
        if manifest.abstention.method != "none" and not content.abstention:
            # A band belongs to its threshold: with another one it promises nothing.
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
    # Certificates compared decisions at the old threshold: at this one nothing is known yet.
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
        "`pneumoscope plan` changed how this model answers; its weights are as they were. Numbers "
        "above that depend on the threshold or the calibration are those from before.",
        "",
        f"- Threshold {point.value:.4f}: {point.rule}. Chosen on {point.chosen_on}.",
        "- Computed in float32 until `pneumoscope certify` has compared decisions anew.",
    ]
    if content.recalibration and content.recalibration["changed"]:
        told = content.recalibration
        lines.append(
            f"- Calibration fitted to {told['images']} images of {told['patients']} patients."
        )
    if content.abstention:
        found = content.abstention
        lines.append(
            f"- `uncertain` is answered from {found.low:.4f} to {found.high:.4f}: {found.rule}."
        )
    return "\n".join(lines) + "\n"
