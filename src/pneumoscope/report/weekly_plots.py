"""The figures of a pilot week by week: what came, how scores lay, how well it did so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumoscope.evaluation.weekly import Week
from pneumoscope.report.axes import grid, name_axes, new_axes, say
from pneumoscope.report.formatting import in_words, number, plural
from pneumoscope.report.svg import INK, MUTED, NORMAL, PNEUMONIA, Svg, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        say(axes, 0.02, 0.95, "with a score", NORMAL, in_axes=True, bold=True)
        say(axes, 0.98, 0.95, "without", PNEUMONIA, ha="right", in_axes=True, bold=True)
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
            say(axes, len(weeks) - 0.5, threshold, "threshold", MUTED, ha="right")
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
        say(axes, 0.02, 0.05, "sensitivity", PNEUMONIA, in_axes=True, bold=True)
        say(axes, 0.98, 0.05, "specificity", NORMAL, ha="right", in_axes=True, bold=True)
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
