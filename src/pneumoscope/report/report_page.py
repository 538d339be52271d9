"""`report.html`: the report of a training run or an evaluation.

All numbers come from `ReportContent`; nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumoscope.records import Estimate
from pneumoscope.report import figure_sections, group_sections, text_sections
from pneumoscope.report.content import EvaluatedSplit, ReportContent
from pneumoscope.report.formatting import (
    ABSENT,
    in_words,
    interval,
    metric_text,
    number,
    percent,
    plural,
)
from pneumoscope.report.page import Section, render_page, write_page

_KEY_METRICS = ("auc", "sensitivity", "specificity", "balanced_accuracy")
_EVALUATED_ON: dict[EvaluatedSplit, str] = {
    "test": "of the test split",
    "val": "of the validation split",
    "train": "of the training split",
    "all": "of the whole data set",
}


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """A headline number at the top of a page: label, value, interval."""

    label: str
    value: str
    span: str


@dataclass(frozen=True, slots=True)
class ReportHead:
    """The texts at the top of the page."""

    title: str
    eyebrow: str
    summary: str
    banner: str
    keys: tuple[KeyNumber, ...]


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report to `path`, completely or not at all; equal contents give equal bytes.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then unchanged.
    """
    write_page(path, "report.html.j2", _head(content), sections_of(content))


def render_report(content: ReportContent) -> str:
    """The report as HTML text."""
    return render_page("report.html.j2", _head(content), sections_of(content))


def sections_of(content: ReportContent) -> tuple[Section, ...]:
    """The sections that have content, in order."""
    found = (
        text_sections.run(content),
        figure_sections.flow(content),
        figure_sections.learning(content),
        text_sections.metrics(content),
        figure_sections.decisions(content),
        figure_sections.ranking(content),
        figure_sections.probabilities(content),
        figure_sections.subgroups(content),
        group_sections.groups(content),
        text_sections.worst_errors(content),
        text_sections.refused(content),
        text_sections.limits(content),
        text_sections.reproduction(content),
    )
    return tuple(section for section in found if section is not None)


def _head(content: ReportContent) -> ReportHead:
    level = percent(content.evaluation.interval.level)
    keys = []
    for name in _KEY_METRICS:
        estimate = content.evaluation.metrics.get(name, Estimate(None))
        text = metric_text(name)
        span = interval(estimate)
        note = f"{level}: {span}" if span != ABSENT else "no interval"
        if estimate.value is None:
            note = text.undefined
        keys.append(KeyNumber(text.label, number(estimate.value), note))
    return ReportHead(
        title=content.title,
        eyebrow=" · ".join((content.model.name, content.data.name)),
        summary=summary(content),
        banner=(
            "The results apply to these images only. Do not use them, or the model, for decisions "
            "about patients."
        ),
        keys=tuple(keys),
    )


def summary(content: ReportContent) -> str:
    """The main results in two or three sentences."""
    found = content.evaluation
    level = found.interval.level
    matrix = found.confusion_matrix
    # Only a training run can state that images were held out from training.
    held_out = ", held out from training" if content.learning and content.split == "val" else ""
    where = _EVALUATED_ON[content.split] + held_out
    text = (
        f"On {plural(found.n, 'X-ray')} of {plural(found.patients, 'patient')} {where}, the model "
        f"detects pneumonia with a sensitivity of "
        f"{in_words(_metric(content, 'sensitivity'), level)} and a specificity of "
        f"{in_words(_metric(content, 'specificity'), level)} at the threshold "
        f"{number(found.threshold, 2)}. It raises {plural(matrix.fp, 'false alarm')} on "
        f"{plural(matrix.tn + matrix.fp, 'normal X-ray')} and misses {matrix.fn:,} of "
        f"{matrix.tp + matrix.fn:,} X-rays with pneumonia."
    )
    if found.refused:
        text += f" {plural(found.refused, 'further input')} gave no result."
    return text


def _metric(content: ReportContent, name: str) -> Estimate:
    return content.evaluation.metrics.get(name, Estimate(None))
