"""A plan told: `plan.json`, `plan.csv`, and lines for a terminal.

Comes in: what the page shows. Goes out: a document, a file, a text. Measures nothing.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumoscope.config import PlanConfig
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.sample_size import FORMULA
from pneumoscope.report.plan_content import PlanContent
from pneumoscope.storage import write_text

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
"""Of `plan.csv`; all but the first are followed by `_low` and `_high`. With `--cost` another,
`cost_per_1000`, comes last."""


def plan_document(content: PlanContent, folder: Path, config: PlanConfig) -> dict[str, Any]:
    """The document of `plan.json`, `applied` to be filled in."""
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
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    names = [CSV_COLUMNS[0]]
    for name in (*CSV_COLUMNS[1:], *(("cost_per_1000",) if content.costs else ())):
        names += [name, f"{name}_low", f"{name}_high"]
    writer.writerow(names)
    for k in range(content.table.thresholds.size):
        row = content.table.row(k, content.prevalence)
        estimates = (
            *(row.sensitivity, row.specificity, row.ppv, row.npv),
            *(row.missed, row.false_alarms),
            *((content.costs.at(k),) if content.costs else ()),
        )
        cells = [number for e in estimates for number in (e.value, e.low, e.high)]
        writer.writerow([row.threshold, *("" if cell is None else cell for cell in cells)])
    write_text(path, stream.getvalue())


def plan_text(content: PlanContent, document: dict[str, Any], out: Path) -> str:
    """The plan for people, in lines."""
    row = content.row
    lines = [
        f"{content.images} images of {content.patients} patients; prevalence "
        f"{content.prevalence:.3f}",
        f"threshold {row.threshold:.4f} "
        + (f"({content.chosen.rule})" if content.chosen else "(as it is)"),
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
            f"reaches {sure.wanted:g} in {sure.chance:.1%} of resamples of patients"
        )
    for kind, needed in content.verify.items():
        many = "no number of" if needed.patients is None else str(needed.patients)
        ill = "with" if kind == "sensitivity" else "without"
        lines.append(f"to verify {kind} above {needed.least:.3f}: {many} patients {ill} pneumonia")
    if found := content.costs:
        cost = found.at(content.at)
        lines.append(
            f"errors cost {cost.value:.1f} per 1000 patients here ({found.missed:g} each missed, "
            f"{found.false_alarm:g} each false alarm); least at "
            f"{content.table.thresholds[found.cheapest]:.4f}: {found.at(found.cheapest).value:.1f}"
        )
    if content.abstention:
        band = content.abstention
        lines.append(
            f"uncertain from {band.low:.4f} to {band.high:.4f}: {band.coverage.value:.1%} of "
            f"images answered, {band.risk.value or 0:.2%} of them wrongly"
        )
    if content.recalibration:
        told = content.recalibration
        word = "changed" if told["changed"] else "kept: the sample shows no need of another"
        lines.append(f"calibration {word} ({told['images']} images)")
    if document["applied"]:
        lines.append(f"bundle  {document['applied']['bundle']}")
    return "\n".join([*lines, f"page    {out / 'plan.html'}"])
