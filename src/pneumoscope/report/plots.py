"""The figures of reports, audits and plans, one function each.

Every figure includes a sentence that describes what it shows. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle

from pneumoscope.data.audit_record import PatientSimilarity, SplitTest
from pneumoscope.evaluation.abstention import RiskCoverage
from pneumoscope.evaluation.decision import DecisionCurve
from pneumoscope.records import CLASS_NAMES, Estimate
from pneumoscope.report.formatting import (
    count,
    in_words,
    interval,
    number,
    percent,
    plural,
    unrounded,
)
from pneumoscope.report.svg import (
    HEIGHT,
    INK,
    MUTED,
    NORMAL,
    PNEUMONIA,
    RULE,
    WIDTH,
    Colour,
    Svg,
    draw_text,
    drawing,
    grid,
    mark_point,
    name_axes,
    new_axes,
    shortened,
    text_width,
    to_svg,
    unit_square,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pneumoscope.evaluation.metrics import ConfusionMatrix, Curve, Reliability, ScoreHistogram

CLASS_COLOURS: tuple[Colour, Colour] = (NORMAL, PNEUMONIA)

_ROW = 30
_LABELS_WIDTH = 168
_CHANCE = 0.5
_GROUP_MARGINS, _GROUP_SIZE, _TICK_GAP = (118, 180), 10.0, 8
"""Of the figure of groups: room for the names, their size, and their distance from the axis."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The point of a curve that belongs to the threshold."""

    x: float
    y: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Group:
    """One row of a dot-and-interval figure: a rate of `total` images."""

    label: str
    estimate: Estimate
    total: int
    colour: Colour = PNEUMONIA


def confusion(matrix: ConfusionMatrix) -> Svg:
    """Draw images by label (rows) and predicted class (columns), with the share of each row."""
    rows = ((matrix.tn, matrix.fp), (matrix.fn, matrix.tp))
    with drawing():
        figure, axes = new_axes(WIDTH, 270, margins=(92, 10, 10, 44))
        axes.set_axis_off()
        axes.set_xlim(0, 2)
        axes.set_ylim(2, 0)
        for i, row in enumerate(rows):
            draw_text(
                axes,
                -0.06,
                i + 0.5,
                CLASS_NAMES[i].lower(),
                CLASS_COLOURS[i],
                ha="right",
                bold=True,
            )
            for j, images in enumerate(row):
                share = images / sum(row) if sum(row) else None
                tile = Rectangle(
                    (j + 0.012, i + 0.015),
                    0.976,
                    0.97,
                    facecolor=CLASS_COLOURS[i].light,
                    alpha=0.05 + 0.27 * (share or 0.0),
                    linewidth=0,
                )
                axes.add_patch(tile)
                draw_text(axes, j + 0.5, i + 0.45, count(images), ha="center", size=21, bold=True)
                kind = "correct" if i == j else "wrong"
                kind += "" if share is None else f", {percent(share, 1)}"
                draw_text(axes, j + 0.5, i + 0.72, kind, ha="center", size=10)
        for j, name in enumerate(CLASS_NAMES):
            draw_text(axes, j + 0.5, -0.1, f"predicted {name.lower()}", MUTED, ha="center", size=10)
        draw_text(axes, -0.06, -0.1, "labelled", MUTED, ha="right", size=10)
        reading = (
            f"Of {plural(sum(rows[0]), 'normal X-ray')}, {count(matrix.tn)} were predicted normal "
            f"and {count(matrix.fp)} pneumonia; of {plural(sum(rows[1]), 'X-ray')} with pneumonia, "
            f"{count(matrix.tp)} were detected and {count(matrix.fn)} were missed."
        )
        return to_svg(figure, "confusion", reading)


