"""`checklist.html`: reporting guidelines, filled in as far as a run can tell.

Comes in: what the run says of each fact, and its flow of participants. Goes out: one HTML file.
Reads no file and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.report.checklists.claim import CLAIM
from pneumoscope.report.checklists.item import AUTHORS, Fact, Guideline, Item
from pneumoscope.report.checklists.stard import STARD
from pneumoscope.report.checklists.tripod import TRIPOD
from pneumoscope.report.content import Flow
from pneumoscope.report.flow import flow_diagram
from pneumoscope.report.formatting import plural
from pneumoscope.report.page import Drawn, FiguresView, Section, render_page, write_page

GUIDELINES = (CLAIM, TRIPOD, STARD)


@dataclass(frozen=True, slots=True)
class ChecklistContent:
    """What a run says for its checklists.

    Attributes:
        name: of the run or evaluation, for the reader.
        answers: sentences by fact; a fact that is not known has none.
        flow: of participants.
    """

    name: str
    answers: Mapping[Fact, str]
    flow: Flow
    guidelines: tuple[Guideline, ...] = GUIDELINES


@dataclass(frozen=True, slots=True)
class ChecklistHead:
    """The top of the page, in words."""

    title: str
    eyebrow: str
    summary: str
    banner: str


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item with what the run says of it, and who fills in what is missing (`""`: nobody)."""

    number: str
    asks: str
    answer: str
    who: str


@dataclass(frozen=True, slots=True)
class GuidelineView:
    """The table of a guideline's items."""

    name: str
    paper: str
    rows: tuple[ItemView, ...]


def write_checklist(path: Path, content: ChecklistContent) -> None:
    """Write the page to `path`, whole or not at all; the same content gives the same bytes.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, "checklist.html.j2", _head(content), _sections(content))


def render_checklist(content: ChecklistContent) -> str:
    """The page as HTML text."""
    return render_page("checklist.html.j2", _head(content), _sections(content))


def _head(content: ChecklistContent) -> ChecklistHead:
    counts = "; ".join(
        f"{guideline.name}: {_filled(guideline, content)} of {plural(len(guideline.items), 'item')}"
        for guideline in content.guidelines
    )
    return ChecklistHead(
        title="Reporting checklists",
        eyebrow=content.name,
        summary=f"Answered, wholly or in part, from the files of this run – {counts}. "
        "The others are for those named beside them.",
        banner="Items are named in our own words: read the guidelines themselves before you "
        "submit. That an item is filled in says nothing of how good the study is.",
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
        return ItemView(item.number, item.asks, "", item.who or AUTHORS)
    return ItemView(item.number, item.asks, answer, f"{item.who}: the rest" if item.who else "")
