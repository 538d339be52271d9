"""The defaults of `data adopt`: which films of a public data set are kept, under which labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pneumoscope.config.reading import option


@dataclass(frozen=True, slots=True)
class AdoptConfig:
    """Which films of a public data set go into its manifest."""

    min_age: float = option(0.0, "youngest, years", 0, 200)
    max_age: float = option(200.0, "oldest, years", 0, 200)
    view: Literal["frontal", "AP", "PA", "all"] = option(
        "frontal", "frontal: all but those known to be no frontal view"
    )
    others: Literal["exclude", "normal"] = option(
        "exclude", "films with other findings: left out, or NORMAL"
    )
    uncertain: Literal["exclude", "pneumonia", "normal"] = option(
        "exclude", "chexpert: films whose pneumonia is uncertain"
    )
    splits: Literal["ignore", "keep"] = option(
        "ignore", "the owner's splits: ignore, so that all films are evaluated; or keep"
    )
    table: str = option("", "csv: name of the table, if the folder holds several")
    columns: str = option("", "csv: its columns, as in path=file,label=diagnosis")
    pneumonia: str = option("pneumonia,1,true,yes,positive", "csv: words for PNEUMONIA")
    normal: str = option("normal,no finding,0,false,no,negative", "csv: words for NORMAL")
