"""`plan`: from an evaluation to an operating point, and to a bundle that uses it.

plan.json    everything below, for programs
plan.csv     every threshold with its rates at the prevalence
plan.html    the same to try out, by keyboard or mouse
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.config import PlanConfig, PlanTarget, check_ranges
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.abstain import Uncertain, choose_band, choose_sets, risk_coverage
from pneumoscope.evaluation.decision import decision_curve
from pneumoscope.evaluation.plan import (
    ConfidentThreshold,
    Kind,
    PlanRow,
    confident_threshold,
    threshold_table,
)
from pneumoscope.evaluation.sample_size import Verification, patients_to_verify
from pneumoscope.inference.bundle import OperatingPoint
from pneumoscope.progress import SILENT, Progress
from pneumoscope.report.plan_content import PlanContent
from pneumoscope.report.plan_page import write_plan_page
from pneumoscope.storage import claim_folder, write_json
from pneumoscope.workflows.evaluation_folder import SavedEvaluation, read_evaluation
from pneumoscope.workflows.facts import command_line
from pneumoscope.workflows.plan_apply import apply_plan, evaluated_bundle, recalibrated
from pneumoscope.workflows.plan_output import plan_document, plan_text, write_table

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user wants of a plan.

    Attributes:
        evaluation: folder of the evaluation.
        target: what is to hold.
        out: folder to write; `None`: the evaluation's.
        model: the model that was evaluated, for `apply` and `recalibrate`.
        apply: folder of the bundle to write.
        recalibrate: labelled images of the site.
    """

    evaluation: Path
    target: PlanTarget = field(default_factory=PlanTarget)
    out: Path | None = None
    model: str = "default"
    apply: Path | None = None
    recalibrate: Path | None = None


def run_plan(
    request: PlanRequest, config: PlanConfig | None = None, progress: Progress = SILENT
) -> tuple[dict[str, Any], str]:
    """Plan, write the files, and tell of it as a document and a text.

    Raises:
        UsageError: options that exclude each other, or a number out of its range.
        DataError: the evaluation can't be used, or doesn't allow what is wanted.
        BundleError: the model is not the one that was evaluated.
    """
    config = config or PlanConfig()
    check_ranges(config)
    _check(request)
    saved = read_evaluation(request.evaluation)
    out = request.out or saved.folder
    claim_folder(out)
    bundle = None
    if request.apply or request.recalibrate:
        bundle = evaluated_bundle(request.model, saved)
    notes = _notes(request, saved)
    told = None
    if request.recalibrate and bundle:
        saved, bundle, told = recalibrated(request.recalibrate, saved, bundle, config, progress)
    content = _planned(request, saved, config, notes, told)
    document = plan_document(content, saved.folder, config)
    if request.apply and bundle:
        document["applied"] = apply_plan(request.apply, bundle, saved, content, config)
    write_json(out / "plan.json", document)
    write_table(out / "plan.csv", content)
    write_plan_page(out / "plan.html", content)
    for note in notes:
        _LOGGER.warning("%s", note)
    return document | {"out": str(out)}, plan_text(content, document, out)


def _check(request: PlanRequest) -> None:
    wanted = {
        "--min-sensitivity": request.target.min_sensitivity,
        "--min-specificity": request.target.min_specificity,
        "--threshold": request.target.threshold,
    }
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"found {' and '.join(given)}, wanted one of them. Leave one out.")
    if request.target.band is not None and request.target.sets is not None:
        raise UsageError("found --band and --sets, wanted one of them. Leave one out.")
    share = request.target.prevalence
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(f"--prevalence: found {share}, wanted a share above 0 and below 1")
    if request.target.threshold is not None and not 0.0 < request.target.threshold < 1.0:
        raise UsageError(
            f"--threshold: found {request.target.threshold}, wanted above 0 and below 1"
        )
    asked = (*given, request.target.band, request.target.sets, request.recalibrate)
    if request.apply is not None and not any(value is not None for value in asked):
        raise UsageError(
            "--apply: nothing is to be changed. Give --min-sensitivity, --min-specificity, "
            "--threshold, --band, --sets or --recalibrate."
        )


