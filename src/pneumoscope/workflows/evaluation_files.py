"""The files of an evaluation, the same whether a model or a table gave the scores.

metrics.json                      every metric with its interval (the contract)
metrics.csv metrics.md metrics.tex    the same as tables, for a paper
predictions.csv                   one row per input, with label, patient, split and groups
figures/*.svg report.html checklist.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pneumoscope.evaluation.evaluate import Evaluation, headline
from pneumoscope.inference.table import write_predictions
from pneumoscope.records import Prediction
from pneumoscope.report.checklist_page import ChecklistContent, write_checklist
from pneumoscope.report.checklists.item import Fact
from pneumoscope.report.content import ReportContent, RunFacts
from pneumoscope.report.figure_sections import evaluation_figures
from pneumoscope.report.flow import flow_diagram
from pneumoscope.report.group_sections import group_figures
from pneumoscope.report.metric_tables import as_csv, as_latex, as_markdown
from pneumoscope.report.report_page import write_report
from pneumoscope.storage import write_json, write_text
from pneumoscope.workflows.facts import command_line, software_versions


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """What is written of one evaluation.

    Attributes:
        document: of `metrics.json`.
        predictions: a row each of `predictions.csv`.
        columns: further columns of it, a value per prediction.
        content: of the report; its flow is drawn too.
        answers: what the checklists are filled in with.
    """

    document: Mapping[str, Any]
    predictions: Sequence[Prediction]
    columns: Mapping[str, Sequence[str | float]]
    content: ReportContent
    answers: Mapping[Fact, str]


def run_facts(seconds: Mapping[str, float], config: Any) -> RunFacts:
    """How the result came about: this command, begun so many seconds ago."""
    started = datetime.now(UTC) - timedelta(seconds=sum(seconds.values()))
    return RunFacts(
        command_line(), seconds, software_versions(), started.isoformat(timespec="seconds"), config
    )


def write_evaluation_files(out: Path, files: EvaluationFiles, page: Path) -> None:
    """Write the files named above into `out`, the report to `page`."""
    evaluation, content = files.content.evaluation, files.content
    write_json(out / "metrics.json", files.document)
    write_text(out / "metrics.csv", as_csv(evaluation))
    write_text(out / "metrics.md", as_markdown(evaluation))
    write_text(out / "metrics.tex", as_latex(evaluation))
    write_predictions(out / "predictions.csv", files.predictions, files.columns)
    for figure in (*evaluation_figures(evaluation), *group_figures(evaluation)):
        figure.save(out / "figures" / f"{figure.name}.svg")
    write_report(page, content)
    if content.flow is not None:
        flow_diagram(content.flow).save(out / "figures" / "flow.svg")
        named = f"{content.model.name} · {content.data.name}"
        write_checklist(
            out / "checklist.html", ChecklistContent(named, files.answers, content.flow)
        )


def metrics_table(evaluation: Evaluation) -> str:
    """The metrics with their intervals as lines of text."""
    level = f"{evaluation.interval.level:.0%}"
    lines = [
        f"{evaluation.n} images of {evaluation.patients} patients, threshold "
        f"{evaluation.threshold:.4f} ({evaluation.rule})",
        "",
        f"{'metric':<20}{'value':>8}   {level} interval",
    ]
    for row in headline(evaluation):
        if row.value is None:
            lines.append(f"{row.name:<20}{'–':>8}   undefined")
            continue
        span = "–" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"
        lines.append(f"{row.name:<20}{row.value:>8.4f}   {span}")
    if evaluation.why_no_intervals:
        lines += ["", evaluation.why_no_intervals]
    matrix = evaluation.confusion_matrix
    lines += ["", f"tn {matrix.tn}   fp {matrix.fp}   fn {matrix.fn}   tp {matrix.tp}"]
    return "\n".join(lines)


def evaluation_text(evaluation: Evaluation, out: Path) -> str:
    """An evaluation for the terminal: the table, and where the pages are."""
    return (
        f"{metrics_table(evaluation)}\n\nreport     {out / 'report.html'}\n"
        f"checklist  {out / 'checklist.html'}\n"
        f"tables     {out / 'metrics.csv'}, metrics.md, metrics.tex"
    )
