"""`report.html`: the report of a training run or an evaluation, and its section on groups.

All numbers come from `ReportContent`; nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.groups import FEWEST, RATES, Group, GroupColumn
from pneumoscope.records import Estimate
from pneumoscope.report import figure_sections, plots, text_sections
from pneumoscope.report.content import EvaluatedSplit, ReportContent
from pneumoscope.report.formatting import (
    ABSENT,
    count,
    in_words,
    interval,
    metric_text,
    number,
    percent,
    plural,
    unrounded,
)
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    Head,
    Section,
    Table,
    render_page,
)
from pneumoscope.report.svg import NORMAL, PNEUMONIA, Svg

_FIGURES = {"sensitivity": PNEUMONIA, "specificity": NORMAL}

_KEY_METRICS = ("auc", "sensitivity", "specificity", "balanced_accuracy")
_EVALUATED_ON: dict[EvaluatedSplit, str] = {
    "test": "of the test split",
    "val": "of the validation split",
    "train": "of the training split",
    "all": "of the whole data set",
}


def groups(content: ReportContent) -> Section | None:
    """Rates and differences for the groups of every column, with a warning for small groups."""
    columns = content.evaluation.groups
    if not any(column.groups for column in columns):
        return None
    level = content.evaluation.interval.level
    unused = [column for column in columns if not column.groups]
    columns = tuple(column for column in columns if column.groups)
    left_out = " ".join(f"{column.name}: {column.note}." for column in unused)
    few = sum(bool(group.too_few) for column in columns for group in column.groups)
    warning = (
        f" {plural(few, 'group')} with fewer than {FEWEST} patients of a class "
        f"{'is' if few == 1 else 'are'} too small for a conclusion."
        if few
        else ""
    )
    view = FiguresView(
        "Whether the model performs worse in one group than in another. A difference is the "
        "group’s value minus that of all other images; if its interval includes 0, chance can "
        "explain it. The intervals are not corrected for multiple comparisons."
        f"{warning} {left_out}".rstrip(),
        tuple(Drawn("", figure) for figure in group_figures(content.evaluation)),
        tables=tuple(table for column in columns for table in _tables(column, level)),
    )
    title = "Groups of patients"
    return Section("groups", title, "Groups", "sections/figures.html.j2", view, flows=True)


def group_figures(found: Evaluation) -> tuple[Svg, ...]:
    """Draw sensitivity and specificity per group, one figure per column and rate."""
    drawn = []
    for place, column in enumerate(found.groups):
        for rate, colour in _FIGURES.items():
            rows = [
                plots.Group(group.name, _of(group, rate), _images(group, rate), colour)
                for group in column.groups
                if _of(group, rate).value is not None
            ]
            if rows:
                name = f"group-{place}-{rate}"
                label = f"{metric_text(rate).label} by {column.name}"
                drawn.append(plots.group_rates(rows, label, found.interval.level, name))
    return tuple(drawn)


def _tables(column: GroupColumn, level: float) -> tuple[Table, Table]:
    span = f"{percent(level)} interval"
    without = (
        f"{plural(column.without, 'X-ray')} {'has' if column.without == 1 else 'have'} no value. "
        if column.without
        else ""
    )
    note = (without + column.note.capitalize()).strip()
    rates = Table(
        f"By {column.name}",
        (
            Column("Group"),
            Column("X-rays", numeric=True),
            Column("Patients", numeric=True),
            *(Column(f"{metric_text(rate).label} ({span})", numeric=True) for rate in RATES),
        ),
        tuple(
            (
                Head(group.name, _few(group)) if group.too_few else group.name,
                count(group.images),
                count(group.patients),
                *(_cell(_of(group, rate)) for rate in RATES),
            )
            for group in column.groups
        ),
        note,
    )
    gaps = Table(
        f"Differences by {column.name}",
        (
            Column("Group minus all others"),
            *(Column(f"{metric_text(rate).label} ({span})", numeric=True) for rate in RATES),
        ),
        tuple(
            (group.name, *(_cell(group.gaps[rate], signed=True) for rate in RATES))
            for group in column.groups
        ),
    )
    return rates, gaps


def _few(group: Group) -> str:
    return "too few patients: " + ", ".join(metric_text(rate).label for rate in group.too_few)


def _of(group: Group, rate: str) -> Estimate:
    found: Estimate = getattr(group, rate)
    return found


def _images(group: Group, rate: str) -> int:
    return group.positives if rate == "sensitivity" else group.images - group.positives


def _cell(found: Estimate, *, signed: bool = False) -> str:
    if found.value is None:
        return ABSENT
    text = ("+" if signed and found.value > 0 else "") + number(found.value)
    span = interval(found)
    return text if span == ABSENT else f"{text} ({span})"


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
        groups(content),
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
        f"{in_words(_metric(content, 'sensitivity'), level, 3)} and a specificity of "
        f"{in_words(_metric(content, 'specificity'), level, 3)} at the threshold "
        f"{unrounded(found.threshold)}. It raises {plural(matrix.fp, 'false alarm')} on "
        f"{plural(matrix.tn + matrix.fp, 'normal X-ray')} and misses {matrix.fn:,} of "
        f"{matrix.tp + matrix.fn:,} X-rays with pneumonia."
    )
    if found.refused:
        text += f" {plural(found.refused, 'further input')} gave no result."
    return text


def _metric(content: ReportContent, name: str) -> Estimate:
    return content.evaluation.metrics.get(name, Estimate(None))
