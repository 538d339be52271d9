"""Convert Matplotlib figures to small SVGs, and set up their axes, grid and labels.

In the SVG, colours are CSS variables, so that figures follow a dark page and print; ids are
prefixed with the figure's name, so that several figures can share a page; metadata, anonymous
groups and superfluous digits are dropped. Equal figures give equal bytes. Figures are drawn through
Matplotlib's object interface, without pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pneumoscope.storage import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_LETTERS = 500
_TAG = re.compile(r"<[^>]+>")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"')
_FONT = re.compile(r"\s*font-family:[^;\"]*;?")
_DROPPED = (
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', re.DOTALL),
    re.compile(r' transform="rotate\(-?0 [^"]*\)"'),
)
POINTS_PER_INCH = 72
SMALL_TEXT = 9.5


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour for light pages and its counterpart for dark ones; `variable` is its CSS name."""

    variable: str
    light: str
    dark: str


INK = Colour("--ink", "#1c2126", "#e8ebed")
MUTED = Colour("--muted", "#5a646d", "#a3adb5")
RULE = Colour("--rule", "#d9dee2", "#3a4147")
NORMAL = Colour("--normal", "#1f6fa8", "#74b9e6")
PNEUMONIA = Colour("--pneumonia", "#b44a06", "#f2a067")
PAPER = Colour("--paper", "#fefefd", "#15191c")
PALETTE = (INK, MUTED, RULE, NORMAL, PNEUMONIA, PAPER)
"""Blue and vermilion are distinguishable in all common forms of colour blindness and in grey."""

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK.light,
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": MUTED.light,
    "axes.labelsize": 10.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "path.simplify_threshold": 0.2,
}


@dataclass(frozen=True, slots=True)
class Svg:
    """A drawn figure.

    Attributes:
        name: short identifier, unique on its page (`roc`); also the stem of its file name.
        reading: one sentence that describes the figure, for screen readers and captions.
        inline: the `<svg>` element, for a page that defines the colours.
    """

    name: str
    reading: str
    inline: str

    @property
    def standalone(self) -> str:
        """The figure as a stand-alone SVG, with its colours for light and dark viewers."""
        light = ";".join(f"{c.variable}:{c.light}" for c in PALETTE)
        dark = ";".join(f"{c.variable}:{c.dark}" for c in PALETTE)
        style = (
            f"<style>svg{{{light};font-family:system-ui,sans-serif}}"
            f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
        )
        head, tail = self.inline.split(">", 1)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>\n{style}{tail}\n'

    def save(self, path: Path) -> None:
        """Write the stand-alone figure to `path`, completely or not at all."""
        write_text(path, self.standalone)


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the pages' Matplotlib style within a `with` block; global settings are restored."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, name: str, reading: str) -> Svg:
    """Convert a figure to an `Svg`; equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    source = buffer.getvalue().decode("utf-8")
    return Svg(name, reading, _tidy(source, name, reading))


def _tidy(source: str, name: str, reading: str) -> str:
    body = source[source.index("<svg") :]
    for pattern in _DROPPED:
        body = pattern.sub("", body)
    used = {first or second for first, second in _REFERENCE.findall(body)}

    def rewrite(match: re.Match[str]) -> str:
        tag = _ID.sub(lambda m: f'id="{name}-{m[1]}"' if m[1] in used else "", match[0])
        tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
        tag = _LONG_NUMBER.sub(_rounded, _FONT.sub("", tag))
        for colour in PALETTE:
            tag = tag.replace(colour.light, f"var({colour.variable},{colour.light})")
        return re.sub(r"\s+(?=[>/])", "", re.sub(r"\s+", " ", tag))

    body = _TAG.sub(rewrite, body[body.index(">") + 1 :])
    body = _without_empty_groups(re.sub(r">\s+<", "><", body).strip())
    width, height = _size(source)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(printable(reading))}" '
        f'style="stroke-linejoin:round;stroke-linecap:butt">{body}'
    )


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")


def _without_empty_groups(body: str) -> str:
    """Drop empty groups, and unwrap groups without attributes."""
    body = re.sub(r"<g(?: [^>]*)?/>", "", body)
    kept: list[bool] = []

    def unwrap(match: re.Match[str]) -> str:
        tag = match[0]
        if tag == "</g>":
            return tag if kept.pop() else ""
        kept.append(tag != "<g>")
        return tag if kept[-1] else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", unwrap, body)


def _size(source: str) -> tuple[str, str]:
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', source)
    if match is None:  # pragma: no cover - Matplotlib always writes one
        return "400", "300"
    return match[1], match[2]


def variables(*, dark: bool) -> Mapping[str, str]:
    """The palette's CSS variables, for the style sheet of a page."""
    return {c.variable: c.dark if dark else c.light for c in PALETTE}


WIDTH, HEIGHT = 400, 330
SMALL_WIDTH, SMALL_HEIGHT = 255, 210


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
    """Label the x axis below it and the y axis horizontally above it."""
    axes.set_xlabel(x_label, labelpad=5)
    axes.set_title(y_label, loc="left", x=0, fontsize=10, color=MUTED.light, pad=pad)


def unit_square(axes: Axes) -> None:
    """Set both axes to 0–1 with ticks at quarters and a light grid."""
    ticks = [0, 0.25, 0.5, 0.75, 1]
    labels = ["0", "0.25", "0.5", "0.75", "1"]
    axes.set_xlim(-0.012, 1.012)
    axes.set_ylim(-0.012, 1.012)
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    grid(axes)


def grid(axes: Axes, axis: str = "y") -> None:
    """Draw light grid lines behind the data instead of ticks and a spine."""
    axes.set_axisbelow(True)
    if axis in ("y", "both"):
        axes.grid(visible=True, axis="y", color=RULE.light, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    if axis in ("x", "both"):
        axes.grid(visible=True, axis="x", color=RULE.light, linewidth=0.7)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)


def draw_text(  # noqa: PLR0913 - a text has a position, an alignment and a style
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
    """Write `text` at a point in data coordinates, or in axes coordinates if `in_axes`."""
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


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of `text` in points in the font of the figures; browsers use narrower ones."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(printable(text), font, ismath=False)
    return float(width)


def shortened(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """`text` with its end replaced by `…` if it is wider than `room` points."""
    # Measuring takes long for a name of a million characters, which no room holds.
    start = printable(text[:_MOST_LETTERS])
    if len(start) == len(text) and text_width(start, size, bold=bold) <= room:
        return start
    kept = len(start) - 1
    while kept > 1 and text_width(f"{start[:kept].rstrip()}…", size, bold=bold) > room:
        kept -= 1
    return f"{start[:kept].rstrip()}…"


def printable(text: str) -> str:
    """`text` with a space for each character that XML or a font has no sign for."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def mark_point(axes: Axes, x: float, y: float, colour: Colour = INK) -> None:
    """Draw a dot with a halo that separates it from the line below."""
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
    """Move label positions apart so that neighbours are at least `gap` apart."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = list(positions)
    for before, after in pairwise(order):
        overlap = gap - (placed[after] - placed[before])
        if overlap > 0:
            placed[before] -= overlap / 2
            placed[after] += overlap / 2
    return placed