def roc(curve: Curve, point: OperatingPoint | None, auc: Estimate, level: float) -> Svg:
    """Draw sensitivity against 1 − specificity, with the band and the operating point."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "False positive rate (1 − specificity)", "Sensitivity")
        axes.plot([0, 1], [0, 1], color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        draw_text(axes, 0.68, 0.63, "chance", MUTED)
        # The curve takes the upper end of a vertical step: at 0 it rises from 0.
        axes.plot([0, 0], [0, curve.y[0]], color=INK.light, clip_on=False)
        _band(axes, curve)
        text = f"AUC {number(auc.value)}"
        draw_text(axes, 0.97, 0.13, text, ha="right", bold=True, size=12)
        draw_text(axes, 0.97, 0.05, interval(auc), MUTED, ha="right")
        reading = f"The area under the ROC curve is {in_words(auc, level, 3)}"
        if point is not None:
            _mark_threshold(axes, point)
            reading += (
                f"; at the threshold {unrounded(point.threshold)} the sensitivity is "
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
    """Draw positive predictive value against sensitivity; chance is at the prevalence."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "Sensitivity (recall)", "Positive predictive value (precision)")
        axes.axhline(prevalence, color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        above = prevalence < 0.5
        draw_text(
            axes,
            0.02,
            prevalence + (0.04 if above else -0.04),
            f"chance: prevalence {number(prevalence, 2)}",
            MUTED,
        )
        _band(axes, curve)
        draw_text(
            axes,
            0.03,
            0.13,
            f"Average precision {number(average_precision.value)}",
            bold=True,
            size=12,
        )
        draw_text(axes, 0.03, 0.05, interval(average_precision), MUTED)
        reading = f"Average precision is {in_words(average_precision, level, 3)}"
        if point is not None:
            _mark_threshold(axes, point)
            reading += (
                f"; at the threshold {unrounded(point.threshold)}, {percent(point.y, 1)} of the "
                f"pneumonia predictions are correct and {percent(point.x, 1)} of the X-rays with "
                "pneumonia are detected"
            )
        return to_svg(figure, "precision-recall", reading + ".")


def reliability(bins: Reliability, ece: Estimate) -> Svg:
    """Draw observed frequency against predicted probability, in bins, with intervals."""
    with drawing():
        figure, axes = new_axes()
        unit_square(axes)
        name_axes(axes, "Predicted probability of pneumonia", "Observed frequency of pneumonia")
        axes.plot([0, 1], [0, 1], color=MUTED.light, linewidth=0.8, dashes=(3, 3))
        draw_text(axes, 0.5, 0.55, "perfect", MUTED, ha="right")
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
        draw_text(axes, 0.97, 0.13, text, ha="right", bold=True, size=12)
        draw_text(axes, 0.97, 0.05, interval(ece), MUTED, ha="right")
        gaps = [abs(p - s) for p, s in zip(bins.probability, bins.share, strict=True)]
        reading = (
            f"In {plural(len(gaps), 'bin')} of X-rays sorted by predicted probability "
            f"(about {count(round(float(np.mean(bins.images))))} each), the observed frequency of "
            f"pneumonia differs from the predicted probability by at most {number(max(gaps), 2)}."
        )
        return to_svg(figure, "reliability", reading)


def score_histogram(histogram: ScoreHistogram, threshold: float, matrix: ConfusionMatrix) -> Svg:
    """Draw a histogram of the probabilities of each class, with the number of wrong predictions."""
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
        name = "Predicted probability of pneumonia" if is_probability else "Score"
        bottom.set_xlabel(name, labelpad=5)
        _count_wrong(top, f"{plural(matrix.fp, 'false alarm')}")
        _count_wrong(bottom, f"{count(matrix.fn)} missed")
        top.annotate(
            f"threshold {unrounded(threshold)}",
            (at, 1.0),
            xycoords=top.get_xaxis_transform(),
            xytext=(0, 22),  # above the line of the title
            textcoords="offset points",
            ha=_anchor(at),
            va="bottom",
            fontsize=9.5,
            color=INK.light,
        )
        reading = (
            f"{plural(sum(histogram.normal), 'normal X-ray')} and "
            f"{count(sum(histogram.pneumonia))} with pneumonia by "
            f"{'predicted probability' if is_probability else 'score'}: "
            f"{plural(matrix.fp, 'false alarm')} at or above the threshold "
            f"{unrounded(threshold)}, {count(matrix.fn)} missed below it."
        )
        return to_svg(figure, "scores", reading)


def group_rates(groups: Sequence[Group], rate: str, level: float, name: str = "groups") -> Svg:
    """Draw a rate and its interval per group of images (bacterial, viral), on one scale."""
    with drawing():
        height = 70 + 38 * len(groups)
        labels = [_group_label(group) for group in groups]
        longest = max((text_width(label, _GROUP_SIZE) for label in labels), default=0)
        margin = max(_GROUP_MARGINS[0], longest + _TICK_GAP)
        figure, axes = new_axes(WIDTH, height, margins=(margin, 34, 62, 14))
        shown = [e for g in groups for e in (g.estimate.low, g.estimate.value) if e is not None]
        start = max(0.0, float(np.floor((min(shown, default=0.0) - 0.02) * 10) / 10))
        axes.set_xlim(start, 1.0)
        for row, group in enumerate(groups):
            value, low, high = group.estimate.value, group.estimate.low, group.estimate.high
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=group.colour.light, linewidth=2)
            if value is not None:
                mark_point(axes, value, row, group.colour)
            draw_text(axes, 1 + 0.05 * (1 - start), row, number(value), bold=True, size=10.5)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_yticks(range(len(groups)), labels)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
        axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=_GROUP_SIZE)
        axes.set_xlabel(rate, labelpad=5)
        parts = [f"{in_words(g.estimate, level)} for {g.label.lower()}" for g in groups]
        return to_svg(figure, name, f"{rate}: {'; '.join(parts)}.")


