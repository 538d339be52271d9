"""Write the results in README.md and docs/index.md from the card of the model that ships.

    python docs/make_results.py

The card is the only source of these numbers, and of how many candidates were compared; a test
compares them.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARD = ROOT / "src" / "pneumoscope" / "models" / "default" / "MODEL_CARD.md"
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
BEGIN, END = "<!-- results: written by docs/make_results.py -->", "<!-- end of results -->"

_SHOWN = ("AUC", "Accuracy", "Sensitivity", "Specificity", "Calibration error")
_ROW = re.compile(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+–[\d.]+) \|$", re.MULTILINE)
_SELECTED = re.compile(r"\bthe (model was selected among [^.]+\.)")


def table(card: str) -> str:
    """The table as Markdown, from the card's section on held-out patients."""
    tested = card.split("## Held-out test", 1)[1].split("\n### ", 1)[0]
    found = {name: (value, span) for name, value, span in _ROW.findall(tested)}
    rows = [f"| {name} | {found[name][0]} | {found[name][1]} |" for name in _SHOWN]
    return "\n".join(["| metric | value | 95 % interval |", "| --- | ---: | ---: |", *rows])


def selection(card: str) -> str:
    """The card's sentence on how many candidates were compared on these X-rays."""
    (sentence,) = _SELECTED.findall(card)
    return f"The {sentence}"


def with_results(page: str, card: str) -> str:
    """The page with its results replaced."""
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table(card)}\n\n{selection(card)}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Write the results into both pages."""
    card = CARD.read_text(encoding="utf-8")
    for page in PAGES:
        page.write_text(with_results(page.read_text(encoding="utf-8"), card), encoding="utf-8")


if __name__ == "__main__":
    main()
