"""The page of a pilot study: cases, rejections, performance against the readers, week by week."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pneumoscope.evaluation.pilot import Agreement, Week, weeks_spanned
from pneumoscope.records import Estimate
from pneumoscope.report.content import ReadingsContent
from pneumoscope.report.formatting import ABSENT, count, in_words, interval, number, percent, plural
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


_MARGINS = (46, 34, 14, 26)
_MOST_TICKS = 6


def render_readings_page(content: ReadingsContent) -> str:
    """The page as HTML; equal contents give equal bytes."""
    return render_page("report.html.j2", _head(content), _sections(content))


def _head(content: ReadingsContent) -> ReportHead:
    missing, level = content.missing, percent(content.level)
    weeks = weeks_spanned(content.weeks)
    over = f", over {plural(weeks, 'week')}" if weeks else "; no case has a date"
    text = (
        f"{count(missing.matched)} of {plural(missing.cases, 'case')} "
        f"{'has' if missing.matched == 1 else 'have'} both a score and a reading{over}."
    )
    keys = []
    if content.evaluation and content.agreement:
        found = content.evaluation
        matrix = found.confusion_matrix
        text += (
            f" The system missed {count(matrix.fn)} of "
            f"{plural(matrix.fn + matrix.tp, 'case')} with pneumonia and raised "
            f"{plural(matrix.fp, 'false alarm')} on {plural(matrix.fp + matrix.tn, 'normal case')}."
        )
        if missing.uncertain:
            text += (
                f" It withheld {plural(missing.uncertain, 'result')} as indeterminate; all rates "
                "apply the threshold, as if it never abstained."
            )
        for label, estimate in (
            ("Sensitivity", found.metrics["sensitivity"]),
            ("Specificity", found.metrics["specificity"]),
            ("AUC", found.metrics["auc"]),
            ("Cohen’s kappa", content.agreement.kappa),
        ):
            keys.append(KeyNumber(label, number(estimate.value), f"{level}: {interval(estimate)}"))
    return ReportHead(
        "Pilot study, week by week",
        f"{content.scores} · {content.readings}",
        text,
        "The results apply to these patients only. Do not use them, or the system, for decisions "
        "about patients. The tables in the same folder name patients.",
        tuple(keys),
    )


def _clustered(content: ReadingsContent) -> str:
    """By what the intervals are clustered: a case that names no patient is its own."""
    nameless = content.missing.nameless
    if nameless == content.missing.cases:
        return "not clustered, since no case names its patient"
    own = f" ({plural(nameless, 'case')} without one: each on its own)" if nameless else ""
    return f"clustered by patient{own}"


def _sections(content: ReadingsContent) -> tuple[Section, ...]:
    found = (
        notes(content.notes),
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
        ("Rows in the table of scores", count(missing.scores), ""),
        ("Cases in the table of scores", count(missing.cases), f"joined by {content.by}"),
        (
            "Cases with several images",
            count(missing.images_of_several),
            "the image with the highest score represents the case",
        ),
        ("Rows without a case identifier", count(missing.keyless), "excluded"),
        ("Cases without a reading", count(missing.unread), "excluded from all rates; unread.csv"),
        (
            "Cases on which readers disagree or are undecided",
            count(missing.divided),
            "excluded from all rates; divided.csv",
        ),
        ("Cases read, but not in the table of scores", count(missing.unscored), "unscored.csv"),
        (
            "Cases read, but rejected by the system",
            count(missing.refused),
            "no score; counted per week",
        ),
        ("Cases with a score and a reading", count(missing.matched), "joined.csv"),
        (
            "Of these, withheld by the system as indeterminate",
            count(missing.uncertain),
            "the threshold is applied, as if it never abstained",
        ),
    )
    table = Table(
        "Joining scores and readings",
        (Column("Rows or cases"), Column("Number", numeric=True), Column("Handling")),
        rows,
    )
    return Section(
        "joined",
        "Included cases",
        "Included cases",
        "sections/tables.html.j2",
        TablesView("", (table,)),
    )


def _weeks(content: ReadingsContent) -> Section | None:
    weeks = content.weeks
    if not weeks:
        return None
    threshold = next((row.row.threshold for row in content.thresholds if row.in_use), None)
    drawn = (
        Drawn("", volume(weeks)),
        Drawn("", score_quartiles(weeks, threshold)),
        Drawn("", rates_so_far(weeks, content.level)),
    )
    level = percent(content.level)
    columns = (
        Column("Week of"),
        Column("Cases", numeric=True),
        Column("No score", numeric=True),
        Column("With reading", numeric=True),
        Column("Predicted pneumonia", numeric=True),
        Column("Score, median (quartiles)", numeric=True),
        Column("Drift", numeric=True),
    )
    note = (
        "Drift: the Kolmogorov–Smirnov distance between the scores of the week and those of all "
        "previous weeks, with its p. By chance, p is below 0.05 in about one of 20 weeks."
    )
    rates = (
        Column("Up to the week of"),
        Column("Cumulative sensitivity", numeric=True),
        Column("Cumulative specificity", numeric=True),
    )
    last = "" if content.undated else "; those of the last week are those of all cases above"
    clustered = (
        f"{level} intervals, {_clustered(content)}{last}. weeks.csv contains all values at full "
        "precision."
    )
    tables = [
        Table("Cases and scores per week", columns, tuple(map(_week_row, weeks)), note),
        Table("Cumulative performance", rates, tuple(map(_rates_row, weeks)), clustered),
    ]
    codes = _codes(weeks)
    if codes.rows:
        tables.append(codes)
    undated = (
        f" {plural(content.undated, 'case')} without a date "
        f"{'is' if content.undated == 1 else 'are'} not included."
        if content.undated
        else ""
    )
    view = FiguresView(f"Cases by study date.{undated}", drawn, tables=tuple(tables))
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
    """Rejections by reason and week, the most frequent reason first."""
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
        Column("Raters"),
        Column("Cases", numeric=True),
        Column("Both positive", numeric=True),
        Column("First only", numeric=True),
        Column("Second only", numeric=True),
        Column("Both negative", numeric=True),
        Column("Observed agreement", numeric=True),
        Column("Expected by chance", numeric=True),
        Column("Kappa", numeric=True),
        Column(f"{percent(content.level)} interval", numeric=True),
    )
    rows = tuple(_agreement_row(name, found) for name, found in pairs.items())
    note = (
        "Cohen’s kappa is the agreement beyond chance as a share of the largest possible agreement "
        "beyond chance. It depends on the prevalence. The interval is "
        f"{_clustered(content)}."
    )
    if left := len(content.further_readers):
        note += f" Compared are the readers with the most readings; {left:,} others are not."
    table = Table("Agreement", columns, rows, note)
    view = TablesView("Agreement between raters; positive means pneumonia.", (table,))
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
        Column("Predicted pneumonia", numeric=True),
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
        "Performance at other thresholds",
        columns,
        rows,
        "Predicted pneumonia: of all cases with a score, with or without a reading. Predictive "
        "values: at the prevalence among the cases with a reading. A threshold chosen here must be "
        "tested on later cases.",
    )
    view = TablesView(
        "Performance of other thresholds on the cases so far. For all thresholds, or another "
        "prevalence, run pneumoscope plan on the folder evaluation/.",
        (table,),
    )
    title = "Other thresholds"
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
                count(needed.patients) if needed.patients is not None else "not achievable",
                count(found.have),
                ABSENT if left is None else count(left),
                ABSENT if found.weeks is None else number(found.weeks, 1),
            )
        )
    any_of = next(iter(content.needed.values())).needed
    table = Table(
        "Cases required",
        (
            Column("Hypothesis"),
            Column("Expected rate", numeric=True),
            Column("Class"),
            Column("Required", numeric=True),
            Column("Collected", numeric=True),
            Column("Remaining", numeric=True),
            Column("Weeks at the current rate", numeric=True),
        ),
        tuple(rows),
        f"Exact one-sided binomial test at {percent(any_of.confidence)} confidence with a power of "
        f"{percent(any_of.power)}, one case per patient.",
    )
    view = TablesView("", (table,))
    title = "Required sample size"
    return Section("needed", title, "Sample size", "sections/tables.html.j2", view, True)


def _made(content: ReadingsContent) -> Section:
    rows = (
        ("Scores", content.scores),
        ("Readings", content.readings),
        ("Joined by", content.by),
        ("Models that produced the scores", ", ".join(content.models) or "not stated"),
        ("Reporting checklist", "checklist.html (DECIDE-AI)"),
        ("Full evaluation", "evaluation/report.html"),
        ("Command", content.command),
    )
    view = TablesView("", (Table("Inputs and command", (Column("Item"), Column("Value")), rows),))
    return Section("made", "Reproduction", "Reproduction", "sections/tables.html.j2", view, True)


def volume(weeks: Sequence[Week]) -> Svg:
    """Draw the number of cases per week, with and without a score, as stacked bars."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        name_axes(axes, "Week of", "Cases")
        refused = [sum(week.refused.values()) for week in weeks]
        scored = [week.cases - without for week, without in zip(weeks, refused, strict=True)]
        axes.bar(_places(weeks), scored, color=NORMAL.light, width=0.7)
        axes.bar(_places(weeks), refused, bottom=scored, color=PNEUMONIA.light, width=0.7)
        axes.set_ylim(0, 1.25 * max(week.cases for week in weeks))
        draw_text(axes, 0.02, 0.95, "with a score", NORMAL, in_axes=True, bold=True)
        draw_text(axes, 0.98, 0.95, "no score", PNEUMONIA, ha="right", in_axes=True, bold=True)
        _mondays(axes, weeks)
        reading = (
            f"{plural(sum(scored) + sum(refused), 'case')} in "
            f"{plural(weeks_spanned(weeks), 'week')}, {sum(refused)} of them without a score."
        )
        return to_svg(figure, "volume", reading)


