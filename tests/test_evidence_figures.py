"""The figures in docs/ hold curves and numbers, never a picture; its page names them all."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from pneumoscope.report.svg import PALETTE, drawing, new_axes, to_svg
from support.scripts import load_script

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("docs/make_figures.py")


def test_no_figure_of_the_docs_holds_a_picture() -> None:
    figures = sorted((DOCS / "figures").glob("*.svg"))
    assert len(figures) >= 10
    for path in figures:
        text = path.read_text(encoding="utf-8")
        assert "<image" not in text, path
        assert "data:" not in text, path
        assert "prefers-color-scheme" not in text, path


def test_the_page_shows_every_figure_and_states_what_it_shows() -> None:
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[([^\]]*)\]\(figures/([\w-]+\.svg)\)", text)
    assert {name for _, name in shown} == {p.name for p in (DOCS / "figures").glob("*.svg")}
    assert all(len(reading) > 20 for reading, _ in shown)


def test_the_page_has_the_sentences_of_the_script(script: ModuleType) -> None:
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    lower = {"auc": (-0.006, 0.01), "sensitivity": (0.008, 0.02), "specificity": (-0.08, 0.02)}
    reason = "is lower by more than 0.02"
    checks = [
        {"name": n, "lower": low, "margin": most, "passed": low > -most, "reason": reason}
        for n, (low, most) in lower.items()
    ]
    words = script.checks_in_words(checks)
    assert words.startswith("lower limit of the change in AUC −0.006 (margin 0.01): passed; ")
    assert f" images: {words}. " in text
    falls = {"10\xa0% cut off top and bottom": 0.064, "10\xa0% cut off left and right": 0.054}
    rows = [{"judgement": "fails", "title": title, "fall": fall} for title, fall in falls.items()]
    assert script.costs_in_words({"largest_fall": 0.05, "rows": rows}) in text
    unsure = {"judgement": "unsure", "title": "gamma 2.5", "fall": 0.04}
    held = script.costs_in_words({"largest_fall": 0.05, "rows": [unsure]})
    assert held.startswith("No plausible change costs more than 0.05 of sensitivity")
    assert "not excluded for 1 of them" in held


def test_a_figure_is_put_on_light_paper_and_one_with_a_picture_is_rejected(
    script: ModuleType,
) -> None:
    with drawing():
        figure, axes = new_axes()
        axes.plot([0, 1], [0, 1])
        drawn = to_svg(figure, "line", "A line rises from 0 to 1.")
    for source in (drawn.standalone, drawn.inline):
        paper = script.on_paper(source)
        assert script.reading(paper) == "A line rises from 0 to 1."
        assert paper.count("<style>") == 1
        assert all(f"{colour.variable}:{colour.light}" in paper for colour in PALETTE)
        assert paper.index("<rect") < paper.index("<path")
    with pytest.raises(SystemExit, match="holds a picture"):
        script.on_paper(drawn.inline.replace("</svg>", '<image href="image.png"/></svg>'))
