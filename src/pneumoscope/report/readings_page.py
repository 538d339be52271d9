"""The page of a pilot: what came, what was refused, and how the system did against the readers.

The figures of a pilot week by week: what came, how scores lay, how well it did so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.evaluation.kappa import Agreement
from pneumoscope.evaluation.weekly import Week
from pneumoscope.records import Estimate
from pneumoscope.report import readings_page
from pneumoscope.report.formatting import ABSENT, count, in_words, interval, number, percent, plural
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
from pneumoscope.report.readings_content import ReadingsContent
from pneumoscope.report.report_page import KeyNumber, ReportHead
from pneumoscope.report.svg import (
    INK,
    MUTED,
    NORMAL,
    PNEUMONIA,
    Svg,
    draw_text,
    drawing,
    grid,
    name_axes,
    new_axes,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_readings_page(path: Path, content: ReadingsContent) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, "report.html.j2", _head(content), _sections(content))


def render_readings_page(content: ReadingsContent) -> str:
    """The page as HTML text."""
    return render_page("report.html.j2", _head(content), _sections(content))


def _head(content: ReadingsContent) -> ReportHead:
    missing, level = content.missing, percent(content.level)
    text = (
        f"{plural(missing.matched, 'case')} of {count(missing.cases)} have both a score and a "
        f"reading, in {plural(len(content.weeks), 'week')}."
    )
    keys = []
    if content.evaluation and content.agreement:
        found = content.evaluation
        matrix = found.confusion_matrix
        text += (
            f" The system missed {count(matrix.fn)} of {count(matrix.fn + matrix.tp)} with "
            f"pneumonia and raised {plural(matrix.fp, 'false alarm')} on "
            f"{plural(matrix.fp + matrix.tn, 'normal case')}."
        )
        for label, estimate in (
            ("Sensitivity", found.metrics["sensitivity"]),
            ("Specificity", found.metrics["specificity"]),
            ("AUC", found.metrics["auc"]),
            ("Cohen’s kappa", content.agreement.kappa),
        ):
            keys.append(KeyNumber(label, number(estimate.value), f"{level}: {interval(estimate)}"))
    return ReportHead(
        "Pilot, week by week",
        f"{content.scores} · {content.readings}",
        text,
        "The numbers hold for these patients. Don’t use them, or the system, for a decision about "
        "a patient. Tables beside this page name patients.",
        tuple(keys),
    )


def _sections(content: ReadingsContent) -> tuple[Section, ...]:
    found = (
        _joined(content),
        _weeks(content),
        _agreement(content),
        _thresholds(content),
        _needed(content),
        _made(content),
    )
    return tuple(section for section in found if section is not None)


def _joined(content: ReadingsContent) -> Section:
    missing = content.missing
    rows = (
        ("Rows of scores", count(missing.scores), ""),
        ("Cases that they make", count(missing.cases), f"joined by {content.by}"),
        (
            "Cases of several images",
            count(missing.images_of_several),
            "the image with the highest score stands for the case",
        ),
        ("Rows that name no case", count(missing.keyless), "left out"),
        ("Without a reading", count(missing.unread), "left out of every rate; unread.csv"),
        (
            "Readers divided or undecided",
            count(missing.divided),
            "left out of every rate; divided.csv",
        ),
        ("Read, but without a score row", count(missing.unscored), "unscored.csv"),
        ("Read, but refused", count(missing.refused), "no score; counted week by week"),
        ("With score and reading", count(missing.matched), "joined.csv"),
    )
    table = Table(
        "What could be joined",
        (Column("What"), Column("How many", numeric=True), Column("What became of them")),
        rows,
    )
    return Section(
        "joined", "Who is in", "Who is in", "sections/tables.html.j2", TablesView("", (table,))
    )


def _weeks(content: ReadingsContent) -> Section | None:
    weeks = content.weeks
    if not weeks:
        return None
    threshold = next((row.row.threshold for row in content.thresholds if row.in_use), None)
    drawn = (
        Drawn("", readings_page.volume(weeks)),
        Drawn("", readings_page.score_quartiles(weeks, threshold)),
        Drawn("", readings_page.rates_so_far(weeks, content.level)),
    )
    level = percent(content.level)
    columns = (
        Column("Week of"),
        Column("Cases", numeric=True),
        Column("No score", numeric=True),
        Column("Read", numeric=True),
        Column("Called", numeric=True),
        Column("Score, median (quartiles)", numeric=True),
        Column("Drift", numeric=True),
    )
    note = (
        "Drift: the largest distance between the distribution of the week’s scores and of all "
        "before (Kolmogorov–Smirnov), with its p; of 20 weeks one falls below 0.05 by chance."
    )
    rates = (
        Column("Up to the week of"),
        Column("Sensitivity so far", numeric=True),
        Column("Specificity so far", numeric=True),
    )
    clustered = f"Intervals at {level}, clustered by patient. weeks.csv has all at full precision."
    tables = [
        Table("What came", columns, tuple(map(_week_row, weeks)), note),
        Table("How well so far", rates, tuple(map(_rates_row, weeks)), clustered),
    ]
    codes = _codes(weeks)
    if codes.rows:
        tables.append(codes)
    undated = (
        f" {plural(content.undated, 'case')} without a date stand in no week."
        if content.undated
        else ""
    )
    view = FiguresView(f"Cases by the date of the study.{undated}", drawn, tables=tuple(tables))
    return Section("weeks", "Week by week", "Weeks", "sections/figures.html.j2", view)


def _week_row(week: Week) -> tuple[str, ...]:
    low, middle, high = week.quartiles or (None, None, None)
    scores = f"{number(middle)} ({number(low)}–{number(high)})" if week.quartiles else ABSENT
    drift = ABSENT
    if week.drift is not None and week.drift_p is not None:
        p = "p below 0.001" if week.drift_p < 0.001 else f"p {number(week.drift_p)}"
        drift = f"{number(week.drift, 2)}, {p}"
    return (
        f"{week.monday:%Y-%m-%d}",
        count(week.cases),
        count(sum(week.refused.values())),
        count(week.read),
        percent(week.called.value, 1) if week.called.value is not None else ABSENT,
        scores,
        drift,
    )


def _rates_row(week: Week) -> tuple[str, ...]:
    return (
        f"{week.monday:%Y-%m-%d}",
        _both(week.sensitivity, week.positives),
        _both(week.specificity, week.negatives),
    )


def _both(found: Estimate, cases: int) -> str:
    if found.value is None:
        return ABSENT
    return f"{number(found.value)} ({interval(found)}), n {count(cases)}"


def _codes(weeks: tuple[Week, ...]) -> Table:
    """Refusals by code and week, the most frequent code first."""
    totals: dict[str, int] = {}
    for week in weeks:
        for code, cases in week.refused.items():
            totals[code] = totals.get(code, 0) + cases
    codes = sorted(totals, key=lambda code: (-totals[code], code))
    rows = tuple(
        (
            f"{week.monday:%Y-%m-%d}",
            *(count(week.refused.get(code, 0)) for code in codes),
        )
        for week in weeks
        if week.refused
    )
    columns = (
        Column("Week of"),
        *(Column(code.replace("_", " "), numeric=True) for code in codes),
    )
    total = ("All", *(count(totals[code]) for code in codes)) if codes else ()
    return Table("Cases without a score, by reason", columns, rows, total=total)


def _agreement(content: ReadingsContent) -> Section | None:
    pairs = {"system and readers": content.agreement} if content.agreement else {}
    pairs |= dict(content.readers)
    if not pairs:
        return None
    columns = (
        Column("Who"),
        Column("Cases", numeric=True),
        Column("Both yes", numeric=True),
        Column("First only", numeric=True),
        Column("Second only", numeric=True),
        Column("Neither", numeric=True),
        Column("Agreement", numeric=True),
        Column("By chance", numeric=True),
        Column("Kappa", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    rows = tuple(_agreement_row(name, found) for name, found in pairs.items())
    note = (
        "Cohen’s kappa is the agreement beyond chance as a share of what is possible. It depends "
        "on how frequent pneumonia is. The interval allows for several cases of a patient."
    )
    table = Table("Agreement", columns, rows, note)
    view = TablesView("How far the answers agree, yes being pneumonia.", (table,))
    return Section("agreement", "Agreement", "Agreement", "sections/tables.html.j2", view)


def _agreement_row(name: str, found: Agreement) -> tuple[str, ...]:
    return (
        name,
        count(found.images),
        *(count(cell) for cell in found.counts),
        percent(found.observed, 1),
        percent(found.expected, 1),
        number(found.kappa.value),
        interval(found.kappa),
    )


def _thresholds(content: ReadingsContent) -> Section | None:
    if not content.thresholds:
        return None
    columns = (
        Column("Threshold"),
        Column("Called", numeric=True),
        Column("Sensitivity", numeric=True),
        Column("Specificity", numeric=True),
        Column("PPV", numeric=True),
        Column("NPV", numeric=True),
    )
    rows: tuple[tuple[str | Head, ...], ...] = tuple(
        (
            Head(number(line.row.threshold, 4), "in use" if line.in_use else ""),
            f"{count(line.called)} of {count(line.scored)}",
            *(
                f"{number(rate.value)} ({interval(rate)})" if rate.value is not None else ABSENT
                for rate in (
                    line.row.sensitivity,
                    line.row.specificity,
                    line.row.ppv,
                    line.row.npv,
                )
            ),
        )
        for line in content.thresholds
    )
    table = Table(
        "Other thresholds",
        columns,
        rows,
        "Called: of all cases with a score, read or not. Predictive values at the share of "
        "pneumonia among the cases read. Whoever chooses one here must test it on later cases.",
    )
    view = TablesView(
        "What another threshold would have done with the cases so far. For every threshold and "
        "another prevalence: pneumoscope plan on the folder evaluation/.",
        (table,),
    )
    title = "What a new threshold would do"
    return Section("thresholds", title, "Thresholds", "sections/tables.html.j2", view)


def _needed(content: ReadingsContent) -> Section | None:
    if not content.needed:
        return None
    rows: list[tuple[str, ...]] = []
    for kind, found in content.needed.items():
        needed, left = found.needed, found.missing
        rows.append(
            (
                f"{kind.capitalize()} above {number(needed.least)}",
                number(needed.expected),
                "pneumonia" if kind == "sensitivity" else "normal",
                count(needed.patients) if needed.patients is not None else "no number would do",
                count(found.have),
                ABSENT if left is None else count(left),
                ABSENT if found.weeks is None else number(found.weeks, 1),
            )
        )
    any_of = next(iter(content.needed.values())).needed
    table = Table(
        "Cases still needed",
        (
            Column("To show"),
            Column("If it is", numeric=True),
            Column("Cases with"),
            Column("Needed", numeric=True),
            Column("There", numeric=True),
            Column("Still needed", numeric=True),
            Column("Weeks at this pace", numeric=True),
        ),
        tuple(rows),
        f"Exact one-sided binomial test at {percent(any_of.confidence)} confidence with a power of "
        f"{percent(any_of.power)}, one case per patient.",
    )
    view = TablesView("", (table,))
    return Section("needed", "How many more", "How many", "sections/tables.html.j2", view, True)


def _made(content: ReadingsContent) -> Section:
    rows = (
        ("Scores", content.scores),
        ("Readings", content.readings),
        ("Joined by", content.by),
        ("Models that answered", ", ".join(content.models) or "not stated"),
        ("Reporting checklist", "checklist.html (DECIDE-AI)"),
        ("Full evaluation", "evaluation/report.html"),
        ("Made by", content.command),
    )
    view = TablesView("", (Table("How it was made", (Column("What"), Column("Which")), rows),))
    return Section("made", "How it was made", "Made", "sections/tables.html.j2", view, True)


_MARGINS = (46, 34, 14, 26)
_MOST_TICKS = 6


def volume(weeks: Sequence[Week]) -> Svg:
    """Cases per week; those without a score stand on top of the others."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        name_axes(axes, "Week that begins on", "Cases")
        refused = [sum(week.refused.values()) for week in weeks]
        scored = [week.cases - without for week, without in zip(weeks, refused, strict=True)]
        axes.bar(range(len(weeks)), scored, color=NORMAL.light, width=0.7)
        axes.bar(range(len(weeks)), refused, bottom=scored, color=PNEUMONIA.light, width=0.7)
        axes.set_ylim(0, 1.25 * max(week.cases for week in weeks))
        draw_text(axes, 0.02, 0.95, "with a score", NORMAL, in_axes=True, bold=True)
        draw_text(axes, 0.98, 0.95, "without", PNEUMONIA, ha="right", in_axes=True, bold=True)
        _mondays(axes, weeks)
        reading = (
            f"{plural(sum(scored) + sum(refused), 'case')} in {plural(len(weeks), 'week')}, "
            f"{sum(refused)} of them without a score."
        )
        return to_svg(figure, "volume", reading)


