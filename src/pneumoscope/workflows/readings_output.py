"""A pilot told: readings.json, weeks.csv, what DECIDE-AI asks, lines for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pneumoscope.data.readings import Joined
from pneumoscope.evaluation.weekly import Week
from pneumoscope.report.checklists.item import Fact
from pneumoscope.report.formatting import in_words, plural
from pneumoscope.report.readings_content import ReadingsContent
from pneumoscope.storage import safe_cell

SCHEMA_VERSION = 1


def readings_document(
    content: ReadingsContent, joined: Joined, scores: Path, readings: Path
) -> dict[str, Any]:
    """The document of readings.json."""
    evaluation = content.evaluation
    return {
        "schema_version": SCHEMA_VERSION,
        "scores": str(scores),
        "readings": str(readings),
        "by": content.by,
        "missing": asdict(content.missing),
        "metrics": evaluation.to_metrics_json()["metrics"] if evaluation else None,
        "confusion_matrix": evaluation.confusion_matrix.to_dict() if evaluation else None,
        "agreement": asdict(content.agreement) if content.agreement else None,
        "readers": {name: asdict(found) for name, found in content.readers.items()},
        "weeks": [{**asdict(w), "monday": w.monday.isoformat()} for w in content.weeks],
        "undated": content.undated,
        "thresholds": [
            {
                **asdict(line.row),
                "called": line.called,
                "scored": line.scored,
                "in_use": line.in_use,
            }
            for line in content.thresholds
        ],
        "still_needed": {
            kind: {
                **asdict(found.needed),
                "have": found.have,
                "missing": found.missing,
                "weeks": found.weeks,
            }
            for kind, found in content.needed.items()
        },
        "models": [*content.models],
        "unscored": [*joined.unscored],
    }


def weeks_csv(weeks: Sequence[Week]) -> str:
    """weeks.csv: a row per week."""
    header = ["monday", "cases", "no_score", "read", "score_q25", "score_median", "score_q75"]
    header += ["drift", "drift_p", "positives_so_far", "negatives_so_far"]
    for name in ("called", "sensitivity_so_far", "specificity_so_far"):
        header += [name, f"{name}_low", f"{name}_high"]
    rows = []
    for week in weeks:
        estimates = (week.called, week.sensitivity, week.specificity)
        cells = [
            week.monday.isoformat(),
            week.cases,
            sum(week.refused.values()),
            week.read,
            *(week.quartiles or ("", "", "")),
            week.drift,
            week.drift_p,
            week.positives,
            week.negatives,
            *(number for e in estimates for number in (e.value, e.low, e.high)),
        ]
        rows.append(["" if cell is None else cell for cell in cells])
    return csv_text(header, rows)


def pilot_answers(content: ReadingsContent, joined: Joined) -> Mapping[Fact, str]:
    """What DECIDE-AI asks of a pilot besides its results."""
    weeks, missing, agreed = content.weeks, content.missing, content.agreement
    refused: dict[str, int] = {}
    for week in weeks:
        for code, cases in week.refused.items():
            refused[code] = refused.get(code, 0) + cases
    listed = ", ".join(f"{code.replace('_', ' ')} {n}" for code, n in refused.items()) or "none"
    readers = {r.reader for case in joined.cases for r in case.readings if r.reader}
    by = f" by {plural(len(readers), 'reader')}" if readers else ""
    span = (
        f" in {plural(len(weeks), 'week')}, {weeks[0].monday} to {weeks[-1].monday}"
        if weeks
        else ""
    )
    between = "; ".join(
        f"{name}: kappa {in_words(found.kappa, content.level, 3)}"
        for name, found in content.readers.items()
    )
    models = content.models
    changed = f"One model throughout ({models[0]})." if len(models) == 1 else ""
    if len(models) > 1:
        changed = f"{len(models)} models answered, in this order: {', '.join(models)}."
    return {
        "exposure": f"{plural(missing.cases, 'case')} reached the system{span}; "
        f"{plural(missing.matched, 'case')} have a score and were read{by}.",
        "refusals": f"What can't be scored gets a code and no score. Here: {listed}.",
        "modifications": changed,
        "agreement": f"System and readers agree on {100 * agreed.observed:.1f} % of "
        f"{plural(agreed.images, 'case')}, Cohen’s kappa "
        f"{in_words(agreed.kappa, content.level, 3)}. {between}".strip()
        if agreed
        else "",
    }


def readings_text(content: ReadingsContent, out: Path) -> str:
    """The pilot for people, in lines."""
    missing = content.missing
    lines = [
        f"{missing.matched} of {missing.cases} cases have a score and a reading; unread "
        f"{missing.unread}, divided {missing.divided}, refused {missing.refused}, read but not "
        f"scored {missing.unscored}",
    ]
    if content.evaluation and content.agreement:
        for name, estimate in (
            ("sensitivity", content.evaluation.metrics["sensitivity"]),
            ("specificity", content.evaluation.metrics["specificity"]),
            ("auc", content.evaluation.metrics["auc"]),
            ("kappa", content.agreement.kappa),
        ):
            if estimate.value is not None:
                span = "–" if estimate.low is None else f"{estimate.low:.4f} to {estimate.high:.4f}"
                lines.append(f"{name:<14}{estimate.value:>8.4f}   {span}")
    for kind, found in content.needed.items():
        left = "no number of" if found.missing is None else str(found.missing)
        lines.append(f"to show {kind} above {found.needed.least:.3f}: {left} more cases")
    return "\n".join([*lines, f"page    {out / 'readings.html'}"])


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([safe_cell(c) if isinstance(c, str) else c for c in row] for row in rows)
    return stream.getvalue()
