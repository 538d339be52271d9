"""The figures' common frame: size, margins, grid, labels that stand beside what they name.

Comes in: pixels and texts. Goes out: Matplotlib axes, drawn through the object interface (no
pyplot, no global figure). Knows nothing of what is plotted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from pneumoscope.report.svg import INK, MUTED, PAPER, RULE, Colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS_PER_INCH = 72
WIDTH, HEIGHT = 400, 330
SMALL_WIDTH, SMALL_HEIGHT = 255, 210
SMALL_TEXT = 9.5


def new_axes(
    width: float = WIDTH,
    height: float = HEIGHT,
    margins: tuple[float, float, float, float] = (40, 34, 14, 26),
) -> tuple[Figure, Axes]:
    """A figure of `width` × `height` pixels with one axes; margins: left, bottom, right, top."""
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    left, bottom, right, top = margins
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    return figure, figure.add_axes(box)


def name_axes(axes: Axes, x_label: str, y_label: str, pad: float = 9) -> None:
    """Label the x axis below and the y axis above it, where it reads without a tilted head."""
    axes.set_xlabel(x_label, labelpad=5)
    axes.set_title(y_label, loc="left", x=0, fontsize=10, color=MUTED.light, pad=pad)


def unit_square(axes: Axes) -> None:
    """Both axes from 0 to 1 with quarter ticks and a faint grid."""
    ticks = [0, 0.25, 0.5, 0.75, 1]
    labels = ["0", "0.25", "0.5", "0.75", "1"]
    axes.set_xlim(-0.012, 1.012)
    axes.set_ylim(-0.012, 1.012)
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    grid(axes)


def grid(axes: Axes, axis: str = "y") -> None:
    """Faint lines behind the data instead of ticks and a spine."""
    axes.set_axisbelow(True)
    if axis in ("y", "both"):
        axes.grid(visible=True, axis="y", color=RULE.light, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    if axis in ("x", "both"):
        axes.grid(visible=True, axis="x", color=RULE.light, linewidth=0.7)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)


def say(  # noqa: PLR0913 - a text has a place, an anchor and a look
    axes: Axes,
    x: float,
    y: float,
    text: str,
    colour: Colour = INK,
    *,
    ha: str = "left",
    va: str = "center",
    size: float = SMALL_TEXT,
    bold: bool = False,
    in_axes: bool = False,
) -> None:
    """Write `text` at a point of the data, or at a share of the axes."""
    axes.text(
        x,
        y,
        text,
        color=colour.light,
        ha=ha,
        va=va,
        fontsize=size,
        fontweight="bold" if bold else "normal",
        transform=axes.transAxes if in_axes else axes.transData,
        zorder=6,
    )


def mark_point(axes: Axes, x: float, y: float, colour: Colour = INK) -> None:
    """A dot with a halo, so that it stands clear of the line below it."""
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=7.5,
        markerfacecolor=colour.light,
        markeredgecolor=PAPER.light,
        markeredgewidth=1.6,
        linestyle="none",
        clip_on=False,
        zorder=5,
    )


def spread(positions: list[float], gap: float) -> list[float]:
    """Move labels' positions apart until each two are at least `gap` from each other."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = list(positions)
    for before, after in pairwise(order):
        overlap = gap - (placed[after] - placed[before])
        if overlap > 0:
            placed[before] -= overlap / 2
            placed[after] += overlap / 2
    return placed
