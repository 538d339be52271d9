"""An evaluation's folder read back: who was answered what, at which threshold, by which model.

A folder that `evaluate` or `train` wrote (or a run, whose `evaluation/` is meant) becomes one
`SavedEvaluation`; none of the images is opened. Labels stand in predictions.csv; of folders that
older versions wrote, in labels.csv.

The files of an evaluation, the same whether a model or a table gave the scores.

metrics.json                      every metric with its interval (the contract)
metrics.csv metrics.md metrics.tex    the same as tables, for a paper
predictions.csv                   one row per input, with label, patient, split and groups
figures/*.svg report.html checklist.html
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import Evaluation, headline
from pneumoscope.evaluation.recalibrate import ScoreScale
from pneumoscope.inference.table import write_predictions
from pneumoscope.records import CLASS_NAMES, Prediction
from pneumoscope.report.checklist_page import ChecklistContent, write_checklist
from pneumoscope.report.content import ReportContent, RunFacts
from pneumoscope.report.figure_sections import evaluation_figures
from pneumoscope.report.flow import flow_diagram
from pneumoscope.report.group_sections import as_csv, as_latex, as_markdown, group_figures
from pneumoscope.report.guidelines import Fact
from pneumoscope.report.report_page import write_report
from pneumoscope.storage import write_json, write_text
from pneumoscope.workflows.run_folder import command_line, software_versions


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """What a folder holds of the images that were answered for.

    Attributes:
        folder: where it lies.
        labels: int64, (n,).
        probabilities: float64, (n,); scores on another scale are brought to 0–1 by `scale`.
        patients: (n,) ids.
        names: (n,) paths, or what a table of scores calls its rows.
        splits: which splits the images are of.
        threshold: PNEUMONIA was called from here up, on the scale of `probabilities`.
        rule: how it was chosen.
        model: fingerprint of the model, `""` if the folder names none.
        model_name: what the model was called.
        scale: of the scores.
        own_threshold: the threshold in the scores' units.
        own_scores: float64, (n,), in these units.
        of_scores: whether the scores came from a file and not from a model.
    """

    folder: Path
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    threshold: float
    rule: str
    model: str
    model_name: str
    names: tuple[str, ...] = ()
    scale: ScoreScale = field(default_factory=ScoreScale)
    own_threshold: float = 0.0
    own_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    of_scores: bool = False


def read_evaluation(folder: Path) -> SavedEvaluation:
    """Read `metrics.json`, `predictions.csv` and `labels.csv`.

    Raises:
        UsageError: there is no such folder, or it holds no evaluation.
        DataError: the files are damaged, don't fit each other, or hold no answer.
    """
    for place in (folder, folder / "evaluation"):
        if (place / "metrics.json").is_file():
            folder = place
            break
    else:
        raise UsageError(
            f"{folder}: holds no metrics.json, wanted the folder of an evaluation. "
            "Make one: pneumoscope evaluate DATA --out DIR"
        )
    document = _document(folder / "metrics.json")
    answered = [row for row in _labelled_rows(folder) if row["status"] == "ok" and row["label"]]
    if not answered:
        raise DataError(f"{folder}: no image has an answer. See 'reason' in predictions.csv.")
    try:
        truth = [CLASS_NAMES.index(row["label"]) for row in answered]
        scores = [float(row.get("score") or row["probability"]) for row in answered]
        scale = ScoreScale(**document.get("scale", {}))
        threshold, model = document["threshold"], document.get("model") or {}
        return SavedEvaluation(
            folder,
            np.array(truth, np.int64),
            scale.to_unit(scores),
            tuple(row["patient"] for row in answered),
            tuple(sorted({row["split"] for row in answered} - {""})),
            float(scale.to_unit(float(threshold["value"]))),
            str(threshold["rule"]),
            str(model.get("fingerprint", "")),
            str(model.get("name", "")),
            tuple(row["path"] for row in answered),
            scale,
            float(threshold["value"]),
            np.array(scores, np.float64),
            "scores_sha256" in model,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}: can't be understood ({type(error).__name__}: {error}). It is incomplete "
            "or was changed. Evaluate again."
        ) from error


def _labelled_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of predictions.csv, each with its label, patient and split."""
    predictions = _rows(folder / "predictions.csv", ("path", "status", "probability"))
    if "label" in predictions[0]:
        return predictions
    labels = _rows(folder / "labels.csv", ("path", "label", "patient", "split"))
    names = [[Path(row["path"]).name for row in rows] for rows in (predictions, labels)]
    if names[0] != names[1]:
        raise DataError(
            f"{folder}: predictions.csv ({len(names[0])} rows) and labels.csv ({len(names[1])} "
            "rows) are not of the same images in the same order. Evaluate again."
        )
    return [label | row for row, label in zip(predictions, labels, strict=True)]


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}). Evaluate again.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: found no JSON object. Evaluate again.")
    return document


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: can't be read ({error}). Evaluate again.") from error
    lacking = [name for row in rows[:1] for name in columns if row.get(name) is None]
    if not rows or lacking:
        found = f"no column {lacking[0]!r}" if lacking else "no row"
        raise DataError(f"{path}: found {found}, wanted {', '.join(columns)}. Evaluate again.")
    return rows


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
