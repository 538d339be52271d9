"""The page of a plan: every operating point to try out, and what the chosen one promises.

Comes in: `PlanContent`. Goes out: `plan.html`, one file that opens from disk; its script is ours,
works on the page's own numbers and is all that the page's policy lets run.
Measures nothing but to lay out: every number is handed in.

What the page of a plan is made from: a frozen record that the workflow fills in.

Comes in: what was measured and chosen. Goes out: nothing; this is the input of `plan_page`. Knows
nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.evaluation.abstention import RiskCoverage, Uncertain
from pneumoscope.evaluation.decision import CostTable, DecisionCurve
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.plan import ConfidentThreshold, PlanRow, ThresholdTable
from pneumoscope.evaluation.sample_size import Verification
from pneumoscope.inference.bundle import OperatingPoint
from pneumoscope.records import Estimate
from pneumoscope.report import plots
from pneumoscope.report.formatting import ABSENT, count, interval, number, percent, plural
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    Head,
    Section,
    Table,
    TablesView,
    render_page,
    write_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead


@dataclass(frozen=True, slots=True)
class PlanContent:
    """Everything on the page.

    Attributes:
        name: of the evaluation.
        images: with an answer.
        patients: how many they are of.
        positives: PNEUMONIA images among them.
        prevalence: at which predictive values hold.
        given: whether the user gave it.
        table: every threshold.
        at: index of the chosen threshold in it, or of the one in use.
        current: the threshold in use.
        chosen: the new threshold, if one was asked for.
        confident: how sure it is that the wanted rate holds.
        verify: patients needed, by `sensitivity` and `specificity`.
        curve: net benefit; `None` where the score is no probability.
        risk: risk against coverage, likewise.
        abstention: where the answer is to be `uncertain`, if asked for.
        recalibration: as in `plan.json`.
        level: of the intervals.
        notes: what the reader must know first.
        command: that made the page.
        costs: what errors cost at each threshold, if asked for.
    """

    name: str
    images: int
    patients: int
    positives: int
    prevalence: float
    given: bool
    table: ThresholdTable
    at: int
    current: PlanRow
    chosen: OperatingPoint | None
    confident: ConfidentThreshold | None
    verify: Mapping[str, Verification]
    curve: DecisionCurve | None
    risk: RiskCoverage | None
    abstention: Uncertain | None
    recalibration: Mapping[str, Any] | None
    level: float
    notes: tuple[str, ...]
    command: str
    costs: CostTable | None = None

    @property
    def row(self) -> PlanRow:
        """The chosen threshold, or the one in use, at the prevalence."""
        return self.table.row(self.at, self.prevalence)


_SCRIPT = "plan.js"
_TEMPLATE = "plan.html.j2"
_STATIC_ROWS = 25
_MOST_STEPS = 400
"""Steps of the page's threshold control: what a reader can tell apart, and a page can carry."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table that the controls change; `name` is the end of its cells' ids."""

    name: str
    label: str
    meaning: str
    value: str
    span: str


@dataclass(frozen=True, slots=True)
class ControlsView:
    """The controls, the rows they change, and the numbers they take from."""

    intro: str
    level: str
    lines: tuple[Line, ...]
    data: Mapping[str, Any]


def write_plan_page(path: Path, content: PlanContent) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, _TEMPLATE, _head(content), _sections(content), script=_SCRIPT)


def render_plan_page(content: PlanContent) -> str:
    """The page as HTML text."""
    return render_page(_TEMPLATE, _head(content), _sections(content), script=_SCRIPT)


def _head(content: PlanContent) -> ReportHead:
    row = content.row
    what = f"the new threshold {number(row.threshold, 4)}" if content.chosen else "its threshold"
    text = (
        f"On {plural(content.images, 'X-ray')} of {plural(content.patients, 'patient')}, at {what} "
        f"and a prevalence of {percent(content.prevalence, 1)}, the model misses "
        f"{number(row.missed.value, 1)} and raises {number(row.false_alarms.value, 1)} false "
        "alarms among 1,000 patients."
    )
    if content.confident:
        sure = content.confident
        text += (
            f" Its {sure.kind} is at least {number(sure.limit)} with {percent(sure.confidence)} "
            "confidence."
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
        "The numbers hold for patients like these. Don’t use them, or the model, for a decision "
        "about a patient.",
        tuple(keys),
    )


def _sections(content: PlanContent) -> tuple[Section, ...]:
    found = (
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
        _line("sensitivity", "Sensitivity", "share of the ill that are called", row.sensitivity),
        _line("specificity", "Specificity", "share of the well that are not", row.specificity),
        _line("ppv", "PPV", "share of calls that are right", row.ppv),
        _line("npv", "NPV", "share of all-clears that are right", row.npv),
        _line("missed", "Missed", "ill and not called, per 1,000 patients", row.missed, 1),
        _line("alarms", "False alarms", "well and called, per 1,000", row.false_alarms, 1),
    )
    view = ControlsView(
        "Move the threshold and the prevalence, by mouse or keyboard.",
        percent(content.level),
        lines,
        page_data(content),
    )
    return Section("try", "Try it", "Try it", "sections/plan_controls.html.j2", view)


def _line(name: str, label: str, meaning: str, found: Estimate, digits: int = 3) -> Line:
    return Line(name, label, meaning, number(found.value, digits), interval(found, digits))


def page_data(content: PlanContent) -> dict[str, Any]:
    """What the script works on: at most `_MOST_STEPS` thresholds, the chosen one among them."""
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
    """The threshold in use beside the chosen one, and what it takes to verify it."""
    rows = [_plan_cells("in use", content.current)]
    if content.chosen:
        rows.append(_plan_cells("chosen", content.row))
    intro = f"Chosen: {content.chosen.rule}." if content.chosen else "No other was asked for."
    if content.confident:
        sure = content.confident
        intro += (
            f" The one-sided {percent(sure.confidence)} limit of the {sure.kind} is "
            f"{number(sure.limit)}; in {percent(sure.chance, 1)} of resamples of patients it "
            f"reaches {number(sure.wanted)}."
        )
    note = "Missed cases and (false) alarms are among 1,000 patients."
    tables = [Table("Operating points", _PLAN_COLUMNS, tuple(rows), note)]
    if content.verify:
        tables.append(_verify_table(content))
    view = TablesView(" ".join([*content.notes, intro]), tuple(tables))
    return Section("point", "The operating point", "Point", "sections/tables.html.j2", view)


_PLAN_COLUMNS = (
    Column("Threshold"),
    Column("Sensitivity", numeric=True),
    Column("Specificity", numeric=True),
    Column("PPV", numeric=True),
    Column("NPV", numeric=True),
    Column("Missed", numeric=True),
    Column("Alarms", numeric=True),
)


def _plan_cells(name: str, row: PlanRow) -> tuple[str | Head, ...]:
    at = number(row.threshold, 4)
    return (
        Head(at, name) if name else at,
        *(_both(e) for e in (row.sensitivity, row.specificity, row.ppv, row.npv)),
        number(row.missed.value, 1),
        number(row.false_alarms.value, 1),
    )


def _both(found: Estimate) -> str:
    span = interval(found)
    return number(found.value) + (f" ({span})" if span != ABSENT else "")


def _verify_table(content: PlanContent) -> Table:
    rows = []
    for kind, needed in content.verify.items():
        ill = kind == "sensitivity"
        frequent = content.prevalence if ill else 1.0 - content.prevalence
        enough = needed.patients is not None and needed.hits is not None
        rows.append(
            (
                f"{kind.capitalize()} above {number(needed.least)}",
                number(needed.expected),
                "pneumonia" if ill else "normal",
                count(needed.patients) if needed.patients else "no number would do",
                count(needed.hits) if needed.hits else ABSENT,
                count(round(needed.patients / frequent)) if enough and needed.patients else ABSENT,
            )
        )
    any_of = next(iter(content.verify.values()))
    return Table(
        "Patients needed to verify it on site",
        (
            Column("To show"),
            Column("If it is", numeric=True),
            Column("Patients with"),
            Column("How many", numeric=True),
            Column("Of whom right", numeric=True),
            Column("About as many in a row", numeric=True),
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
        for name, k in (("cheapest", found.cheapest), (chosen, content.at))
    ]
    if found.cheapest == content.at:
        named = named[1:]
    named += [
        ("Call every image", number(found.call_all, 1), ABSENT),
        ("Call none", number(found.call_none, 1), ABSENT),
    ]
    columns = (
        Column("Threshold"),
        Column("Cost per 1,000", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    span = (
        f" In {percent(content.level)} of resamples of patients it lies from "
        f"{number(found.low, 4)} to {number(found.high, 4)}."
        if found.low is not None
        else ""
    )
    view = TablesView(
        f"A missed case costs {found.missed:g}, a false alarm {found.false_alarm:g}, among 1,000 "
        f"patients at a prevalence of {percent(content.prevalence, 1)}. Errors cost least at the "
        f"threshold {number(table.thresholds[found.cheapest], 4)}.{span} It was found on these "
        "images: on others it will do a little worse than here.",
        (Table("Cost of errors", columns, tuple(named)),),
    )
    return Section("cost", "What errors cost", "Cost", "sections/tables.html.j2", view)


def _priced(found: Estimate) -> tuple[str, str]:
    return number(found.value, 1), interval(found, 1)


def _curve(content: PlanContent) -> Section | None:
    if content.curve is None or content.risk is None:
        return None
    useful = content.curve.useful()
    said = (
        f"The model is surely better than both from {number(useful[0], 2)} to "
        f"{number(useful[1], 2)}."
        if useful
        else "Nowhere is the model surely better than both."
    )
    view = FiguresView(
        "Net benefit weighs what is found against false alarms, as the one who decides does: who "
        "acts from a probability of 0.2 up would bear four false alarms for one case found. "
        + said,
        (
            Drawn("Decision curve", plots.decision(content.curve)),
            Drawn("Risk and coverage", plots.risk_coverage(content.risk, content.level)),
        ),
    )
    return Section("benefit", "Net benefit", "Benefit", "sections/figures.html.j2", view)


def _thresholds(content: PlanContent) -> Section:
    table = content.table
    size = table.thresholds.size
    # Even steps of the ranking crowd where nothing changes; even steps of both rates don't.
    moved = 2.0 + table.specificity[:, 0] - table.sensitivity[:, 0]
    targets = np.linspace(moved.min(), moved.max(), _STATIC_ROWS)
    near = {int(np.abs(moved - target).argmin()) for target in targets} | {content.at}
    rows = []
    for k in sorted(near):
        name = "chosen" if k == content.at and content.chosen else ""
        name = name or ("in use" if k == content.at else "")
        rows.append(_plan_cells(name, table.row(k, content.prevalence)))
    view = TablesView(
        f"{plural(size, 'threshold')} give different answers; plan.csv has them all. Predictive "
        f"values, misses and false alarms hold at a prevalence of {percent(content.prevalence, 1)}"
        f"; intervals are at {percent(content.level)}, {BOOTSTRAP_METHOD}.",
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
            ("Share answered", number(found.coverage.value), interval(found.coverage)),
            ("Share of these wrong", number(found.risk.value), interval(found.risk)),
        ),
    )
    view = TablesView(
        f"The answer is ‘uncertain’ from {number(found.low, 4)} to {number(found.high, 4)}: "
        f"{found.rule}.",
        (table,),
    )
    return Section("uncertain", "No answer", "No answer", "sections/tables.html.j2", view, True)


def _recalibration(content: PlanContent) -> Section | None:
    told = content.recalibration
    if told is None:
        return None
    gain = Estimate(**told["log_loss_gain"])
    word = (
        "a new calibration was fitted to them"
        if told["changed"]
        else "they show no need of another calibration, and it was kept"
    )
    rows = tuple(
        (
            number(line["before"], 2),
            number(line["value"]),
            interval(Estimate(line["value"], line["low"], line["high"])),
        )
        for line in told["moved"]
    )
    columns = (
        Column("Probability before", numeric=True),
        Column("Now", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    view = TablesView(
        f"{plural(told['images'], 'labelled X-ray')} of the site, of "
        f"{plural(told['patients'], 'patient')}: {word}. Cross-validation puts the gain in "
        f"log-loss at {number(gain.value, 4)} ({interval(gain, 4)}); an interval that holds 0 says "
        "that the sample can’t tell.",
        (Table("What it does to a probability", columns, rows),),
    )
    title = "Calibration of the site"
    return Section("calibration", title, "Calibration", "sections/tables.html.j2", view, True)


def _reading(content: PlanContent) -> Section:
    rows = (
        ("Evaluation", content.name),
        ("X-rays", f"{count(content.images)}, {count(content.positives)} with pneumonia"),
        ("Patients", count(content.patients)),
        ("Prevalence", percent(content.prevalence, 1) + ("" if content.given else ", as here")),
        ("Made by", content.command),
    )
    view = TablesView(
        "Sensitivity and specificity are taken from these images; they hold elsewhere only if "
        "the ill and the well look alike there. Predictive values follow by Bayes’ rule.",
        (Table("How it was made", (Column("What"), Column("Which")), rows),),
    )
    return Section("made", "How it was made", "Made", "sections/tables.html.j2", view, True)
