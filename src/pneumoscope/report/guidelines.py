"""Reporting guidelines (CLAIM, TRIPOD+AI, STARD-AI, DECIDE-AI) and their items.

The items are data: one TOML file per guideline in `report/checklists/`. Item numbers are the
guideline's own; item texts are short paraphrases that do not replace the guideline itself.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

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
