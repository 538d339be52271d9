from __future__ import annotations

import re
import typing
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pneumoscope.evaluation.metrics import ConfusionMatrix
from pneumoscope.report import checklist
from pneumoscope.report.checklist import (
    CLAIM,
    DECIDE,
    STARD,
    TRIPOD,
    ChecklistContent,
    Fact,
    flow_diagram,
    render_checklist,
)
from pneumoscope.report.content import Counted, Flow

FLOW = Flow(
    found=Counted("images.csv", 5216, 3654),
    elsewhere=(Counted("split train", 4270, 2922),),
    evaluated=Counted("split test", 424, 365),
    refused=(("truncated", 2), ("blank", 1)),
    scored=Counted("scored", 421, 363),
    matrix=ConfusionMatrix(tn=120, fp=5, fn=35, tp=261),
    threshold=0.8978,
)


@pytest.fixture
def content() -> ChecklistContent:
    answers: dict[Fact, str] = {"model": "A network <b>of our own</b>.", "data": "X-rays."}
    return ChecklistContent("runs/a", answers, FLOW)


def numbers(text: str) -> list[str]:
    return text.split()


def test_items_bear_the_guidelines_numbers() -> None:
    assert [item.number for item in CLAIM.items] == [str(n) for n in range(1, 45)]
    assert [item.number for item in TRIPOD.items] == numbers(
        "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 "
        "14 15 16 17 18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
    )
    assert [item.number for item in STARD.items] == numbers(
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15a 15b 15c 15d 16a 16b 16c 17a 17b 18 19 20 21 22 23 "
        "24 25 26a 26b 27 28 29 30 31 32 33 34 35 36 37 38 39 40a 40b"
    )
    assert [item.number for item in DECIDE.items] == numbers(
        "1 I 2a 2b II III 3a 3b 3c 4a 4b 4c 5a 5b 6a 6b 7 8 IV V VI 9a 9b 10a 10b VII "
        "VIII 11 12 13a 13b 14a 14b 15 16 IX 17 X"
    )


def test_every_item_is_filled_in_by_the_run_or_has_somebody_to_fill_it_in() -> None:
    facts = set(typing.get_args(Fact))
    used = set()
    for guideline in (*checklist.GUIDELINES, DECIDE):
        for item in guideline.items:
            assert item.fact or item.who, f"{guideline.name} {item.number}"
            assert item.fact in facts
            used.add(item.fact)
    assert used == facts


def rows(html: str) -> dict[str, list[str]]:
    """Cells of each row of the page's first guideline, by item."""
    table = html[html.index('aria-label="CLAIM 2024"') : html.index('id="tripod"')]
    found = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    return {number: re.findall(r"<td[^>]*>(.*?)</td>", cells) for number, cells in found}


def test_what_the_run_knows_is_filled_in_and_the_rest_is_blank(content: ChecklistContent) -> None:
    html = render_checklist(content)
    claim = rows(html)
    assert len(claim) == 44
    assert claim["22"] == [
        "Detailed description of the model",
        "A network &lt;b&gt;of our own&lt;/b&gt;.",
        "",
    ]
    assert claim["7"][1:] == ["X-rays.", "data owners, to add what is missing"]
    assert claim["9"][1:] == ["", "authors"]  # known to software, but not of this run
    assert claim["44"][1:] == ["", "authors"]
    assert "CLAIM 2024: 2 of 44 items; TRIPOD+AI: 1 of 52 items; STARD-AI: 1 of 48 items" in html
    assert "<b>" not in html
    assert "src=" not in html


def test_the_same_content_gives_the_same_bytes(content: ChecklistContent) -> None:
    assert render_checklist(content) == render_checklist(content)


def test_the_flow_reports_all_counts() -> None:
    svg = flow_diagram(FLOW)
    assert svg.reading == (
        "Of 5,216 X-rays of 3,654 patients, 424 X-rays of 365 patients were evaluated, of which 3 "
        "gave no result (truncated: 2; blank: 1). Predicted PNEUMONIA: 261 labelled PNEUMONIA and "
        "5 labelled NORMAL; predicted NORMAL: 120 labelled NORMAL and 35 labelled PNEUMONIA."
    )
    ElementTree.fromstring(svg.inline)  # noqa: S314
    for part in (
        "Found in images.csv",
        "4,270 X-rays of 2,922 patients",
        "Evaluated: split test",
        "2 × truncated",
        "421 X-rays of 363 patients",
        "threshold 0.898",
        "Predicted PNEUMONIA: 266",
        "Predicted NORMAL: 155",
        "reference PNEUMONIA: 35",
    ):
        assert part in svg.inline, part
    assert flow_diagram(FLOW).inline == svg.inline


def test_a_long_reason_is_shortened_and_its_count_is_not() -> None:
    reason = "the detector of the room reported an exposure outside of its calibrated range"
    long = flow_diagram(replace(FLOW, refused=((reason, 1234),)))
    assert reason not in re.sub(r'aria-label="[^"]*"', "", long.inline)
    assert ">1,234 × the detector" in long.inline
    assert f"{reason}: 1234" in long.reading


def test_a_reason_of_a_million_letters_is_drawn_as_well() -> None:
    assert "…" in flow_diagram(replace(FLOW, refused=(("x" * 1_000_000, 3),))).inline


def test_a_flow_without_detours() -> None:
    plain = flow_diagram(replace(FLOW, elsewhere=(), refused=(), threshold=0.00031))
    assert "threshold 0.0003" in plain.inline
    assert "Not evaluated here" not in plain.inline
    assert "No result: none" in plain.inline
    assert "gave no result" not in plain.reading
