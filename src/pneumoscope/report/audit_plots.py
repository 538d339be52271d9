"""The figures of an audit: how many images of each class, and how their sizes and greys spread.

Comes in: records of an `Audit`. Goes out: `Svg`, the same bytes for the same input.
Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pneumoscope.data.audit_record import Distribution, Group, Quantity
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.axes import WIDTH, grid, mark_point, name_axes, new_axes, say
from pneumoscope.report.formatting import count, file_size, plural
from pneumoscope.report.plots import CLASS_COLOURS
from pneumoscope.report.svg import INK, RULE, Colour, Svg, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 26
_MEDIAN = 0.5
_BARS = ((1.0, 0.9, 0.8), (0.9, 4.0, 0.45), (0.5, 9.0, 0.6))
"""Share of the images around the median, line width, opacity."""

QUANTITY_NAMES: Mapping[Quantity, str] = {
    "width": "Width, pixels",
    "height": "Height, pixels",
    "aspect": "Aspect, width over height",
    "file_bytes": "File size, kB",
    "mean": "Mean intensity, 0 to 1",
    "deviation": "Contrast: deviation of intensity",
}


def class_balance(groups: Sequence[Group]) -> Svg:
    """Images per split and class as bars that start at one line."""
    with drawing():
        figure, axes = new_axes(WIDTH, 24 + _ROW * len(groups), margins=(128, 12, 62, 12))
        most = max((group.images for group in groups), default=1)
        for row, group in enumerate(groups):
            axes.barh(row, group.images, height=0.62, color=_colour(group.label).light, linewidth=0)
            say(axes, group.images + 0.02 * most, row, count(group.images), size=10)
        axes.set_xlim(0, most)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _rows(axes, [(group.split, group.label) for group in groups])
        parts = [f"{where(g.split)}{g.label.lower()} {count(g.images)}" for g in groups]
        return to_svg(figure, "balance", f"Images: {'; '.join(parts)}.")


def spread_of(
    quantity: Quantity, distributions: Sequence[Distribution], levels: Sequence[float]
) -> Svg:
    """One quantity per split and class: all images (thin), 90 % (thick), half, and the median."""
    with drawing():
        figure, axes = new_axes(WIDTH, 76 + _ROW * len(distributions), margins=(128, 32, 16, 30))
        for row, found in enumerate(distributions):
            at = dict(zip(levels, found.quantiles, strict=True))
            _spread_bar(axes, row, at, _colour(found.label))
        _rows(axes, [(found.split, found.label) for found in distributions])
        grid(axes, "x")
        axes.margins(x=0.04)
        axes.locator_params(axis="x", nbins=5)
        axes.spines["bottom"].set_color(RULE.light)
        if quantity == "file_bytes":
            axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:,.0f}")
        elif quantity in ("width", "height"):
            axes.xaxis.set_major_formatter(lambda side, _: f"{side:,.0f}")
        name_axes(axes, "", QUANTITY_NAMES[quantity])
        parts = [
            f"{where(found.split)}{found.label.lower()} {value_of(quantity, median)}"
            for found in distributions
            for level, median in zip(levels, found.quantiles, strict=True)
            if level == _MEDIAN
        ]
        return to_svg(figure, f"spread-{quantity}", f"Medians: {'; '.join(parts)}.")


def _spread_bar(axes: Axes, row: int, at: Mapping[float, float], colour: Colour) -> None:
    for share, width, opacity in _BARS:
        low, high = round((1 - share) / 2, 4), round((1 + share) / 2, 4)
        if low in at and high in at:
            axes.plot(
                [at[low], at[high]],
                [row, row],
                color=colour.light,
                linewidth=width,
                alpha=opacity,
                solid_capstyle="butt",
            )
    if _MEDIAN in at:
        mark_point(axes, at[_MEDIAN], row)


def value_of(quantity: Quantity, value: float) -> str:
    """A value of a quantity with its unit."""
    if quantity == "file_bytes":
        return file_size(round(value))
    if quantity in ("width", "height"):
        return f"{count(round(value))} px"
    return f"{value:.2f}"


def where(split: str) -> str:
    """`train, `, or nothing where the data set has no splits."""
    return "" if split == "none" else f"{split} "


def images_per_patient(table: Sequence[tuple[int, int]]) -> str:
    """`2,100 patients with 1 image, 500 with 2, …` for the facts of a page."""
    return ", ".join(
        f"{plural(patients, 'patient')} with {plural(images, 'image')}"
        for images, patients in table
    )


def _colour(label: str) -> Colour:
    return CLASS_COLOURS[CLASS_NAMES.index(label)] if label in CLASS_NAMES else INK


def _rows(axes: Axes, cells: Sequence[tuple[str, str]]) -> None:
    """Name the rows from the top down."""
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_yticks(range(len(cells)), [f"{where(split)}{label.lower()}" for split, label in cells])
    axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=10)
    axes.spines["left"].set_visible(False)
