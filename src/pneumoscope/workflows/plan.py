"""`plan`: choose an operating point from an evaluation, and write a model that uses it.

plan.json    everything below, for programs
plan.csv     every threshold with its rates at the prevalence
plan.html    an interactive page with the same numbers
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import IntervalConfig, PlanConfig, PlanTarget, check_ranges
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.abstention import Uncertain, choose_band, choose_sets, risk_coverage
from pneumoscope.evaluation.decision import cost_table, decision_curve
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.pilot import FORMULA, Verification, patients_to_verify
from pneumoscope.evaluation.plan import (
    ConfidentThreshold,
    Kind,
    PlanRow,
    confident_threshold,
    threshold_table,
)
from pneumoscope.inference.bundle import OperatingPoint
from pneumoscope.progress import SILENT, Progress
from pneumoscope.report.content import PlanContent
from pneumoscope.report.formatting import percent, unrounded
from pneumoscope.report.plan_page import render_plan_page
from pneumoscope.storage import claim_folder, csv_text, write_json, write_text
from pneumoscope.workflows.evaluation_folder import SavedEvaluation, read_evaluation
from pneumoscope.workflows.operating_point import apply_plan, evaluated_bundle, recalibrated
from pneumoscope.workflows.run_folder import command_line

SCHEMA_VERSION = 1

CSV_COLUMNS = (
    "threshold",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "missed_per_1000",
    "false_alarms_per_1000",
)
"""Columns of `plan.csv`; each but the first has two more, `_low` and `_high`. With `--cost` the
column `cost_per_1000` comes last."""

_LOGGER = logging.getLogger(__name__)


def plan_document(content: PlanContent, folder: Path, config: PlanConfig) -> dict[str, Any]:
    """The document of `plan.json`; the caller fills in `applied`."""
    table, prevalence = content.table, content.prevalence
    chosen, confident = content.chosen, content.confident
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation": str(folder),
        "n": content.images,
        "patients": content.patients,
        "positives": content.positives,
        "prevalence": {"value": prevalence, "given": content.given},
        "interval": {
            "level": config.level,
            "method": BOOTSTRAP_METHOD,
            "resamples": config.resamples,
            "seed": config.seed,
        },
        "current": asdict(content.current),
        "chosen": {**asdict(content.row), "rule": chosen.rule} if chosen else None,
        "holds": asdict(confident) if confident else None,
        "verify": {"formula": FORMULA, **{k: asdict(v) for k, v in content.verify.items()}},
        "thresholds": [asdict(table.row(k, prevalence)) for k in range(table.thresholds.size)],
        "cost": content.costs.to_dict(table.thresholds) if content.costs else None,
        "decision_curve": content.curve.to_dict() if content.curve else None,
        "risk_coverage": content.risk.to_dict() if content.risk else None,
        "abstention": asdict(content.abstention) if content.abstention else None,
        "recalibration": content.recalibration,
        "notes": [*content.notes],
        "applied": None,
    }


def write_table(path: Path, content: PlanContent) -> None:
    """Write `plan.csv`: a row for each threshold."""
    names = [CSV_COLUMNS[0]]
    for name in (*CSV_COLUMNS[1:], *(("cost_per_1000",) if content.costs else ())):
        names += [name, f"{name}_low", f"{name}_high"]
    rows = []
    for k in range(content.table.thresholds.size):
        row = content.table.row(k, content.prevalence)
        estimates = (
            *(row.sensitivity, row.specificity, row.ppv, row.npv),
            *(row.missed, row.false_alarms),
            *((content.costs.at(k),) if content.costs else ()),
        )
        cells = [number for e in estimates for number in (e.value, e.low, e.high)]
        rows.append([row.threshold, *cells])
    write_text(path, csv_text(names, rows))


def plan_text(content: PlanContent, document: dict[str, Any], out: Path) -> str:
    """The plan as text for the terminal."""
    row = content.row
    lines = [
        f"{content.images} images of {content.patients} patients; prevalence "
        f"{content.prevalence:.3f}",
        f"threshold {unrounded(row.threshold, 4)} "
        + (f"({content.chosen.rule})" if content.chosen else "(unchanged)"),
        "",
        f"{'':<22}{'value':>8}   {content.level:.0%} interval",
    ]
    for name, estimate in (
        ("sensitivity", row.sensitivity),
        ("specificity", row.specificity),
        ("ppv", row.ppv),
        ("npv", row.npv),
        ("missed per 1000", row.missed),
        ("false alarms per 1000", row.false_alarms),
    ):
        digits = 1 if "per" in name else 4
        if estimate.value is None:
            lines.append(f"{name:<22}{'–':>8}   undefined")
            continue
        low, high = estimate.low, estimate.high
        span = "–" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
        lines.append(f"{name:<22}{estimate.value:>8.{digits}f}   {span}")
    lines.append("")
    if content.confident:
        sure = content.confident
        lines.append(
            f"{sure.kind} is at least {sure.limit:.4f} with {sure.confidence:.0%} confidence; it "
            f"reaches {sure.wanted:g} in {sure.chance:.1%} of the bootstrap resamples"
        )
    for kind, needed in content.verify.items():
        many = "no number of" if needed.patients is None else str(needed.patients)
        disease = "with" if kind == "sensitivity" else "without"
        lines.append(
            f"to verify {kind} above {needed.least:.3f}: {many} patients {disease} pneumonia"
        )
    if found := content.costs:
        cost = found.at(content.at)
        lines.append(
            f"expected cost {cost.value:.1f} per 1000 patients ({found.missed:g} per missed case, "
            f"{found.false_alarm:g} per false alarm); lowest at threshold "
            f"{unrounded(content.table.thresholds[found.cheapest], 4)}: "
            f"{found.at(found.cheapest).value:.1f}"
        )
    if content.abstention:
        band = content.abstention
        lines.append(
            f"indeterminate from {unrounded(band.low, 4)} to {unrounded(band.high, 4)}: "
            f"{band.coverage.value:.1%} of images get a prediction, {band.risk.value or 0:.2%} of "
            "these are wrong"
        )
    if content.recalibration:
        recalibration = content.recalibration
        word = (
            "changed"
            if recalibration["changed"]
            else "unchanged: the sample shows no need of a new one"
        )
        lines.append(f"calibration {word} ({recalibration['images']} images)")
    if document["applied"]:
        lines.append(f"bundle  {document['applied']['bundle']}")
    return "\n".join([*lines, f"page    {out / 'plan.html'}"])


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The input of a plan.

    Attributes:
        evaluation: folder of the evaluation.
        target: prevalence and the requirement on the threshold.
        out: output folder; `None`: the evaluation's.
        model: the model that was evaluated, for `apply` and `recalibrate`.
        apply: folder of the bundle to write.
        recalibrate: labelled images of the site, to fit a new calibration to.
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
    """Choose an operating point and write the files.

    Returns:
        The JSON document and the terminal text.

    Raises:
        UsageError: options exclude each other, or a number is out of its range.
        DataError: the evaluation is unusable, or does not allow the requested threshold.
        BundleError: the model is not the one that was evaluated.
    """
    config = config or PlanConfig()
    check_ranges(config)
    _check(request)
    saved = read_evaluation(request.evaluation)
    _check_scale(request, saved)
    out = request.out or saved.folder
    claim_folder(out)
    bundle = None
    if request.apply or request.recalibrate:
        bundle = evaluated_bundle(request.model, saved)
    notes = _notes(request, saved)
    recalibration = None
    if request.recalibrate and bundle:
        saved, bundle, recalibration, seen = recalibrated(
            request.recalibrate, saved, bundle, config, progress
        )
        notes.append(f"Calibration sample: {seen.in_words()}")
    content = _planned(request, saved, config, notes, recalibration)
    document = plan_document(content, saved.folder, config)
    if request.apply and bundle:
        document["applied"] = apply_plan(request.apply, bundle, saved, content, config)
    write_json(out / "plan.json", document)
    write_table(out / "plan.csv", content)
    write_text(out / "plan.html", render_plan_page(content))
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
    target = request.target
    changes = (*given, target.band, target.sets, target.costs, request.recalibrate)
    if request.apply is not None and not any(value is not None for value in changes):
        raise UsageError(
            "--apply: no change was requested. Give --min-sensitivity, --min-specificity, "
            "--threshold, --cost, --band, --sets or --recalibrate."
        )


def _check_scale(request: PlanRequest, saved: SavedEvaluation) -> None:
    """Reject options that need a probability, or a model, if the evaluation has none.

    Raises:
        UsageError: names the option.
    """
    at, scale = request.target.threshold, saved.scale
    low, high = (0.0, 1.0) if scale.probability else (scale.low, scale.high)
    if at is not None and not low < at < high:
        raise UsageError(f"--threshold: found {at}, wanted above {low:g} and below {high:g}")
    if not scale.probability and (request.target.band, request.target.sets) != (None, None):
        raise UsageError(
            f"{saved.folder}: its scores are not probabilities, which --band and --sets need. "
            "Leave them out."
        )
    if (request.apply or request.recalibrate) and saved.of_scores:
        raise UsageError(
            f"{saved.folder}: evaluates scores from a file, without a model to change. "
            "Leave out --apply and --recalibrate."
        )


def _notes(request: PlanRequest, saved: SavedEvaluation) -> list[str]:
    notes = [*saved.cautions]
    if "train" in saved.splits:
        notes.append(
            "These images are from a training split, on which a model looks better than on new "
            "images. Choose an operating point on other images."
        )
    if "test" in saved.splits:
        notes.append(
            "These images are from a test split. An operating point chosen on them looks better on "
            "them than on new images; test it on other images."
        )
    if request.target.prevalence is None:
        notes.append(
            "No --prevalence was given: predictive values apply where pneumonia is as frequent as "
            "in these images."
        )
    elif saved.scale.probability:
        notes.append(
            "Risk, coverage and abstention are at the prevalence of these images "
            f"({percent(saved.labels.mean(), 1)}), not at {percent(request.target.prevalence, 1)}."
        )
    if (request.apply or request.recalibrate) and not saved.model:
        notes.append(
            "The evaluation does not name its model (an older version wrote it): only its "
            "threshold was compared with that of --model."
        )
    return notes


def _planned(
    request: PlanRequest,
    saved: SavedEvaluation,
    config: PlanConfig,
    notes: list[str],
    recalibration: dict[str, Any] | None,
) -> PlanContent:
    """Compute everything that the page shows."""
    labels, scores, patients = saved.labels, saved.probabilities, saved.patients
    own = float(labels.mean())
    prevalence = own if request.target.prevalence is None else request.target.prevalence
    intervals = config.intervals()
    chosen, wanted = _chosen(request, saved, config)
    if chosen is None and request.target.costs is not None:
        chosen = _cheapest(request.target.costs, saved, prevalence, intervals)
    value = chosen.value if chosen else saved.threshold
    table = threshold_table(labels, scores, patients, intervals, keep=value)
    at = table.nearest(value)
    current = threshold_table(labels, scores, patients, intervals, keep=saved.threshold)
    row = table.row(at, prevalence)
    data = (labels, scores, patients)
    costs = request.target.costs
    probability = saved.scale.probability
    content = PlanContent(
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
        curve=decision_curve(*data, prevalence, intervals) if probability else None,
        risk=risk_coverage(*data, value, intervals) if probability else None,
        abstention=_abstention(request, saved, value, config),
        recalibration=recalibration,
        level=config.level,
        notes=tuple(notes),
        command=command_line(),
        costs=cost_table(*data, table.thresholds, prevalence, costs, intervals) if costs else None,
    )
    return _in_own_units(content, saved)


def _in_own_units(content: PlanContent, saved: SavedEvaluation) -> PlanContent:
    """The plan with all thresholds in the units of the scores."""
    scale = saved.scale
    if scale.probability:
        return content

    def own(threshold: float) -> float:
        same = threshold == saved.threshold
        return saved.own_threshold if same else float(scale.from_unit(threshold))

    thresholds = np.array([own(float(value)) for value in content.table.thresholds])
    chosen, confident, costs = content.chosen, content.confident, content.costs
    ends = (
        None if costs is None or end is None else own(end)
        for end in ((costs.low, costs.high) if costs else (None, None))
    )
    low, high = ends
    return replace(
        content,
        table=replace(content.table, thresholds=thresholds),
        current=replace(content.current, threshold=saved.own_threshold),
        chosen=replace(chosen, value=own(chosen.value)) if chosen else None,
        confident=replace(confident, value=own(confident.value)) if confident else None,
        costs=replace(costs, low=low, high=high) if costs else None,
    )


def _cheapest(
    costs: tuple[float, float], saved: SavedEvaluation, prevalence: float, config: IntervalConfig
) -> OperatingPoint:
    """The threshold with the lowest expected cost."""
    data = (saved.labels, saved.probabilities, saved.patients)
    once = replace(config, resamples=1)
    thresholds = threshold_table(*data, once).thresholds
    found = cost_table(*data, thresholds, prevalence, costs, once)
    rule = (
        f"least expected cost, {costs[0]:g} per missed case and {costs[1]:g} per false alarm, at a "
        f"prevalence of {prevalence:.3g}"
    )
    return OperatingPoint(float(thresholds[found.cheapest]), rule, _where(saved))


def _chosen(
    request: PlanRequest, saved: SavedEvaluation, config: PlanConfig
) -> tuple[OperatingPoint | None, ConfidentThreshold | None]:
    """The new threshold (0 to 1) and its guarantee; `None` for what was not requested."""
    where = _where(saved)
    at = request.target.threshold
    if at is not None:
        return OperatingPoint(float(saved.scale.to_unit(at)), f"set to {at:g}", where), None
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


def _where(saved: SavedEvaluation) -> str:
    """The images that a threshold is chosen on, in words."""
    where = f"{saved.labels.size} images of {len(set(saved.patients))} patients"
    return f"{where} ({', '.join(saved.splits)})" if saved.splits else where


def _verifications(
    row: PlanRow, chosen: OperatingPoint | None, request: PlanRequest, config: PlanConfig
) -> dict[str, Verification]:
    """Number of local patients needed to verify sensitivity and specificity."""
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
