"""One Matplotlib figure → one small SVG that follows the page's colours and fonts.

Comes in: a `Figure` drawn with the colours of `PALETTE`, and a sentence that says what it shows.
Goes out: `Svg`, the same bytes for the same figure. Colours become CSS variables (so that dark
pages and paper work), ids get the figure's name as a prefix (so that figures share a page), and
what nobody reads (metadata, anonymous groups, needless digits) is dropped.
Does not know what the figure shows.

The figures' common frame: size, margins, grid, labels that stand beside what they name.

Comes in: pixels and texts. Goes out: Matplotlib axes, drawn through the object interface (no
pyplot, no global figure). Knows nothing of what is plotted.
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
    from matplotlib.figure import Figure
if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour on a light page and its counterpart on a dark one; `variable` is its CSS name."""

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
"""Blue against vermilion: told apart in every common form of colour blindness and in grey."""

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


@dataclass(frozen=True, slots=True)
class Svg:
    """A drawn figure.

    Attributes:
        name: short identifier, unique in its page (`roc`); also the stem of its file.
        reading: one sentence that says what the figure shows, for those who don't see it.
        inline: the `<svg>` element, to be put into a page that defines the colours.
    """

    name: str
    reading: str
    inline: str

    @property
    def standalone(self) -> str:
        """The figure as a file of its own, with its colours for light and dark viewers."""
        light = ";".join(f"{c.variable}:{c.light}" for c in PALETTE)
        dark = ";".join(f"{c.variable}:{c.dark}" for c in PALETTE)
        style = (
            f"<style>svg{{{light};font-family:system-ui,sans-serif}}"
            f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
        )
        head, tail = self.inline.split(">", 1)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>\n{style}{tail}\n'

    def save(self, path: Path) -> None:
        """Write the stand-alone figure to `path`, whole or not at all."""
        write_text(path, self.standalone)


@contextmanager
def drawing() -> Iterator[None]:
    """The pages' Matplotlib style, for the time of a `with` block; global settings stay."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, name: str, reading: str) -> Svg:
    """Turn a figure into an `Svg`; the same figure gives the same bytes."""
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
        f'width="{width}" height="{height}" role="img" aria-label="{escape(reading)}" '
        f'style="stroke-linejoin:round;stroke-linecap:butt">{body}'
    )


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")


def _without_empty_groups(body: str) -> str:
    """Drop groups with nothing in them, unwrap those that carry nothing (no clip, no shift)."""
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
    if match is None:  # pragma: no cover - Matplotlib has always written one
        return "400", "300"
    return match[1], match[2]


def variables(*, dark: bool) -> Mapping[str, str]:
    """The CSS variables of the palette, for the style sheet of a page."""
    return {c.variable: c.dark if dark else c.light for c in PALETTE}


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


def draw_text(  # noqa: PLR0913 - a text has a place, an anchor and a look
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
