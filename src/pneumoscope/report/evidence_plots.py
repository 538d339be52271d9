"""The figures of an audit's evidence: dots with intervals on one scale.

Comes in: `Likeness` and `SplitTest` records. Goes out: `Svg`, the same bytes for the same input.
Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumoscope.data.audit_evidence import Likeness, SplitTest
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.axes import WIDTH, grid, mark_point, new_axes, say
from pneumoscope.report.formatting import number
from pneumoscope.report.plots import CLASS_COLOURS
from pneumoscope.report.svg import INK, MUTED, Colour, Svg, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 30
_LABELS_WIDTH = 168
_CHANCE = 0.5


def likeness_intervals(found: Sequence[Likeness]) -> Svg:
    """How much more alike films of one id are than strangers; 0 is not at all."""
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
        axes.set_xlabel("Likeness above that of strangers", labelpad=5)
        parts = [
            f"{name} {number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            for name, value, low, high, _ in rows
        ]
        return to_svg(figure, "likeness", f"Likeness above strangers: {'; '.join(parts)}.")


def split_areas(tests: Sequence[SplitTest]) -> Svg:
    """How well a classifier tells two splits apart; 0.5 is not at all."""
    with drawing():
        figure, axes = new_axes(WIDTH, 62 + _ROW * len(tests), margins=(_LABELS_WIDTH, 34, 44, 12))
        axes.set_xlim(min(0.4, *(test.low - 0.02 for test in tests)), 1.0)
        axes.axvline(_CHANCE, color=MUTED.light, linewidth=0.8)
        rows = [(splits_name(t), t.auc, t.low, t.high, _colour(t.label)) for t in tests]
        _rows(axes, rows)
        axes.set_xlabel("AUC, held out by patient", labelpad=5)
        parts = [
            f"{name} {number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            for name, value, low, high, _ in rows
        ]
        return to_svg(figure, "split-tests", f"AUC of telling splits: {'; '.join(parts)}.")


def likeness_name(one: Likeness) -> str:
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
        say(axes, right + 0.05 * (right - left), row, number(value, 2), bold=True, size=10.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=9.5)
