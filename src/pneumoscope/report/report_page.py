"""The report of a training or an evaluation: which sections, in which order.

Comes in: `ReportContent`. Goes out: `report.html`, one file that opens from disk.
Loads no model and measures nothing: every number is handed in.
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
    """One of the large numbers at the top: label, value, interval."""

    label: str
    value: str
    span: str


@dataclass(frozen=True, slots=True)
class ReportHead:
    """The top of the page, in words."""

    title: str
    eyebrow: str
    summary: str
    banner: str
    keys: tuple[KeyNumber, ...]


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report to `path`, whole or not at all; the same content gives the same bytes.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, "report.html.j2", _head(content), sections_of(content))


def render_report(content: ReportContent) -> str:
    """The report as HTML text."""
    return render_page("report.html.j2", _head(content), sections_of(content))


def sections_of(content: ReportContent) -> tuple[Section, ...]:
    """The sections that have something to show, in the page's order."""
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
            "The numbers hold for these images. Don’t use them, or the model, for a decision "
            "about a patient."
        ),
        keys=tuple(keys),
    )


def summary(content: ReportContent) -> str:
    """What came out, in two or three plain sentences."""
    found = content.evaluation
    level = found.interval.level
    matrix = found.confusion_matrix
    # Only a training knows what it held out; of other data the page must not claim it.
    held_out = ", held out from training" if content.learning and content.split == "val" else ""
    where = _EVALUATED_ON[content.split] + held_out
    text = (
        f"On {plural(found.n, 'X-ray')} of {plural(found.patients, 'patient')} {where}, the model "
        f"finds pneumonia with a sensitivity of {in_words(_metric(content, 'sensitivity'), level)} "
        f"and a specificity of {in_words(_metric(content, 'specificity'), level)} at the threshold "
        f"{number(found.threshold, 2)}. It raises {plural(matrix.fp, 'false alarm')} on "
        f"{plural(matrix.tn + matrix.fp, 'normal X-ray')} and misses {matrix.fn:,} of "
        f"{matrix.tp + matrix.fn:,} with pneumonia."
    )
    if found.refused:
        text += f" {plural(found.refused, 'further input')} got no answer."
    return text


def _metric(content: ReportContent, name: str) -> Estimate:
    return content.evaluation.metrics.get(name, Estimate(None))