def score_quartiles(weeks: Sequence[Week], threshold: float | None) -> Svg:
    """Median and quartiles of each week's scores, with the threshold."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        name_axes(axes, "Week that begins on", "Score: quartiles and median")
        for place, week in enumerate(weeks):
            if week.quartiles:
                low, middle, high = week.quartiles
                axes.plot([place, place], [low, high], color=INK.light, linewidth=5, alpha=0.3)
                axes.plot([place], [middle], "o", color=INK.light, markersize=5)
        if threshold is not None:
            axes.axhline(threshold, color=MUTED.light, linewidth=0.9, dashes=(3, 3))
            draw_text(axes, len(weeks) - 0.5, threshold, "threshold", MUTED, ha="right")
        _mondays(axes, weeks)
        known = [week for week in weeks if week.quartiles]
        reading = "No week has a score."
        if known:
            reading = (
                f"The median score was {number(known[0].quartiles[1])} in the first week and "
                f"{number(known[-1].quartiles[1])} in the last."
            )
        return to_svg(figure, "weekly-scores", reading)


def rates_so_far(weeks: Sequence[Week], level: float) -> Svg:
    """Sensitivity and specificity of all cases up to each week, with intervals."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        name_axes(axes, "Up to the week that begins on", "Sensitivity and specificity so far")
        for name, colour, rates in (
            ("sensitivity", PNEUMONIA, [week.sensitivity for week in weeks]),
            ("specificity", NORMAL, [week.specificity for week in weeks]),
        ):
            known = [(k, rate) for k, rate in enumerate(rates) if rate.value is not None]
            axes.plot(
                [k for k, _ in known],
                [rate.value or 0.0 for _, rate in known],
                color=colour.light,
                marker="o",
                markersize=4,
                label=name,
            )
            spans = [
                (k, r.low, r.high) for k, r in known if r.low is not None and r.high is not None
            ]
            axes.fill_between(
                [k for k, _, _ in spans],
                [low for _, low, _ in spans],
                [high for _, _, high in spans],
                color=colour.light,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_ylim(0, 1.02)
        draw_text(axes, 0.02, 0.05, "sensitivity", PNEUMONIA, in_axes=True, bold=True)
        draw_text(axes, 0.98, 0.05, "specificity", NORMAL, ha="right", in_axes=True, bold=True)
        _mondays(axes, weeks)
        last = weeks[-1]
        reading = (
            f"By the last week: sensitivity {in_words(last.sensitivity, level, 3)}, specificity "
            f"{in_words(last.specificity, level, 3)}."
        )
        return to_svg(figure, "rates-so-far", reading)


def _mondays(axes: Axes, weeks: Sequence[Week]) -> None:
    step = max(1, -(-len(weeks) // _MOST_TICKS))
    places = list(range(0, len(weeks), step))
    axes.set_xlim(-0.6, len(weeks) - 0.4)
    axes.set_xticks(places, [f"{weeks[k].monday:%d %b}" for k in places])
    grid(axes)
