"""`checklist.html`: reporting guidelines, completed as far as the files of a run allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.report.content import Flow
from pneumoscope.report.flow import flow_diagram
from pneumoscope.report.formatting import plural
from pneumoscope.report.guidelines import AUTHORS, CLAIM, STARD, TRIPOD, Fact, Guideline, Item
from pneumoscope.report.page import Drawn, FiguresView, Section, render_page, write_page

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


def write_checklist(path: Path, content: ChecklistContent) -> None:
    """Write the page to `path`, completely or not at all; equal contents give equal bytes.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then unchanged.
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