def _group_label(group: Group) -> str:
    """The name of a group, shortened to the widest margin, and its number of images in full."""
    total = f" ({count(group.total)})"
    room = _GROUP_MARGINS[1] - _TICK_GAP - text_width(total, _GROUP_SIZE)
    return shortened(group.label, room, _GROUP_SIZE) + total


def _band(axes: Axes, curve: Curve) -> None:
    if curve.low:
        opacity = 0.16
        axes.fill_between(
            curve.x, curve.low, curve.high, color=INK.light, alpha=opacity, linewidth=0
        )
    axes.plot(curve.x, curve.y, color=INK.light, clip_on=False)


def _mark_threshold(axes: Axes, point: OperatingPoint) -> None:
    """Mark the operating point; its label is below it, on the side with more room."""
    mark_point(axes, point.x, point.y)
    right = point.x < 0.5
    text = f"threshold {unrounded(point.threshold)}"
    x = point.x + (0.025 if right else -0.025)
    draw_text(axes, x, max(point.y - 0.075, 0.2), text, ha="left" if right else "right", bold=True)


def _anchor(threshold: float) -> Any:
    """Horizontal alignment: centred on the threshold, but kept inside the figure."""
    if threshold < 0.15:
        return "left"
    return "right" if threshold > 0.85 else "center"


