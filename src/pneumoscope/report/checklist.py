"""`checklist.html`: reporting guidelines, completed as far as the files of a run allow.

The guidelines are CLAIM, TRIPOD+AI, STARD-AI and DECIDE-AI. Their items are data: one TOML file per
guideline in `report/checklists/`. Item numbers are the guideline's own; item texts are short
paraphrases that do not replace the guideline itself.

`flow_diagram` draws the flow of participants, from the images found to the four cells of the
confusion matrix. It follows STARD 2015 (Bossuyt et al. 2015, doi:10.1136/bmj.h5527): index test
against reference standard. Equal counts give equal bytes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal

from matplotlib.patches import Rectangle

from pneumoscope.evaluation.metrics import ConfusionMatrix
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.content import Counted, Flow
from pneumoscope.report.formatting import plural, unrounded
from pneumoscope.report.page import Drawn, FiguresView, Section, render_page
from pneumoscope.report.svg import (
    INK,
    MUTED,
    NORMAL,
    PNEUMONIA,
    POINTS_PER_INCH,
    SMALL_TEXT,
    Colour,
    Svg,
    draw_text,
    drawing,
    shortened,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Fact = Literal[
    "",
    "agreement",
    "availability",
    "calculation",
    "characteristics",
    "crosstab",
    "data",
    "disjoint",
    "ensemble",
    "errors",
    "explanation",
    "exposure",
    "flow",
    "imbalance",
    "indeterminate",
    "initial",
    "inputs",
    "internal",
    "limits",
    "measures",
    "missing",
    "model",
    "modifications",
    "output",
    "partitions",
    "performance",
    "preprocessing",
    "records",
    "refusals",
    "sample",
    "selection",
    "software",
    "specification",
    "subgroups",
    "technology",
    "threshold",
    "training",
    "uncertainty",
    "updating",
]
"""What the files of a run can document; `""`: nothing."""

AUTHORS = "authors"
"""Who completes an item that names nobody else."""

_WIDTH = 400
_LINE = 17
_PADDING = 11
_GAP = 28
_MAIN = (4.0, 186.0)
"""Left edge and width of the boxes in the main column."""

_ASIDE = (214.0, 182.0)
"""Left edge and width of the boxes for excluded images."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a reporting guideline.

    Attributes:
        number: the guideline's own number, such as `12a`.
        text: a short paraphrase of what must be reported.
        fact: the fact of a run that covers the item, or a part of it.
        who: who completes the item; `""` if the run covers it fully.
    """

    number: str
    text: str
    fact: Fact = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class Guideline:
    """A reporting guideline.

    Attributes:
        name: such as `CLAIM 2024`.
        identifier: unique on the page.
        paper: the publication to cite, with its DOI.
        items: in the guideline's order.
    """

    name: str
    identifier: str
    paper: str
    items: tuple[Item, ...]


def read_guideline(identifier: str) -> Guideline:
    """Read a guideline from `report/checklists/IDENTIFIER.toml` inside the package.

    Args:
        identifier: `claim`, `decide`, `stard` or `tripod`.

    Raises:
        FileNotFoundError: the package holds no such file.
        TypeError: an item has a key other than `number`, `text`, `fact` and `who`.
    """
    file = resources.files("pneumoscope.report") / "checklists" / f"{identifier}.toml"
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return Guideline(
        document["name"],
        document["identifier"],
        document["paper"],
        tuple(Item(**item) for item in document["items"]),
    )


CLAIM = read_guideline("claim")
DECIDE = read_guideline("decide")
STARD = read_guideline("stard")
TRIPOD = read_guideline("tripod")


def flow_diagram(flow: Flow) -> Svg:
    """Draw boxes from top to bottom, with excluded images to the right."""
    steps = _steps(flow)
    sides = _sides(flow)
    heights = [
        max(_height(lines), _height(side) if side else 0)
        for lines, side in zip(steps, (*sides, ()), strict=True)
    ]
    cells = _height(("", "", ""))
    total = sum(heights) + _GAP * len(steps) + cells + 8
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH / POINTS_PER_INCH, total / POINTS_PER_INCH))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, _WIDTH)
        axes.set_ylim(total, 0)
        axes.axis("off")
        top = 4.0
        for place, lines in enumerate(steps):
            _box(axes, _MAIN, top, heights[place], lines)
            if place < len(sides) and sides[place]:
                _box(axes, _ASIDE, top, heights[place], sides[place], MUTED)
                middle = top + heights[place] / 2
                _arrow(axes, (sum(_MAIN), middle), (_ASIDE[0], middle))
            top += heights[place] + _GAP
            if place < len(steps) - 1:
                _arrow(axes, (_centre(_MAIN), top - _GAP), (_centre(_MAIN), top))
        _result(axes, flow.matrix, top)
        return to_svg(figure, "flow", reading(flow))


def reading(flow: Flow) -> str:
    """Describe the diagram in words."""
    matrix = flow.matrix
    reasons = "; ".join(f"{name}: {count}" for name, count in flow.refused)
    refused = sum(count for _, count in flow.refused)
    return (
        f"Of {_both(flow.found)}, {_both(flow.evaluated)} were evaluated"
        f"{f', of which {refused} gave no result ({reasons})' if reasons else ''}. "
        f"Predicted PNEUMONIA: {matrix.tp} labelled PNEUMONIA and {matrix.fp} labelled NORMAL; "
        f"predicted NORMAL: {matrix.tn} labelled NORMAL and {matrix.fn} labelled PNEUMONIA."
    )


def _both(counted: Counted) -> str:
    return f"{plural(counted.images, 'X-ray')} of {plural(counted.patients, 'patient')}"


def _steps(flow: Flow) -> tuple[tuple[str, ...], ...]:
    return (
        (f"Found in {flow.found.name}", _both(flow.found)),
        (f"Evaluated: {flow.evaluated.name}", _both(flow.evaluated)),
        ("Index test: the model", _both(flow.scored), f"threshold {unrounded(flow.threshold)}"),
    )


def _sides(flow: Flow) -> tuple[tuple[str, ...], ...]:
    """The images excluded after the first and after the second step."""
    other = [line for one in flow.elsewhere for line in (f"{one.name}:", _both(one))]
    refused = tuple(f"{count:,} × {name}" for name, count in flow.refused)
    return (
        ("Not evaluated here", *other) if other else (),
        ("No result", *refused) if refused else ("No result: none",),
    )


def _height(lines: Sequence[str]) -> float:
    return len(lines) * _LINE + 2 * _PADDING


def _centre(column: tuple[float, float]) -> float:
    return column[0] + column[1] / 2


def _box(
    axes: Axes,
    column: tuple[float, float],
    top: float,
    height: float,
    lines: Sequence[str],
    colour: Colour = INK,
) -> None:
    """Draw a box with text; the first line is bold, and lines that are too long are shortened."""
    axes.add_patch(
        Rectangle(
            (column[0], top), column[1], height, fill=False, edgecolor=colour.light, linewidth=1
        )
    )
    start = top + (height - len(lines) * _LINE) / 2 + _LINE / 2
    for place, line in enumerate(lines):
        y = start + place * _LINE
        shown = shortened(line, column[1] - 2 * _PADDING, SMALL_TEXT, bold=place == 0)
        draw_text(axes, column[0] + _PADDING, y, shown, colour, bold=place == 0)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": MUTED.light,
            "linewidth": 1,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def _result(axes: Axes, matrix: ConfusionMatrix, top: float) -> None:
    """Draw the two predicted classes side by side, each with its reference labels."""
    columns = (_MAIN, (210.0, 186.0))
    predicted = (
        (1, matrix.tp + matrix.fp, (matrix.tp, matrix.fp), PNEUMONIA),
        (0, matrix.tn + matrix.fn, (matrix.fn, matrix.tn), NORMAL),
    )
    for column, (label, total, (pneumonia, normal), colour) in zip(columns, predicted, strict=True):
        lines = (
            f"Predicted {CLASS_NAMES[label]}: {total:,}",
            f"reference {CLASS_NAMES[1]}: {pneumonia:,}",
            f"reference {CLASS_NAMES[0]}: {normal:,}",
        )
        _box(axes, column, top, _height(lines), lines, colour)
        _arrow(axes, (_centre(_MAIN), top - _GAP), (_centre(column), top))


GUIDELINES = (CLAIM, TRIPOD, STARD)


@dataclass(frozen=True, slots=True)
class ChecklistContent:
    """Everything on the page of the checklists.

    Attributes:
        name: of the run or evaluation, for the reader.
        answers: sentences by fact; facts that are not known are absent.
        flow: the flow of participants.
        guidelines: the checklists to show, in order.
    """

    name: str
    answers: Mapping[Fact, str]
    flow: Flow
    guidelines: tuple[Guideline, ...] = GUIDELINES


@dataclass(frozen=True, slots=True)
class ChecklistHead:
    """The texts at the top of the page."""

    title: str
    eyebrow: str
    summary: str
    banner: str


@dataclass(frozen=True, slots=True)
class ItemView:
    """A row: the item, what the run reports on it, and who completes it (`""`: nobody)."""

    number: str
    text: str
    answer: str
    who: str


@dataclass(frozen=True, slots=True)
class GuidelineView:
    """The table of a guideline's items."""

    name: str
    paper: str
    rows: tuple[ItemView, ...]


