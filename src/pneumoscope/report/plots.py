"""The figures of a report, one function each.

Comes in: curves and counts as plain sequences, and the numbers to mark. Goes out: `Svg`, the same
bytes for the same input. Every figure carries one sentence that says what it shows.
Knows nothing of pages, of files or of how the numbers were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle

from pneumoscope.records import CLASS_NAMES, Estimate
from pneumoscope.report.axes import (
    HEIGHT,
    WIDTH,
    grid,
    mark_point,
    name_axes,
    new_axes,
    say,
    unit_square,
)
from pneumoscope.report.formatting import count, in_words, interval, number, percent, plural
from pneumoscope.report.svg import INK, MUTED, NORMAL, PNEUMONIA, RULE, Colour, Svg, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pneumoscope.evaluation.curves import Curve, Reliability, ScoreHistogram
    from pneumoscope.evaluation.metrics import ConfusionMatrix

CLASS_COLOURS: tuple[Colour, Colour] = (NORMAL, PNEUMONIA)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where the threshold puts the model on a curve."""

    x: float
    y: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Group:
    """One row of a dot-and-interval figure: `wanted` of `total` images were answered rightly."""

    label: str
    estimate: Estimate
    total: int
    colour: Colour = PNEUMONIA


def confusion(matrix: ConfusionMatrix) -> Svg:
    """Images by truth (rows) and answer (columns), with the share of each row."""
    rows = ((matrix.tn, matrix.fp), (matrix.fn, matrix.tp))
    with drawing():
        figure, axes = new_axes(WIDTH, 270, margins=(92, 10, 10, 44))
        axes.set_axis_off()
        axes.set_xlim(0, 2)
        axes.set_ylim(2, 0)
        for i, row in enumerate(rows):
            say(
                axes,
                -0.06,
                i + 0.5,
                CLASS_NAMES[i].lower(),
                CLASS_COLOURS[i],
                ha="right",
                bold=True,
            )
            for j, images in enumerate(row):
                share = images / sum(row) if sum(row) else 0.0
                tile = Rectangle(
                    (j + 0.012, i + 0.015),
                    0.976,
                    0.97,
                    facecolor=CLASS_COLOURS[i].light,
                    alpha=0.05 + 0.27 * share,
                    linewidth=0,
                )
                axes.add_patch(tile)
                say(axes, j + 0.5, i + 0.45, count(images), ha="center", size=21, bold=True)
                kind = ("right" if i == j else "wrong") + f", {percent(share, 1)}"
                say(axes, j + 0.5, i + 0.72, kind, ha="center", size=10)
        for j, name in enumerate(CLASS_NAMES):
            say(axes, j + 0.5, -0.1, f"called {name.lower()}", MUTED, ha="center", size=10)
        say(axes, -0.06, -0.1, "labelled", MUTED, ha="right", size=10)
        reading = (
            f"Of {plural(sum(rows[0]), 'normal X-ray')}, {count(matrix.tn)} were called normal and "
            f"{count(matrix.fp)} pneumonia; of {count(sum(rows[1]))} with pneumonia, "
            f"{count(matrix.tp)} were called so and {count(matrix.fn)} were missed."
        )
        return to_svg(figure, "confusion", reading)


