"""The figures of a stress test: metrics against strength, and AUCs of the shortcut tests.

Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumoscope.evaluation.stress import METRICS, Metric
from pneumoscope.images.perturbation_sweeps import Sweep
from pneumoscope.records import Estimate
from pneumoscope.report.formatting import in_words, metric_text, number, percent
from pneumoscope.report.stress_findings import StressRow
from pneumoscope.report.svg import (
    INK,
    MUTED,
    NORMAL,
    PNEUMONIA,
    RULE,
    Colour,
    Svg,
    draw_text,
    drawing,
    grid,
    mark_point,
    name_axes,
    new_axes,
    spread,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT, _ROW = 320, 230, 30
_LOOKS: Mapping[Metric, tuple[Colour, str]] = {
    "sensitivity": (PNEUMONIA, "o"),
    "specificity": (NORMAL, "s"),
    "auc": (INK, "^"),
}
_GAP = 0.075
"""Minimum distance between two labels, as a share of the axis."""


@dataclass(frozen=True, slots=True)
class AucRow:
    """A labelled AUC; `colour` distinguishes the model from the baselines."""

    label: str
    auc: Estimate
    colour: Colour = INK


@dataclass(frozen=True, slots=True)
class _Point:
    """A point on the x axis of a sweep; plausible points are shaded."""

    label: str
    plausible: bool
    values: Mapping[Metric, Estimate]


def sweep_curves(
    sweep: Sweep, rows: Sequence[StressRow], plain: Mapping[Metric, Estimate], level: float
) -> Svg:
    """Draw sensitivity, specificity and AUC at every strength, evenly spaced, and unchanged."""
    points = _points(sweep, rows, plain)
    with drawing():
        figure, axes = new_axes(_WIDTH, _HEIGHT, margins=(34, 40, 70, 28))
        lowest = min((e.low or e.value or 0.0) for p in points for e in p.values.values())
        floor = max(0.0, min(0.75, int(lowest * 20) / 20))
        axes.set_ylim(floor - 0.01, 1.01)
        axes.set_xlim(-0.35, len(points) - 0.65)
        for place, point in enumerate(points):
            if point.plausible:
                axes.axvspan(place - 0.5, place + 0.5, color=RULE.light, alpha=0.45, linewidth=0)
        last = {m: points[-1].values[m].value for m in METRICS}
        for number_of, metric in enumerate(METRICS):
            _curve(axes, points, metric, 0.07 * (number_of - 1))
        _label_ends(axes, last, len(points) - 1, floor)
        axes.set_xticks(range(len(points)), [point.label for point in points])
        axes.tick_params(axis="x", length=0)
        grid(axes)
        name_axes(axes, sweep.axis, sweep.title)
        return to_svg(figure, f"sweep-{sweep.name}", _reading(sweep, rows, level))


def auc_rows(rows: Sequence[AucRow], level: float) -> Svg:
    """Draw a dot and an interval per AUC; 0.5 is marked as chance."""
    with drawing():
        figure, axes = new_axes(480, 74 + _ROW * len(rows), margins=(214, 38, 52, 24))
        lows = [row.auc.low for row in rows if row.auc.low is not None]
        axes.set_xlim(min(0.45, *lows) - 0.02 if lows else 0.4, 1.0)
        axes.axvline(0.5, color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        axes.text(0.5, 1.0, "chance", transform=axes.get_xaxis_transform(), ha="center",
                  va="bottom", fontsize=9.5, color=MUTED.light)  # fmt: skip
        for place, row in enumerate(rows):
            low, high, value = row.auc.low, row.auc.high, row.auc.value
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=row.colour.light, linewidth=2)
            if value is not None:
                mark_point(axes, value, place, row.colour)
            draw_text(axes, 1.02, place, number(value), bold=True, size=10.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=9.5)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
        axes.set_xlabel("AUC", labelpad=5)
        parts = "; ".join(f"{row.label} {number(row.auc.value)}" for row in rows)
        return to_svg(figure, "shortcuts", f"AUC with {percent(level)} intervals: {parts}.")


def _points(
    sweep: Sweep, rows: Sequence[StressRow], plain: Mapping[Metric, Estimate]
) -> list[_Point]:
    """The strengths in increasing order; the unchanged images at their place, or at the end."""
    placed = [(row.strength, _label(sweep, row.strength), row) for row in rows]
    points = [_Point(label, row.plausible, row.found.changed) for _, label, row in placed]
    neutral = sweep.neutral
    name = "none" if neutral is None else _label(sweep, neutral)
    before = len(rows) if neutral is None else sum(row.strength < neutral for row in rows)
    points.insert(before, _Point(name, any(row.plausible for row in rows), plain))
    return points


def _label(sweep: Sweep, strength: float) -> str:
    shown = 100 * strength if sweep.axis.startswith(("%", "deviation, %", "height")) else strength
    return f"{shown:.2g}".replace("-", "−") if abs(shown) < 1 else f"{shown:g}".replace("-", "−")


def _curve(axes: Axes, points: Sequence[_Point], metric: Metric, shift: float) -> None:
    colour, shape = _LOOKS[metric]
    places = [k + shift for k, p in enumerate(points) if p.values[metric].value is not None]
    found = [p.values[metric] for p in points if p.values[metric].value is not None]
    for place, estimate in zip(places, found, strict=True):
        if estimate.low is not None and estimate.high is not None:
            axes.plot([place, place], [estimate.low, estimate.high], color=colour.light,
                      linewidth=1.0, alpha=0.55)  # fmt: skip
    axes.plot(
        places, [e.value or 0.0 for e in found], color=colour.light, marker=shape, markersize=4.2
    )


def _label_ends(
    axes: Axes, last: Mapping[Metric, float | None], place: float, floor: float
) -> None:
    """Label each curve at its right end."""
    ends = [(m, value) for m, value in last.items() if value is not None]
    ranked = sorted(ends, key=lambda end: end[1])
    at = spread([value for _, value in ranked], _GAP * (1 - floor))
    at = spread(at, _GAP * (1 - floor))
    for (metric, _), y in zip(ranked, at, strict=True):
        name = metric_text(metric).label
        name = name if metric == "auc" else name.lower()
        draw_text(axes, place + 0.42, y, name, _LOOKS[metric][0])


def _reading(sweep: Sweep, rows: Sequence[StressRow], level: float) -> str:
    worst = max(rows, key=lambda row: row.found.fall)
    metric: Metric = min(
        ("sensitivity", "specificity"), key=lambda m: worst.found.difference[m].value or 0.0
    )
    change = worst.found.difference[metric]
    before, after = worst.found.plain[metric].value, worst.found.changed[metric].value
    if change.value is None or change.value >= 0:
        return f"{sweep.title}: no strength lowers sensitivity or specificity."
    return (
        f"{sweep.title}: the largest decrease is at {worst.title}, where {metric} changes from "
        f"{number(before)} to {number(after)}, by {in_words(change, level, 3)}."
    )
