"""The tables of a stress test: stress.json, stress.csv, answers.csv.

Comes in: `StressContent`, or records and what was said of them. Goes out: documents and files,
whole or not at all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.stress import METRICS, Metric
from pneumoscope.records import Estimate, ImageRecord
from pneumoscope.report.stress_content import ExchangeRow, Shortcuts, StressContent, StressRow
from pneumoscope.report.stress_findings import stress_findings
from pneumoscope.storage import path_text, safe_cell, write_text
from pneumoscope.workflows.stress_journal import Stressed

SCHEMA_VERSION = 1


def stress_document(content: StressContent) -> dict[str, Any]:
    """`stress.json`: rows worst first; what is undefined is `None`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": content.model.name,
        "data": content.data.name,
        "split": content.split,
        "n": content.images,
        "drawn_from": content.drawn_from,
        "patients": content.patients,
        "positives": content.positives,
        "refused": dict(content.refused),
        "warnings": dict(content.warned),
        "threshold": content.threshold,
        "interval": asdict(content.interval) | {"method": BOOTSTRAP_METHOD},
        "config": asdict(content.config),
        "plain": _metrics(content.plain),
        "largest_fall": content.config.largest_fall,
        "holds": content.holds,
        "beyond": [row.name for row in content.judged("fails")],
        "uncertain": None if content.uncertain is None else dict(content.uncertain),
        "rows": [_row(row) for row in content.worst_first],
        "shortcuts": None if content.shortcuts is None else _shortcuts(content.shortcuts),
        "findings": [asdict(finding) for finding in stress_findings(content)],
        "seconds": dict(content.run.seconds),
    }


def _row(row: StressRow) -> dict[str, Any]:
    found = row.found
    return {
        "sweep": row.sweep,
        "name": row.name,
        "title": row.title,
        "strength": row.strength,
        "plausible": row.plausible,
        "judgement": row.judgement,
        "n": found.images,
        "patients": found.patients,
        "refused": found.refused,
        "fall": found.fall,
        "plain": _metrics(found.plain),
        "changed": _metrics(found.changed),
        "difference": _metrics(found.difference),
    }


def _exchange(row: ExchangeRow) -> dict[str, Any]:
    found = row.found
    return {
        "name": row.name,
        "title": row.title,
        "n": found.images,
        "patients": found.patients,
        "same_class": _metrics(found.plain),
        "other_class": _metrics(found.changed),
        "difference": _metrics(found.difference),
    }


def _metrics(found: Mapping[Metric, Estimate]) -> dict[str, Any]:
    return {metric: asdict(found[metric]) for metric in METRICS}


def _shortcuts(shortcuts: Shortcuts) -> dict[str, Any]:
    return {
        "lungs_from": shortcuts.lungs_from,
        "with_lungs": shortcuts.with_lungs,
        "without_lungs": shortcuts.without_lungs,
        "lung_share": asdict(shortcuts.lung_share),
        "heatmap_energy_in_lungs": asdict(shortcuts.energy) | {"n": shortcuts.energy_images},
        "heatmaps": {
            "n": shortcuts.localisation.images,
            "peak_in_a_lung": asdict(shortcuts.localisation.peak),
            "energy_over_area": asdict(shortcuts.localisation.gain),
        },
        "parts": [_row(row) for row in shortcuts.rows],
        "framing": [_row(row) for row in shortcuts.framing],
        "exchanges": [_exchange(row) for row in shortcuts.exchanges],
        "controls": {
            name: None if control is None else asdict(control)
            for name, control in shortcuts.controls.items()
        },
    }


def write_rows(path: Path, content: StressContent) -> None:
    """`stress.csv`: one row per change, worst first, then parts of the image, matched framing."""
    columns = ["sweep", "name", "title", "strength", "plausible", "judgement", "n", "refused"]
    for metric in METRICS:
        columns += [f"{metric}{part}" for part in ("", "_low", "_high")]
        columns += [f"{metric}_change{part}" for part in ("", "_low", "_high")]
    shortcuts = content.shortcuts
    parts = (*shortcuts.rows, *shortcuts.framing) if shortcuts else ()
    rows = []
    for row in (*content.worst_first, *parts):
        cells: list[Any] = [row.sweep, row.name, row.title, row.strength, row.plausible]
        cells += [row.judgement, row.found.images, row.found.refused]
        for metric in METRICS:
            cells += _cells(row.found.changed[metric]) + _cells(row.found.difference[metric])
        rows.append(cells)
    _write(path, columns, rows)


def _cells(estimate: Estimate) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


def write_answers(
    path: Path, records: Sequence[ImageRecord], stressed: Sequence[Stressed], names: Sequence[str]
) -> None:
    """`answers.csv`: `path,label,patient,change,probability,reason`, one row per copy."""
    rows: list[list[Any]] = []
    for record, one in zip(records, stressed, strict=True):
        patient = safe_cell(path_text(record.patient))
        facts = [path_text(record.path), record.label, patient]
        for name, said in zip(names, one.said, strict=False):
            answer = [said, ""] if isinstance(said, float) else ["", said]
            if said is not None:
                rows.append([*facts, name, *answer])
        if not one.said:
            rows.append([*facts, names[0], "", one.reason])
    _write(path, ["path", "label", "patient", "change", "probability", "reason"], rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