def roc(curve: Curve, point: OperatingPoint | None, auc: Estimate, level: float) -> Svg:
    """Sensitivity against the rate of false alarms, with the band and the operating point."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "False alarms (1 − specificity)", "Sensitivity")
        axes.plot([0, 1], [0, 1], color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        say(axes, 0.68, 0.63, "chance", MUTED)
        # The curve takes the upper end of a vertical step: at 0 it rises from 0.
        axes.plot([0, 0], [0, curve.y[0]], color=INK.light, clip_on=False)
        _band(axes, curve)
        text = f"AUC {number(auc.value)}"
        say(axes, 0.97, 0.13, text, ha="right", bold=True, size=12)
        say(axes, 0.97, 0.05, interval(auc), MUTED, ha="right")
        reading = f"The ROC curve encloses an area of {in_words(auc, level, 3)}"
        if point is not None:
            _mark_threshold(axes, point)
            reading += (
                f"; at the threshold {number(point.threshold, 2)} the sensitivity is "
                f"{number(point.y)} and the specificity {number(1 - point.x)}"
            )
        return to_svg(figure, "roc", reading + ".")


def precision_recall(
    curve: Curve,
    point: OperatingPoint | None,
    average_precision: Estimate,
    level: float,
    prevalence: float,
) -> Svg:
    """Positive predictive value against sensitivity; chance lies at the prevalence."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "Sensitivity (recall)", "Positive predictive value (precision)")
        axes.axhline(prevalence, color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        above = prevalence < 0.5
        say(
            axes,
            0.02,
            prevalence + (0.04 if above else -0.04),
            f"chance: prevalence {number(prevalence, 2)}",
            MUTED,
        )
        _band(axes, curve)
        say(
            axes,
            0.03,
            0.13,
            f"Average precision {number(average_precision.value)}",
            bold=True,
            size=12,
        )
        say(axes, 0.03, 0.05, interval(average_precision), MUTED)
        reading = f"Average precision is {in_words(average_precision, level, 3)}"
        if point is not None:
            _mark_threshold(axes, point)
            reading += (
                f"; at the threshold {number(point.threshold, 2)}, {percent(point.y, 1)} of the "
                f"pneumonia calls are right and {percent(point.x, 1)} of the pneumonia is found"
            )
        return to_svg(figure, "precision-recall", reading + ".")


def reliability(bins: Reliability, ece: Estimate) -> Svg:
    """Observed share of pneumonia against the stated probability, in bins, with intervals."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "Stated probability of pneumonia", "Observed share of pneumonia")
        axes.plot([0, 1], [0, 1], color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        say(axes, 0.5, 0.55, "perfect", MUTED, ha="right")
        axes.vlines(bins.probability, bins.low, bins.high, color=INK.light, linewidth=1.1)
        axes.plot(
            bins.probability,
            bins.share,
            marker="o",
            markersize=5,
            linewidth=0,
            color=INK.light,
            clip_on=False,
        )
        text = f"Calibration error {number(ece.value)}"
        say(axes, 0.97, 0.13, text, ha="right", bold=True, size=12)
        say(axes, 0.97, 0.05, interval(ece), MUTED, ha="right")
        gaps = [abs(p - s) for p, s in zip(bins.probability, bins.share, strict=True)]
        reading = (
            f"In {plural(len(gaps), 'group')} of X-rays sorted by stated probability "
            f"(about {count(round(float(np.mean(bins.images))))} each), the observed share of "
            f"pneumonia is at most {number(max(gaps), 2)} away from what was stated."
        )
        return to_svg(figure, "reliability", reading)


def score_histogram(histogram: ScoreHistogram, threshold: float, matrix: ConfusionMatrix) -> Svg:
    """How many X-rays of each class got which probability, with the wrong calls counted."""
    with drawing():
        figure, top = new_axes(margins=(40, 186, 14, 46))
        bottom = figure.add_axes((40 / WIDTH, 38 / HEIGHT, (WIDTH - 54) / WIDTH, 98 / HEIGHT))
        low, high = histogram.edges[0], histogram.edges[-1]
        at = (threshold - low) / (high - low)
        for label, axes in enumerate((top, bottom)):
            counts = (histogram.normal, histogram.pneumonia)[label]
            edges = [(edge - low) / (high - low) for edge in histogram.edges]
            _bars(axes, edges, counts, at, label)
            places = (0.0, 0.25, 0.5, 0.75, 1.0)
            axes.set_xticks(places, [f"{low + place * (high - low):.3g}" for place in places])
        top.set_xticklabels([])
        is_probability = (low, high) == (0.0, 1.0)
        name = "Stated probability of pneumonia" if is_probability else "Score"
        bottom.set_xlabel(name, labelpad=5)
        _tell_wrong(top, at, f"{plural(matrix.fp, 'false alarm')}", right=True)
        _tell_wrong(bottom, at, f"{count(matrix.fn)} missed", right=False)
        top.text(
            at,
            1.05,
            f"threshold {number(threshold, 2)}",
            transform=top.get_xaxis_transform(),
            ha=_anchor(at),
            va="bottom",
            fontsize=9.5,
            color=INK.light,
        )
        reading = (
            f"{plural(sum(histogram.normal), 'normal X-ray')} and "
            f"{count(sum(histogram.pneumonia))} with pneumonia by "
            f"{'stated probability' if is_probability else 'score'}: "
            f"{plural(matrix.fp, 'false alarm')} at or above the threshold "
            f"{number(threshold, 2)}, {count(matrix.fn)} missed below it."
        )
        return to_svg(figure, "scores", reading)


def group_rates(groups: Sequence[Group], rate: str, level: float, name: str = "groups") -> Svg:
    """A dot and an interval per group of images (bacterial, viral), on one scale."""
    with drawing():
        height = 70 + 38 * len(groups)
        figure, axes = new_axes(WIDTH, height, margins=(118, 34, 62, 14))
        shown = [e for g in groups for e in (g.estimate.low, g.estimate.value) if e is not None]
        start = max(0.0, float(np.floor((min(shown, default=0.0) - 0.02) * 10) / 10))
        axes.set_xlim(start, 1.0)
        for row, group in enumerate(groups):
            value, low, high = group.estimate.value, group.estimate.low, group.estimate.high
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=group.colour.light, linewidth=2)
            if value is not None:
                mark_point(axes, value, row, group.colour)
            say(axes, 1 + 0.05 * (1 - start), row, number(value), bold=True, size=10.5)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        labels = [f"{group.label} ({count(group.total)})" for group in groups]
        axes.set_yticks(range(len(groups)), labels)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
        axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=10)
        axes.set_xlabel(rate, labelpad=5)
        parts = [f"{in_words(g.estimate, level)} for {g.label.lower()}" for g in groups]
        return to_svg(figure, name, f"{rate}: {'; '.join(parts)}.")


def _band(axes: Axes, curve: Curve) -> None:
    if curve.low:
        opacity = 0.16
        axes.fill_between(
            curve.x, curve.low, curve.high, color=INK.light, alpha=opacity, linewidth=0
        )
    axes.plot(curve.x, curve.y, color=INK.light, clip_on=False)


def _mark_threshold(axes: Axes, point: OperatingPoint) -> None:
    """The operating point, named below it on the side that has room."""
    mark_point(axes, point.x, point.y)
    right = point.x < 0.5
    text = f"threshold {number(point.threshold, 2)}"
    x = point.x + (0.025 if right else -0.025)
    say(axes, x, max(point.y - 0.075, 0.2), text, ha="left" if right else "right", bold=True)


def _anchor(threshold: float) -> Any:
    """Centred over its line, but kept inside the figure."""
    if threshold < 0.15:
        return "left"
    return "right" if threshold > 0.85 else "center"


def _bars(
    axes: Axes, edges: Sequence[float], counts: Sequence[int], threshold: float, label: int
) -> None:
    """One class's histogram; a bar that lies wholly on the wrong side is solid.

    Counts stand on a square-root scale: the few wrong calls stay visible beside the many right.
    """
    colour = CLASS_COLOURS[label]
    sides, heights = np.asarray(edges, dtype=np.float64), np.sqrt(counts)
    left, right = sides[:-1], sides[1:]
    wrong = right <= threshold if label else left >= threshold
    for mask, opacity in ((~wrong, 0.32), (wrong, 1.0)):
        widths = (right - left)[mask]
        axes.bar(
            left[mask] + 0.06 * widths,
            heights[mask],
            width=0.88 * widths,
            align="edge",
            color=colour.light,
            alpha=opacity,
            linewidth=0,
        )
    axes.axvline(threshold, color=INK.light, linewidth=0.9)
    axes.set_xlim(-0.012, 1.012)
    most = max(*counts, 1)
    axes.set_ylim(0, 1.05 * most**0.5)
    ticks = _square_root_ticks(most)
    axes.set_yticks([tick**0.5 for tick in ticks], [count(tick) for tick in ticks])
    grid(axes)
    axes.spines["bottom"].set_color(RULE.light)
    axes.tick_params(axis="x", length=0)
    name = CLASS_NAMES[label].lower()
    axes.set_title(f"labelled {name}", loc="left", x=0, fontsize=10, color=colour.light, pad=7)


def _square_root_ticks(most: int) -> list[int]:
    """0 and two or three round counts up to `most`."""
    unit = 10 ** max(len(str(most)) - 1, 0)
    top = most // unit * unit
    candidates = [0, max(unit // 10, 1), max(top // 4, 1), top]
    ticks = [0]
    for tick in candidates[1:]:
        if tick**0.5 - ticks[-1] ** 0.5 > 0.22 * most**0.5:
            ticks.append(tick)
    return ticks


def _tell_wrong(axes: Axes, threshold: float, text: str, *, right: bool) -> None:
    """Count the wrong calls in words on the wrong side of the threshold."""
    axes.text(
        threshold + (0.02 if right else -0.02),
        0.86,
        text,
        transform=axes.get_xaxis_transform(),
        ha="left" if right else "right",
        va="center",
        fontsize=9.5,
        fontweight="bold",
        color=INK.light,
    )
