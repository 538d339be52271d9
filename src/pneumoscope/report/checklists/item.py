"""What a reporting guideline is made of, for the page that fills it in.

Knows nothing of any single guideline or run.
"""

from __future__ import annotations

from dataclasses import dataclass
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
"""What software can say of a run; `""`: nothing."""

AUTHORS = "authors"
CLINICIANS = "clinicians"
OWNERS = "owners of the data"
STATISTICIANS = "statisticians"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a guideline.

    Attributes:
        number: the guideline's own.
        asks: a short paraphrase of what it wants.
        fact: what of a run answers it.
        who: who must fill it in, or add to what the run says; `""`: the run says all.
    """

    number: str
    asks: str
    fact: Fact = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class Guideline:
    """A reporting guideline.

    Attributes:
        name: `CLAIM 2024`.
        identifier: unique in the page.
        paper: what to cite, with its DOI.
        items: in the guideline's order.
    """

    name: str
    identifier: str
    paper: str
    items: tuple[Item, ...]
