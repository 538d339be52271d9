"""Format numbers, intervals, durations and metric names for every page; metrics as tables.

Nothing here is escaped for HTML; the templates escape. `as_csv`, `as_markdown` and `as_latex` give
the metrics of an evaluation as files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.intervals import METRICS_METHOD
from pneumoscope.evaluation.ranked_metrics import FEWEST_FOR_ECE, METRIC_NAMES
from pneumoscope.records import Estimate
from pneumoscope.storage import csv_text

ABSENT = "–"
"""Shown where a value is undefined or was not measured."""

_BYTES_STEP = 1000
_MOST_DIGITS = 8

CSV_COLUMNS = ("metric", "value", "low", "high", "level", "method", "images", "patients")
_LATEX_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--", "−": "$-$", "\u202f": "\\,", "\u00a0": "~"}
)


@dataclass(frozen=True, slots=True)
class MetricText:
    """Label and one-sentence definition of a metric, and why it can be undefined."""

    label: str
    meaning: str
    lower_is_better: bool = False
    undefined: str = "not defined on these data"


METRICS: Mapping[str, MetricText] = {
    "auc": MetricText(
        "AUC",
        "probability that a random X-ray with pneumonia scores higher than a random normal one",
        undefined="needs both classes",
    ),
    "sensitivity": MetricText(
        "Sensitivity",
        "share of X-rays with pneumonia that were predicted pneumonia",
        undefined="needs an X-ray with pneumonia",
    ),
    "specificity": MetricText(
        "Specificity",
        "share of normal X-rays that were predicted normal",
        undefined="needs a normal X-ray",
    ),
    "balanced_accuracy": MetricText(
        "Balanced accuracy",
        "mean of sensitivity and specificity",
        undefined="needs both classes",
    ),
    "accuracy": MetricText(
        "Accuracy", "share of correct predictions at this prevalence", undefined="needs an X-ray"
    ),
    "ppv": MetricText(
        "Positive predictive value",
        "share of pneumonia predictions that are correct at this prevalence",
        undefined="nothing was predicted pneumonia",
    ),
    "npv": MetricText(
        "Negative predictive value",
        "share of normal predictions that are correct at this prevalence",
        undefined="nothing was predicted normal",
    ),
    "f1": MetricText(
        "F1",
        "harmonic mean of sensitivity and positive predictive value",
        undefined="pneumonia was neither present nor predicted",
    ),
    "average_precision": MetricText(
        "Average precision",
        "area under the precision–recall curve",
        undefined="needs an X-ray with pneumonia",
    ),
    "brier": MetricText(
        "Brier score",
        "mean squared difference between probability and label",
        lower_is_better=True,
        undefined="needs an X-ray",
    ),
    "ece": MetricText(
        "Calibration error",
        "expected calibration error (ECE): mean gap between predicted probability and observed "
        "frequency",
        lower_is_better=True,
        undefined=f"needs {FEWEST_FOR_ECE} X-rays: fewer make one bin, in which it is near 0 "
        "for any model",
    ),
}
"""The metrics of `metrics.json`, in the order in which pages show them."""


def metric_text(name: str) -> MetricText:
    """Label and definition of a metric; an unknown metric is labelled by its name."""
    return METRICS.get(name, MetricText(name.replace("_", " ").capitalize(), ""))


def number(value: float | None, digits: int = 3) -> str:
    """`0.964`, or a dash if the value is absent."""
    if value is None:
        return ABSENT
    shown = f"{value:.{digits}f}"
    return shown.replace("-", "−" if float(shown) else "")


def unrounded(value: float, digits: int = 3) -> str:
    """As `number`, with as many further digits as a value near 0 or 1 needs not to look like it."""
    while digits < _MOST_DIGITS and value not in (0, 1) and round(value, digits) in (0, 1):
        digits += 1
    return number(value, digits)


def interval(estimate: Estimate, digits: int = 3) -> str:
    """`0.944–0.978`, `−0.5 to 0.25`, or a dash if a limit is absent."""
    if estimate.low is None or estimate.high is None:
        return ABSENT
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def with_interval(estimate: Estimate) -> str:
    """`0.96 (0.94–0.98)`; without an interval, the number alone."""
    span = interval(estimate)
    return number(estimate.value) + (f" ({span})" if span != ABSENT else "")


def in_words(estimate: Estimate, level: float, digits: int = 2) -> str:
    """`0.96 (95 % interval 0.94–0.98)`; without an interval, the number alone."""
    span = interval(estimate, digits)
    if estimate.value is None or span == ABSENT:
        return number(estimate.value, digits)
    return f"{number(estimate.value, digits)} ({percent(level)} interval {span})"


def percent(share: float | None, digits: int = 0) -> str:
    """`95 %` with a no-break space, or a dash if the value is absent."""
    return ABSENT if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def count(value: int) -> str:
    """`5,216`."""
    return f"{value:,}"


def plural(value: int, singular: str, plural_form: str = "") -> str:
    """`1 patient`, `548 patients`."""
    return f"{count(value)} {singular if value == 1 else plural_form or singular + 's'}"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 5 s` or `1 h 12 min`."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def file_size(size: int) -> str:
    """`812 bytes`, `14.2 kB`, `3.0 MB`; a kB is 1,000 bytes."""
    if size < _BYTES_STEP:
        return plural(size, "byte")
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= _BYTES_STEP
        if value < _BYTES_STEP:
            return f"{value:.1f} {unit}"
    return f"{value / _BYTES_STEP:.1f} TB"


def setting(value: object) -> str:
    """A configuration value in the reader's notation: `yes`, `0.001`, `imagenet`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return count(value)
    return str(value) or ABSENT


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    label: str
    estimate: Estimate
    method: str


def as_csv(found: Evaluation) -> str:
    """A CSV row per metric and interval method, at full precision."""
    rows = (
        (
            line.name,
            *(line.estimate.value, line.estimate.low, line.estimate.high),
            found.interval.level,
            line.method,
            found.n,
            found.patients,
        )
        for line in _lines(found)
    )
    return csv_text(CSV_COLUMNS, rows)


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