def render_checklist(content: ChecklistContent) -> str:
    """The page as HTML; equal contents give equal bytes."""
    return render_page("checklist.html.j2", _head(content), _sections(content))


def _head(content: ChecklistContent) -> ChecklistHead:
    counts = "; ".join(
        f"{guideline.name}: {_filled(guideline, content)} of {plural(len(guideline.items), 'item')}"
        for guideline in content.guidelines
    )
    return ChecklistHead(
        title="Reporting checklists",
        eyebrow=content.name,
        summary="Items completed, fully or in part, from the files of this run – "
        f"{counts}. The last column names who completes the other items.",
        banner="The items are paraphrased. Read the guidelines themselves before you submit. A "
        "completed item does not mean that the study is good.",
    )


def _filled(guideline: Guideline, content: ChecklistContent) -> int:
    return sum(bool(_answer(item, content)) for item in guideline.items)


def _answer(item: Item, content: ChecklistContent) -> str:
    return content.answers.get(item.fact, "") if item.fact else ""


def _sections(content: ChecklistContent) -> tuple[Section, ...]:
    drawn = FiguresView(
        "Index test: the model. Reference standard: the labels of the data set.",
        (Drawn("", flow_diagram(content.flow)),),
    )
    flow = Section("flow", "Flow of participants", "Flow", "sections/figures.html.j2", drawn)
    return (flow, *(_section(guideline, content) for guideline in content.guidelines))


def _section(guideline: Guideline, content: ChecklistContent) -> Section:
    view = GuidelineView(
        guideline.name,
        f"{guideline.paper}.",
        tuple(_row(item, content) for item in guideline.items),
    )
    return Section(
        guideline.identifier, guideline.name, guideline.name, "sections/checklist.html.j2", view
    )


def _row(item: Item, content: ChecklistContent) -> ItemView:
    answer = _answer(item, content)
    if not answer:
        return ItemView(item.number, item.text, "", item.who or AUTHORS)
    who = f"{item.who}, to add what is missing" if item.who else ""
    return ItemView(item.number, item.text, answer, who)
