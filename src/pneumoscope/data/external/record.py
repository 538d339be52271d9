"""What every reader of a public data set hands over, and how the registry describes one.

Knows nothing of any single data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pneumoscope.config import AdoptConfig
from pneumoscope.records import Split

NORMAL, PNEUMONIA = 0, 1

View = Literal["AP", "PA", "lateral", "other", ""]
"""`""`: not known."""

OTHER_FINDING = "other finding than normal or pneumonia"
UNCERTAIN = "uncertain label"
NO_LABEL = "no label"
NOT_FOUND = "image file not found"
TWICE = "image file named again"


@dataclass(frozen=True, slots=True)
class Case:
    """One film as its owner's tables describe it.

    Attributes:
        path: the file, absolute; `None` if it is not there.
        label: 0, 1, or `None` if the film is left out; `why` then says for what reason.
        patient: `""` if the owner names none.
        split: the owner's own split, `None` if there is none.
        age: years, `None` if not known.
        sex: `F`, `M` or `""`.
        view: of the film.
        finding: the owner's words for what is on it.
        labelled_by: who or what labelled it, in a few words.
        why: why it is left out.
    """

    path: Path | None
    label: int | None
    patient: str = ""
    split: Split | None = None
    age: float | None = None
    sex: str = ""
    view: View = ""
    finding: str = ""
    labelled_by: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set.

    Attributes:
        name: what the command line calls it.
        title: its name.
        paper: what to cite, with its DOI or arXiv number.
        layout: the files that are read.
        labels: which findings become which label.
        read: yields every film of a folder.
        headers: age, sex and view stand in the DICOM headers.
        notes: what to know of its labels or patients, one sentence each.
    """

    name: str
    title: str
    paper: str
    layout: str
    labels: str
    read: Callable[[Path, AdoptConfig], Iterator[Case]]
    headers: bool = False
    notes: tuple[str, ...] = ()


def other_finding(case_label: Literal["exclude", "normal"]) -> tuple[int | None, str]:
    """Label and reason of a film with another finding, as the user chose."""
    return (NORMAL, "") if case_label == "normal" else (None, OTHER_FINDING)


def age_in_years(text: str) -> float | None:
    """Years from `58`, `058Y`, `010M`, `003W` or `012D`; `None` for anything else, or over 120.

    DICOM PS3.5 section 6.2, Age String; owners also write bare years.
    """
    value = text.strip().upper()
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}.get(value[-1:], 0.0)
    digits = value[:-1] if per_year else value
    try:
        age = float(digits) / (per_year or 1.0)
    except ValueError:
        return None
    return age if 0 <= age <= _OLDEST else None


_OLDEST = 120.0


def sex_of(text: str) -> str:
    """`F` or `M` from any usual spelling, else `""`."""
    return {"F": "F", "M": "M"}.get(text.strip().upper()[:1], "")


def view_of(text: str) -> View:
    """The view from a DICOM ViewPosition or an owner's word for it."""
    word = text.strip().upper()
    views: dict[str, View] = {"AP": "AP", "PA": "PA"}
    if word[:2] in views:
        return views[word[:2]]
    if word in ("L", "LL", "RL", "LAT", "LATERAL"):
        return "lateral"
    return "other" if word else ""