def _bars(
    axes: Axes, edges: Sequence[float], counts: Sequence[int], threshold: float, label: int
) -> None:
    """Draw the histogram of one class; bars entirely on the wrong side are solid.

    Counts are on a square-root scale to keep the few wrong predictions visible.
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


def _count_wrong(axes: Axes, text: str) -> None:
    """Write the number of wrong predictions beside the title, where no threshold is in the way."""
    axes.set_title(text, loc="right", fontsize=9.5, fontweight="bold", color=INK.light, pad=7)


def likeness_intervals(found: Sequence[PatientSimilarity]) -> Svg:
    """Draw the excess similarity of images with the same id; 0 means none."""
    with drawing():
        figure, axes = new_axes(WIDTH, 62 + _ROW * len(found), margins=(_LABELS_WIDTH, 34, 44, 12))
        ends = [end for one in found for end in (one.low, one.high)]
        axes.set_xlim(min(-0.03, *ends) - 0.02, max(0.23, *ends) + 0.02)
        axes.axvline(0, color=MUTED.light, linewidth=0.8)
        rows = [
            (likeness_name(one), one.difference, one.low, one.high, _colour(one.where))
            for one in found
        ]
        _rows(axes, rows)
        axes.set_xlabel("Similarity, same id minus different ids", labelpad=5)
        parts = [
            f"{name} {number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            for name, value, low, high, _ in rows
        ]
        return to_svg(figure, "likeness", f"Excess similarity: {'; '.join(parts)}.")


def split_areas(tests: Sequence[SplitTest]) -> Svg:
    """Draw the AUC of classifiers between two splits; 0.5 means indistinguishable."""
    with drawing():
        figure, axes = new_axes(WIDTH, 62 + _ROW * len(tests), margins=(_LABELS_WIDTH, 34, 44, 12))
        axes.set_xlim(min(0.4, *(test.low - 0.02 for test in tests)), 1.0)
        axes.axvline(_CHANCE, color=MUTED.light, linewidth=0.8)
        rows = [(splits_name(t), t.auc, t.low, t.high, _colour(t.label)) for t in tests]
        _rows(axes, rows)
        axes.set_xlabel("AUC, cross-validated by patient", labelpad=5)
        parts = [
            f"{name} {number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            for name, value, low, high, _ in rows
        ]
        return to_svg(figure, "split-tests", f"AUC between splits: {'; '.join(parts)}.")


def likeness_name(one: PatientSimilarity) -> str:
    """`Pneumonia in train`."""
    return _in_sentence(one.where)


def splits_name(test: SplitTest) -> str:
    """`Pneumonia, train and test`."""
    return f"{_in_sentence(test.label)}, {test.first} and {test.second}"


def _in_sentence(text: str) -> str:
    for name in CLASS_NAMES:
        if text.startswith(name):
            return name.capitalize() + text[len(name) :]
    return text


def _colour(text: str) -> Colour:
    return CLASS_COLOURS[1] if text.startswith(CLASS_NAMES[1]) else CLASS_COLOURS[0]


def _rows(axes: Axes, rows: Sequence[tuple[str, float, float, float, Colour]]) -> None:
    _, right = axes.get_xlim()
    left, _ = axes.get_xlim()
    for row, (_, value, low, high, colour) in enumerate(rows):
        axes.plot([low, high], [row, row], color=colour.light, linewidth=2, clip_on=False)
        mark_point(axes, value, row, colour)
        draw_text(axes, right + 0.05 * (right - left), row, number(value, 2), bold=True, size=10.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=9.5)


def decision(curve: DecisionCurve) -> Svg:
    """Draw the net benefit of the model, of treating all patients, and of treating none."""
    x = np.asarray(curve.probability)
    with drawing():
        figure, axes = new_axes(margins=(46, 34, 14, 26))
        name_axes(axes, "Threshold probability for treatment", "Net benefit per patient")
        most = max(curve.prevalence, 0.01)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.25 * most, 1.12 * most)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        grid(axes)
        axes.axhline(0, color=MUTED.light, linewidth=0.9)
        axes.plot(x, curve.treat_all, color=NORMAL.light, linewidth=1.2, dashes=(4, 2))
        if curve.low:
            axes.fill_between(
                x, curve.low, curve.high, color=PNEUMONIA.light, alpha=0.18, linewidth=0
            )
        axes.plot(x, curve.model, color=PNEUMONIA.light)
        draw_text(axes, 0.98, 0.06, "treat none", MUTED, ha="right", in_axes=True)
        draw_text(axes, 0.3, 1.03 * most, "model", PNEUMONIA, bold=True)
        draw_text(axes, 0.98, 0.97, "dashes: treat all", NORMAL, ha="right", in_axes=True)
        half = curve.model[int(np.abs(x - 0.5).argmin())]
        reading = (
            f"Net benefit at a prevalence of {percent(curve.prevalence, 1)}: at a threshold "
            f"probability of 0.5, the model’s net benefit is {number(half)} per patient."
        )
        return to_svg(figure, "decision", reading)


def risk_coverage(curve: RiskCoverage, level: float) -> Svg:
    """Draw the error rate if a result is given only for the most certain images."""
    with drawing():
        figure, axes = new_axes(margins=(46, 34, 14, 26))
        name_axes(axes, "Coverage: most certain images first", "Risk: error rate among these")
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, max(1.15 * max(curve.risk), 0.01))
        grid(axes)
        axes.plot(curve.coverage, curve.risk, color=INK.light)
        draw_text(axes, 0.03, 0.93, f"Area {number(curve.area.value, 4)}", bold=True, in_axes=True)
        reading = (
            f"At the prevalence of these images and full coverage, {percent(curve.risk[-1], 1)} of "
            f"the predictions are wrong; the area under the curve is "
            f"{in_words(curve.area, level, 4)}."
        )
        return to_svg(figure, "risk-coverage", reading)