def _notes(request: PlanRequest, saved: SavedEvaluation) -> list[str]:
    notes = []
    if "test" in saved.splits:
        notes.append(
            "These are images of a test split. What is chosen on them makes their own numbers "
            "flatter it; keep other images to test the new operating point on."
        )
    if request.target.prevalence is None:
        notes.append(
            "No --prevalence was given: predictive values hold where pneumonia is as frequent as "
            "in these images."
        )
    if (request.apply or request.recalibrate) and not saved.model:
        notes.append(
            "The evaluation doesn't name its model (an older version wrote it): only its threshold "
            "was compared with that of --model."
        )
    return notes


def _planned(
    request: PlanRequest,
    saved: SavedEvaluation,
    config: PlanConfig,
    notes: list[str],
    recalibration: dict[str, Any] | None,
) -> PlanContent:
    """Everything that the page shows."""
    labels, scores, patients = saved.labels, saved.probabilities, saved.patients
    chosen, wanted = _chosen(request, saved, config)
    value = chosen.value if chosen else saved.threshold
    intervals = config.intervals()
    table = threshold_table(labels, scores, patients, intervals, keep=value)
    own = float(labels.mean())
    prevalence = own if request.target.prevalence is None else request.target.prevalence
    at = table.nearest(value)
    current = threshold_table(labels, scores, patients, intervals, keep=saved.threshold)
    row = table.row(at, prevalence)
    return PlanContent(
        name=saved.folder.name,
        images=labels.size,
        patients=len(set(patients)),
        positives=int(labels.sum()),
        prevalence=prevalence,
        given=request.target.prevalence is not None,
        table=table,
        at=at,
        current=current.row(current.nearest(saved.threshold), prevalence),
        chosen=chosen,
        confident=wanted,
        verify=_verifications(row, chosen, request, config),
        curve=decision_curve(labels, scores, patients, prevalence, intervals),
        risk=risk_coverage(labels, scores, patients, value, intervals),
        abstention=_abstention(request, saved, value, config),
        recalibration=recalibration,
        level=config.level,
        notes=tuple(notes),
        command=command_line(),
    )


def _chosen(
    request: PlanRequest, saved: SavedEvaluation, config: PlanConfig
) -> tuple[OperatingPoint | None, ConfidentThreshold | None]:
    """The new threshold, if one is asked for, and how sure it is that it holds."""
    where = f"{saved.labels.size} images of {len(set(saved.patients))} patients"
    if saved.splits:
        where += f" ({', '.join(saved.splits)})"
    if request.target.threshold is not None:
        return OperatingPoint(
            request.target.threshold, f"set to {request.target.threshold:g}", where
        ), None
    wanted: Mapping[Kind, float | None] = {
        "sensitivity": request.target.min_sensitivity,
        "specificity": request.target.min_specificity,
    }
    for kind, share in wanted.items():
        if share is not None:
            found = confident_threshold(
                saved.labels, saved.probabilities, saved.patients, kind, share, config
            )
            return OperatingPoint(found.value, found.rule, where), found
    return None, None


def _verifications(
    row: PlanRow, chosen: OperatingPoint | None, request: PlanRequest, config: PlanConfig
) -> dict[str, Verification]:
    """How many local patients each rate needs to be verified."""
    found = {}
    for kind, estimate, wanted in (
        ("sensitivity", row.sensitivity, request.target.min_sensitivity),
        ("specificity", row.specificity, request.target.min_specificity),
    ):
        expected = estimate.value or 0.0
        least = wanted if wanted is not None else expected - config.margin
        if 0.0 < least < 1.0:
            found[kind] = patients_to_verify(expected, least, config.confidence, config.power)
    return found


def _abstention(
    request: PlanRequest, saved: SavedEvaluation, threshold: float, config: PlanConfig
) -> Uncertain | None:
    data = (saved.labels, saved.probabilities, saved.patients, threshold)
    if request.target.band is not None:
        return choose_band(*data, request.target.band, config.confidence)
    return choose_sets(*data, request.target.sets) if request.target.sets is not None else None
