"""The metrics of an evaluation as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.intervals import METRICS_METHOD
from pneumoscope.evaluation.ranked_metrics import METRIC_NAMES
from pneumoscope.records import Estimate
from pneumoscope.report.formatting import ABSENT, interval, metric_text, number, percent

CSV_COLUMNS = ("metric", "value", "low", "high", "level", "method", "images", "patients")

_LATEX_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--", "−": "$-$", "\u202f": "\\,", "\u00a0": "~"}
)


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    label: str
    estimate: Estimate
    method: str


def as_csv(found: Evaluation) -> str:
    """A CSV row per metric and interval method, at full precision."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in _lines(found):
        cells = (line.estimate.value, line.estimate.low, line.estimate.high)
        writer.writerow(
            [
                line.name,
                *("" if cell is None else cell for cell in cells),
                found.interval.level,
                line.method,
                found.n,
                found.patients,
            ]
        )
    return stream.getvalue()


def as_markdown(found: Evaluation) -> str:
    """The metrics of `metrics.json` as a Markdown table, with a line on data and methods."""
    level = percent(found.interval.level)
    lines = [f"| Metric | Value | {level} interval |", "| --- | ---: | --- |"]
    lines += [
        f"| {line.label} | {number(line.estimate.value)} | {interval(line.estimate)} |"
        for line in _lines(found)
        if line.method == METRICS_METHOD
    ]
    return "\n".join([*lines, "", _note(found), ""])


def as_latex(found: Evaluation) -> str:
    r"""The metrics of `metrics.json` as a LaTeX table (`booktabs`), to be `\input`."""
    level = percent(found.interval.level)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{lrl}",
        "\\toprule",
        f"Metric & Value & {_latex(level)} interval \\\\",
        "\\midrule",
        *(
            f"{_latex(line.label)} & {_latex(number(line.estimate.value))} & "
            f"{_latex(interval(line.estimate))} \\\\"
            for line in _lines(found)
            if line.method == METRICS_METHOD
        ),
        "\\bottomrule",
        "\\end{tabular}",
        f"% {_note(found)}",
    ]
    return "\n".join(lines) + "\n"


def _lines(found: Evaluation) -> Iterator[_Line]:
    for name in METRIC_NAMES:
        yield _Line(name, metric_text(name).label, found.metrics[name], METRICS_METHOD)
    for name, estimate in found.wilson.items():
        yield _Line(name, metric_text(name).label, estimate, "Wilson, images independent")
    yield _Line("auc", metric_text("auc").label, found.delong, "DeLong, clustered by patient")


def _note(found: Evaluation) -> str:
    matrix = found.confusion_matrix
    refused = f"{found.refused} further inputs without a score; " if found.refused else ""
    undefined = f"{ABSENT} is undefined; " if not found.scale.probability else ""
    return (
        f"{found.n} images of {found.patients} patients, {found.positives} with pneumonia; "
        f"{refused}threshold {found.threshold:.4g} ({found.rule}); tn {matrix.tn}, fp {matrix.fp}, "
        f"fn {matrix.fn}, tp {matrix.tp}; {undefined}intervals: {METRICS_METHOD}, "
        f"{found.interval.resamples} resamples."
    )


def _latex(text: str) -> str:
    return text.translate(_LATEX_SPECIAL)