def score_quartiles(weeks: Sequence[Week], threshold: float | None) -> Svg:
    """Draw the median and quartiles of each week's scores, with the threshold."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        line = "" if threshold is None else "; dashed: threshold"
        name_axes(axes, "Week of", f"Score: quartiles and median{line}")
        for place, week in zip(_places(weeks), weeks, strict=True):
            if week.quartiles:
                low, middle, high = week.quartiles
                axes.plot([place, place], [low, high], color=INK.light, linewidth=5, alpha=0.3)
                axes.plot([place], [middle], "o", color=INK.light, markersize=5)
        if threshold is not None:
            axes.axhline(threshold, color=MUTED.light, linewidth=0.9, dashes=(3, 3))
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
    """Draw cumulative sensitivity and specificity up to each week, with intervals."""
    with drawing():
        figure, axes = new_axes(margins=_MARGINS)
        name_axes(axes, "Up to the week of", "Cumulative sensitivity and specificity")
        for name, colour, rates in (
            ("sensitivity", PNEUMONIA, [week.sensitivity for week in weeks]),
            ("specificity", NORMAL, [week.specificity for week in weeks]),
        ):
            placed = zip(_places(weeks), rates, strict=True)
            known = [(k, rate) for k, rate in placed if rate.value is not None]
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
            f"Over all weeks: sensitivity {in_words(last.sensitivity, level, 3)}, specificity "
            f"{in_words(last.specificity, level, 3)}."
        )
        return to_svg(figure, "rates-so-far", reading)


def _places(weeks: Sequence[Week]) -> list[int]:
    """Where each week is drawn: weeks without cases leave a gap."""
    return [weeks_spanned((weeks[0], week)) - 1 for week in weeks]


def _mondays(axes: Axes, weeks: Sequence[Week]) -> None:
    span = weeks_spanned(weeks)
    places = list(range(0, span, max(1, -(-span // _MOST_TICKS))))
    axes.set_xlim(-0.6, span - 0.4)
    axes.set_xticks(places, [f"{weeks[0].monday + timedelta(weeks=k):%d %b}" for k in places])
    grid(axes)
