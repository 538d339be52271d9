"""Write and read the folder of an evaluation, of a model or of scores from a table.

metrics.json                      every metric with its interval
metrics.csv metrics.md metrics.tex    the same as tables, for a paper
predictions.csv                   one row per input, with label, patient, split and groups
figures/*.svg report.html checklist.html

`read_evaluation` reads a folder back without opening any image. Folders of older versions have the
labels in labels.csv instead of predictions.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, InputError, UsageError
from pneumoscope.evaluation.evaluate import Evaluation, headline
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.inference.results import write_predictions
from pneumoscope.reading import read_json
from pneumoscope.records import CLASS_NAMES, Prediction
from pneumoscope.report.checklist import ChecklistContent, Fact, flow_diagram, render_checklist
from pneumoscope.report.content import ReportContent, RunFacts
from pneumoscope.report.figure_sections import evaluation_figures
from pneumoscope.report.formatting import as_csv, as_latex, as_markdown, unrounded
from pneumoscope.report.report_page import group_figures, render_report
from pneumoscope.storage import write_json, write_text
from pneumoscope.workflows.run_folder import command_line, software_versions


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """A saved evaluation: the images that have a prediction.

    Attributes:
        folder: its path.
        labels: int64, (n,).
        probabilities: float64, (n,), from 0 to 1; other scores are mapped by `scale`.
        patients: (n,) ids.
        names: (n,) paths, or the row names of a table of scores.
        splits: the splits that the images belong to.
        threshold: values at or above it were called PNEUMONIA, on the scale of `probabilities`.
        rule: how the threshold was chosen.
        model: fingerprint of the model; `""` if unknown.
        model_name: name of the model.
        scale: of the scores.
        own_threshold: the threshold in the units of the scores.
        own_scores: float64, (n,), the scores in their own units.
        of_scores: whether the scores came from a file instead of a model.
        cautions: sentences about the images and the results, as its report states them.
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
    cautions: tuple[str, ...] = ()


def read_evaluation(folder: Path) -> SavedEvaluation:
    """Read the folder of an evaluation, or of a run (its `evaluation/`).

    Raises:
        UsageError: there is no such folder, or it holds no evaluation.
        DataError: the files are damaged, don't fit each other, or hold no prediction.
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
    scored = [row for row in _labelled_rows(folder) if row["status"] == "ok" and row["label"]]
    if not scored:
        raise DataError(f"{folder}: no image has a prediction. See 'reason' in predictions.csv.")
    try:
        labels = [CLASS_NAMES.index(row["label"]) for row in scored]
        scale = ScoreScale(**document.get("scale", {}))
        # Of probabilities, `score` is a column of the manifest that was kept as a subgroup.
        column = "probability" if scale.probability else "score"
        scores = [float(row[column]) for row in scored]
        for row, score, unit in zip(scored, scores, scale.to_unit(scores), strict=True):
            if not 0.0 <= unit <= 1.0:
                raise ValueError(
                    f"found the score {score} of {row['path'][:200]!r}, wanted {scale.low:g} to "
                    f"{scale.high:g}"
                )
        threshold, model = document["threshold"], document.get("model") or {}
        return SavedEvaluation(
            folder,
            np.array(labels, np.int64),
            scale.to_unit(scores),
            tuple(row["patient"] for row in scored),
            tuple(sorted({row["split"] for row in scored} - {""})),
            float(scale.to_unit(float(threshold["value"]))),
            str(threshold["rule"]),
            str(model.get("fingerprint", "")),
            str(model.get("name", "")),
            tuple(row["path"] for row in scored),
            scale,
            float(threshold["value"]),
            np.array(scores, np.float64),
            "scores_sha256" in model,
            tuple(str(caution) for caution in document.get("cautions", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
        document = read_json(path)
    except InputError as error:
        raise DataError(f"{error}. Evaluate again.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: found no JSON object. Evaluate again.")
    return document


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: can't be read ({error}). Evaluate again.") from error
    missing = [name for row in rows[:1] for name in columns if row.get(name) is None]
    if not rows or missing:
        found = f"no column {missing[0]!r}" if missing else "no row"
        raise DataError(f"{path}: found {found}, wanted {', '.join(columns)}. Evaluate again.")
    return rows


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """The content of the files of an evaluation.

    Attributes:
        document: of `metrics.json`.
        predictions: the rows of `predictions.csv`.
        columns: its further columns, a value per prediction.
        content: of the report and the flow diagram.
        answers: texts for the checklists, by fact.
    """

    document: Mapping[str, Any]
    predictions: Sequence[Prediction]
    columns: Mapping[str, Sequence[str | float]]
    content: ReportContent
    answers: Mapping[Fact, str]


def run_facts(seconds: Mapping[str, float], config: Any) -> RunFacts:
    """Command, versions, start time and settings of this run, for a report."""
    started = datetime.now(UTC) - timedelta(seconds=sum(seconds.values()))
    return RunFacts(
        command_line(), seconds, software_versions(), started.isoformat(timespec="seconds"), config
    )


def write_evaluation_files(out: Path, files: EvaluationFiles, page: Path) -> None:
    """Write the files listed in the module docstring to `out` and the report to `page`."""
    evaluation, content = files.content.evaluation, files.content
    write_json(out / "metrics.json", files.document)
    write_text(out / "metrics.csv", as_csv(evaluation))
    write_text(out / "metrics.md", as_markdown(evaluation))
    write_text(out / "metrics.tex", as_latex(evaluation))
    write_predictions(out / "predictions.csv", files.predictions, files.columns)
    for figure in (*evaluation_figures(evaluation), *group_figures(evaluation)):
        figure.save(out / "figures" / f"{figure.name}.svg")
    if content.flow is not None:
        flow_diagram(content.flow).save(out / "figures" / "flow.svg")
        named = f"{content.model.name} · {content.data.name}"
        checklist = ChecklistContent(named, files.answers, content.flow)
        write_text(out / "checklist.html", render_checklist(checklist))
    write_text(page, render_report(content))  # last: a folder with this page is complete


def metrics_table(evaluation: Evaluation) -> str:
    """The metrics with their intervals as text for the terminal."""
    level = f"{evaluation.interval.level:.0%}"
    lines = [
        f"{evaluation.n} images of {evaluation.patients} patients, threshold "
        f"{unrounded(evaluation.threshold, 4)} ({evaluation.rule})",
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
    """An evaluation as text for the terminal: the metrics and the paths of the pages."""
    return (
        f"{metrics_table(evaluation)}\n\nreport     {out / 'report.html'}\n"
        f"checklist  {out / 'checklist.html'}\n"
        f"tables     {out / 'metrics.csv'}, metrics.md, metrics.tex"
    )
