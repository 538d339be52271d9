"""`plan.html`: choosing an operating point, its performance, costs, net benefit and abstention.

The workflow fills in `PlanContent`. The page includes one script of the package, which works on
the numbers in the page; the page's Content Security Policy allows no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.plan import PlanRow
from pneumoscope.records import Estimate
from pneumoscope.report import plots
from pneumoscope.report.content import PlanContent
from pneumoscope.report.formatting import (
    ABSENT,
    count,
    interval,
    number,
    percent,
    plural,
    with_interval,
)
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    Head,
    Section,
    Table,
    TablesView,
    notes,
    render_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead

_SCRIPT = "plan.js"
_TEMPLATE = "plan.html.j2"
_STATIC_ROWS = 25
_MOST_STEPS = 400
"""Maximum number of steps of the page's threshold slider."""

_PLAN_COLUMNS = (
    Column("Threshold"),
    Column("Sensitivity", numeric=True),
    Column("Specificity", numeric=True),
    Column("PPV", numeric=True),
    Column("NPV", numeric=True),
    Column("Missed cases", numeric=True),
    Column("False alarms", numeric=True),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table that the controls update; `name` is the suffix of its cells' ids."""

    name: str
    label: str
    meaning: str
    value: str
    span: str


@dataclass(frozen=True, slots=True)
class ControlsView:
    """The controls, the rows that they update, and the numbers that they use."""

    intro: str
    noun: str
    level: str
    lines: tuple[Line, ...]
    data: Mapping[str, Any]


def render_plan_page(content: PlanContent) -> str:
    """The page as HTML; equal contents give equal bytes."""
    return render_page(_TEMPLATE, _head(content), _sections(content), script=_SCRIPT)


def _head(content: PlanContent) -> ReportHead:
    row = content.row
    what = f"the new threshold {number(row.threshold, 4)}" if content.chosen else "its threshold"
    text = (
        f"Estimated from {plural(content.images, 'X-ray')} of "
        f"{plural(content.patients, 'patient')}: at {what} and a prevalence of "
        f"{percent(content.prevalence, 1)}, the model misses {number(row.missed.value, 1)} cases "
        f"of pneumonia and raises {number(row.false_alarms.value, 1)} false alarms per 1,000 "
        "patients."
    )
    if content.confident:
        found = content.confident
        text += (
            f" Its {found.kind} is at least {number(found.limit)} with "
            f"{percent(found.confidence)} confidence."
        )
    level = percent(content.level)
    keys = [
        KeyNumber(label, number(estimate.value), f"{level}: {interval(estimate)}")
        for label, estimate in (
            ("Sensitivity", row.sensitivity),
            ("Specificity", row.specificity),
            ("PPV", row.ppv),
            ("NPV", row.npv),
        )
    ]
    return ReportHead(
        "Operating point",
        content.name,
        text,
        "The results apply to patients like these only. Do not use them, or the model, for "
        "decisions about patients.",
        tuple(keys),
    )


def _sections(content: PlanContent) -> tuple[Section, ...]:
    found = (
        notes(content.notes),
        _controls(content),
        _choice(content),
        _costs(content),
        _curve(content),
        _thresholds(content),
        _abstention(content),
        _recalibration(content),
        _reading(content),
    )
    return tuple(section for section in found if section is not None)


def _controls(content: PlanContent) -> Section:
    row = content.row
    lines = (
        _line(
            "sensitivity",
            "Sensitivity",
            "share of X-rays with pneumonia predicted pneumonia",
            row.sensitivity,
        ),
        _line(
            "specificity",
            "Specificity",
            "share of X-rays without pneumonia predicted normal",
            row.specificity,
        ),
        _line("ppv", "PPV", "share of pneumonia predictions that are correct", row.ppv),
        _line("npv", "NPV", "share of normal predictions that are correct", row.npv),
        _line(
            "missed",
            "Missed cases",
            "with pneumonia, predicted normal, per 1,000 patients",
            row.missed,
            1,
        ),
        _line(
            "alarms",
            "False alarms",
            "without pneumonia, predicted pneumonia, per 1,000 patients",
            row.false_alarms,
            1,
        ),
    )
    view = ControlsView(
        "Change the threshold and the prevalence with the mouse or the keyboard.",
        "score" if content.curve is None else "probability",
        percent(content.level),
        lines,
        page_data(content),
    )
    title = "Try a threshold"
    return Section("try", title, title, "sections/plan_controls.html.j2", view)


def _line(name: str, label: str, meaning: str, found: Estimate, digits: int = 3) -> Line:
    return Line(name, label, meaning, number(found.value, digits), interval(found, digits))


def page_data(content: PlanContent) -> dict[str, Any]:
    """The data of the page's script: at most `_MOST_STEPS` thresholds and the chosen one."""
    table = content.table
    size = table.thresholds.size
    steps = np.linspace(0, size - 1, min(size, _MOST_STEPS)).round().astype(np.int64)
    kept = np.union1d(steps, [content.at])

    def column(values: Any) -> list[list[float | None]]:
        return [
            [None if np.isnan(value) else round(float(value), 6) for value in row]
            for row in values[kept]
        ]

    return {
        "thresholds": [float(value) for value in table.thresholds[kept]],
        "sensitivity": column(table.sensitivity),
        "specificity": column(table.specificity),
        "even_ppv": column(table.even_ppv),
        "even_npv": column(table.even_npv),
        "prevalence": content.prevalence,
        "at": int(np.searchsorted(kept, content.at)),
    }


def _choice(content: PlanContent) -> Section:
    """The threshold in use, the chosen threshold, and the patients needed to verify it."""
    rows = [_plan_cells("in use", content.current)]
    if content.chosen:
        rows.append(_plan_cells("chosen", content.row))
    intro = (
        f"Rule of the new threshold: {content.chosen.rule}."
        if content.chosen
        else "No new threshold was requested."
    )
    if content.confident:
        found = content.confident
        intro += (
            f" The one-sided {percent(found.confidence)} lower limit of the {found.kind} is "
            f"{number(found.limit)}; the {found.kind} reaches {number(found.wanted)} in "
            f"{percent(found.chance, 1)} of the bootstrap resamples."
        )
    note = "Missed cases and false alarms are per 1,000 patients with one X-ray each."
    tables = [Table("Operating points", _PLAN_COLUMNS, tuple(rows), note)]
    if content.verify:
        tables.append(_verify_table(content))
    view = TablesView(intro, tuple(tables))
    title = "Operating point"
    return Section("point", title, title, "sections/tables.html.j2", view)


def _plan_cells(name: str, row: PlanRow) -> tuple[str | Head, ...]:
    at = number(row.threshold, 4)
    return (
        Head(at, name) if name else at,
        *(with_interval(e) for e in (row.sensitivity, row.specificity, row.ppv, row.npv)),
        number(row.missed.value, 1),
        number(row.false_alarms.value, 1),
    )


def _verify_table(content: PlanContent) -> Table:
    rows = []
    for kind, needed in content.verify.items():
        is_sensitivity = kind == "sensitivity"
        share = content.prevalence if is_sensitivity else 1.0 - content.prevalence
        enough = needed.patients is not None and needed.hits is not None
        rows.append(
            (
                f"{kind.capitalize()} above {number(needed.least)}",
                number(needed.expected),
                "pneumonia" if is_sensitivity else "normal",
                count(needed.patients) if needed.patients else "not achievable",
                count(needed.hits) if needed.hits else ABSENT,
                count(round(needed.patients / share)) if enough and needed.patients else ABSENT,
            )
        )
    any_of = next(iter(content.verify.values()))
    return Table(
        "Sample size for a local test",
        (
            Column("Hypothesis"),
            Column("Expected rate", numeric=True),
            Column("Class"),
            Column("Patients of the class", numeric=True),
            Column("Of these, correct at least", numeric=True),
            Column("Consecutive patients (about)", numeric=True),
        ),
        tuple(rows),
        f"Exact one-sided binomial test at {percent(any_of.confidence)} confidence with a power of "
        f"{percent(any_of.power)}, one X-ray per patient.",
    )


def _costs(content: PlanContent) -> Section | None:
    found = content.costs
    if found is None:
        return None
    table = content.table
    chosen = "chosen" if content.chosen else "in use"
    named: list[tuple[str | Head, str, str]] = [
        (Head(number(table.thresholds[k], 4), name), *_priced(found.at(k)))
        for name, k in (("lowest cost", found.cheapest), (chosen, content.at))
    ]
    if found.cheapest == content.at:
        named = named[1:]
    named += [
        ("Predict pneumonia for all", number(found.call_all, 1), ABSENT),
        ("Predict normal for all", number(found.call_none, 1), ABSENT),
    ]
    columns = (
        Column("Threshold"),
        Column("Cost per 1,000", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    span = (
        f" In {percent(content.level)} of the bootstrap resamples it lies between "
        f"{number(found.low, 4)} and {number(found.high, 4)}."
        if found.low is not None
        else ""
    )
    view = TablesView(
        f"Cost of a missed case: {found.missed:g}; of a false alarm: {found.false_alarm:g}. Costs "
        f"are per 1,000 patients at a prevalence of {percent(content.prevalence, 1)}. The "
        f"threshold with the lowest cost is {number(table.thresholds[found.cheapest], 4)}.{span} "
        "It was chosen on these images, so its cost on other images will be slightly higher.",
        (Table("Cost of errors", columns, tuple(named)),),
    )
    return Section("cost", "Cost of errors", "Cost", "sections/tables.html.j2", view)


def _priced(found: Estimate) -> tuple[str, str]:
    return number(found.value, 1), interval(found, 1)


def _curve(content: PlanContent) -> Section | None:
    if content.curve is None or content.risk is None:
        return None
    useful = content.curve.useful()
    span = f"{percent(content.level)} interval"
    conclusion = (
        f"At threshold probabilities from {number(useful[0], 2)} to {number(useful[1], 2)}, the "
        f"{span} of the model’s net benefit is above treating all and treating none."
        if useful
        else f"At no threshold probability is the {span} of the model’s net benefit above both "
        "treating all and treating none."
    )
    view = FiguresView(
        "Net benefit weighs detected cases against false alarms. The threshold probability sets "
        "the weights: someone who treats at a probability of 0.2 or more accepts four false alarms "
        "per detected case. " + conclusion,
        (
            Drawn("Decision curve", plots.decision(content.curve)),
            Drawn("Risk and coverage", plots.risk_coverage(content.risk, content.level)),
        ),
    )
    return Section("benefit", "Net benefit", "Benefit", "sections/figures.html.j2", view)


def _thresholds(content: PlanContent) -> Section:
    table = content.table
    size = table.thresholds.size
    # Equal steps of the sum of both rates; equal steps of rank would cluster where rates are flat.
    moved = 2.0 + table.specificity[:, 0] - table.sensitivity[:, 0]
    targets = np.linspace(moved.min(), moved.max(), _STATIC_ROWS)
    near = {int(np.abs(moved - target).argmin()) for target in targets} | {content.at}
    rows = []
    for k in sorted(near):
        name = "chosen" if k == content.at and content.chosen else ""
        name = name or ("in use" if k == content.at else "")
        rows.append(_plan_cells(name, table.row(k, content.prevalence)))
    view = TablesView(
        f"{plural(size, 'threshold')} with different predictions; plan.csv contains all. "
        "Predictive values, missed cases and false alarms are for a prevalence of "
        f"{percent(content.prevalence, 1)}. {percent(content.level)} intervals: "
        f"{BOOTSTRAP_METHOD}.",
        (Table("Thresholds", _PLAN_COLUMNS, tuple(rows)),),
    )
    return Section("thresholds", "Thresholds", "Thresholds", "sections/tables.html.j2", view)


def _abstention(content: PlanContent) -> Section | None:
    found = content.abstention
    if found is None:
        return None
    table = Table(
        "On the images it was chosen on",
        (Column("Quantity"), Column("Value", numeric=True), Column("95 % interval", numeric=True)),
        (
            (
                Head("Coverage", "share of images with a definite result"),
                number(found.coverage.value),
                interval(found.coverage),
            ),
            (
                Head("Risk", "error rate among these"),
                number(found.risk.value),
                interval(found.risk),
            ),
        ),
    )
    view = TablesView(
        f"The result is indeterminate for probabilities from {number(found.low, 4)} to "
        f"{number(found.high, 4)}. Rule: {found.rule}.",
        (table,),
    )
    return Section("uncertain", "Abstention", "Abstention", "sections/tables.html.j2", view, True)


def _recalibration(content: PlanContent) -> Section | None:
    document = content.recalibration
    if document is None:
        return None
    gain = Estimate(**document["log_loss_gain"])
    outcome = (
        "A new calibration was fitted to them."
        if document["changed"]
        else "A new calibration does not improve on the existing one, which is kept."
    )
    rows = tuple(
        (
            number(line["before"], 2),
            number(line["value"]),
            interval(Estimate(line["value"], line["low"], line["high"])),
        )
        for line in document["moved"]
    )
    columns = (
        Column("Old probability", numeric=True),
        Column("New probability", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    view = TablesView(
        f"Local sample: {plural(document['images'], 'labelled X-ray')} of "
        f"{plural(document['patients'], 'patient')}. {outcome} The cross-validated decrease of the "
        f"log-loss is {number(gain.value, 4)} ({interval(gain, 4)}); if the interval includes 0, "
        "the sample does not show an improvement.",
        (Table("Effect on probabilities", columns, rows),),
    )
    title = "Local recalibration"
    return Section("calibration", title, "Calibration", "sections/tables.html.j2", view, True)


def _reading(content: PlanContent) -> Section:
    rows = (
        ("Evaluation", content.name),
        ("X-rays", f"{count(content.images)}, {count(content.positives)} with pneumonia"),
        ("Patients", count(content.patients)),
        (
            "Prevalence",
            percent(content.prevalence, 1) + ("" if content.given else ", that of these images"),
        ),
        ("Command", content.command),
    )
    view = TablesView(
        "Sensitivity and specificity are estimated from these images. They apply to another "
        "population only if its patients with and without pneumonia are similar to these. "
        "Predictive values follow from Bayes’ rule.",
        (Table("Inputs and command", (Column("Item"), Column("Value")), rows),),
    )
    return Section("made", "Reproduction", "Reproduction", "sections/tables.html.j2", view, True)
