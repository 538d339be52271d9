"""The section that compares groups of patients."""

from __future__ import annotations

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.groups import FEWEST, RATES, Group, GroupColumn
from pneumoscope.records import Estimate
from pneumoscope.report import plots
from pneumoscope.report.content import ReportContent
from pneumoscope.report.formatting import (
    ABSENT,
    count,
    interval,
    metric_text,
    number,
    percent,
    plural,
)
from pneumoscope.report.page import Column, Drawn, FiguresView, Head, Section, Table
from pneumoscope.report.svg import NORMAL, PNEUMONIA, Svg

_FIGURES = {"sensitivity": PNEUMONIA, "specificity": NORMAL}


def groups(content: ReportContent) -> Section | None:
    """Rates and differences for the groups of every column, with a warning for small groups."""
    columns = content.evaluation.groups
    if not columns:
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
