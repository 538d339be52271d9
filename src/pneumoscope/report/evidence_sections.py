"""The sections of an audit's page on its evidence; `None`: nothing to show.

Comes in: `Evidence`, and pictures of doubtful films by path if they are to be shown. Goes out:
`Section`s whose views hold words, figures and addresses of pictures inside the page.
Reads no image and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pneumoscope.data.audit_evidence import Doubt, Driver, Likeness, SplitTest
from pneumoscope.data.audit_record import Audit
from pneumoscope.data.evidence_findings import PROPERTY_WORDS
from pneumoscope.report import audit_plots, evidence_plots
from pneumoscope.report.formatting import count, file_size, number, plural
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    Head,
    Section,
    Table,
    data_uri,
)

MOST_DOUBTS = 60
"""Longer lists are cut in the page; `audit.json` holds all."""

_KINDS: Mapping[str, str] = {
    "patient": "films of one patient",
    "across": "films of one id in two splits",
    "number": "films of one number in two series of ids",
}


@dataclass(frozen=True, slots=True)
class DoubtView:
    """A film to look at again, with its picture as an address inside the page."""

    file: str
    label: str
    css: str
    probability: str
    alt: str
    picture: str


@dataclass(frozen=True, slots=True)
class DoubtsView:
    """The gallery of doubtful labels, and the list of the others."""

    intro: str
    doubts: tuple[DoubtView, ...]
    table: Table | None


def likeness(audit: Audit) -> Section | None:
    """Whether films of one id look like one person."""
    found = audit.evidence.likeness
    if not found:
        return None
    table = Table(
        "Pairs of films that share an id, and strangers",
        (
            Column("Films"),
            *(
                Column(name, numeric=True)
                for name in ("Ids", "Pairs", "One id", "Neighbours", "Strangers", "p")
            ),
        ),
        tuple(_likeness_row(one) for one in found),
        "Neighbours: strangers whose ids follow each other. p: chance of such a likeness if ids "
        "said nothing.",
    )
    view = FiguresView(
        "Likeness is the correlation of two thumbnails after the mean film of their class and "
        "split was taken from both: strangers have about 0, a film and its copy 1. Lines are 95 % "
        "intervals over ids.",
        (Drawn("", evidence_plots.likeness_intervals(found)),),
        tables=(table,),
    )
    title = "Do films of one patient look alike?"
    return Section("likeness", title, "Likeness", "sections/figures.html.j2", view, flows=True)


def _likeness_row(one: Likeness) -> tuple[Head | str, ...]:
    return (
        Head(evidence_plots.likeness_name(one), _KINDS[one.kind]),
        count(one.patients),
        count(one.pairs),
        number(one.same, 2),
        number(one.neighbours, 2),
        number(one.strangers, 2),
        number(one.p_value, 3),
    )


def splits(audit: Audit) -> Section | None:
    """Whether a classifier can tell from which split a film comes."""
    tests = audit.evidence.split_tests
    if not tests:
        return None
    table = Table(
        "By what the splits can be told apart",
        (
            Column("Class, splits"),
            *(Column(name, numeric=True) for name in ("Films", "All", "Shape", "Properties")),
            Column("Differ most in"),
        ),
        tuple(_test_row(test) for test in tests),
        "AUC of a classifier on thumbnails and properties; on thumbnails without brightness and "
        "contrast (shape); on properties alone.",
    )
    view = FiguresView(
        "A classifier learns to tell from which split a film of one class comes, and is asked on "
        "patients that it has not seen. 0.5: the splits are alike. Lines are 95 % intervals over "
        "patients.",
        (Drawn("", evidence_plots.split_areas(tests)),),
        tables=(table,),
    )
    title = "Can the splits be told apart?"
    return Section("shift", title, "Shift", "sections/figures.html.j2", view, flows=True)


def _test_row(test: SplitTest) -> tuple[str, ...]:
    return (
        evidence_plots.splits_name(test),
        count(test.images),
        number(test.auc, 2),
        number(test.shape_auc, 2),
        number(test.property_auc, 2),
        "; ".join(_driver(driver) for driver in test.drivers),
    )


def _driver(driver: Driver) -> str:
    first, second = (_value(driver, value) for value in (driver.first, driver.second))
    return f"{PROPERTY_WORDS[driver.name]} {first} → {second} ({number(driver.auc, 2)})"


def _value(driver: Driver, value: float) -> str:
    if driver.name == "file_bytes":
        return file_size(round(value))
    return f"{count(round(value))} px" if driver.name in ("width", "height") else number(value, 2)


def labels(audit: Audit, pictures: Mapping[str, bytes]) -> Section | None:
    """The films whose labels to look at again, as a gallery where there are pictures."""
    review = audit.evidence.labels
    if review is None or not review.doubts:
        return None
    shown = [doubt for doubt in review.doubts if doubt.path in pictures]
    rest = [doubt for doubt in review.doubts if doubt.path not in pictures]
    judge = (
        "Classifiers on thumbnails judged each film without having seen its patient"
        if review.source == "thumbnails"
        else "The predictions that were given judged the films"
    )
    expected = " and ".join(f"{number(wrong, 0)} {name}" for name, wrong in review.expected)
    view = DoubtsView(
        intro=(
            f"{judge} (AUC {number(review.auc)} on {plural(review.judged, 'film')}). By confident "
            f"learning about {expected} labels may be wrong. A hard film looks like a wrong label "
            "here: only someone who reads X-rays can tell. Most doubtful first."
        ),
        doubts=tuple(_doubt(doubt, pictures[doubt.path]) for doubt in shown),
        table=_doubt_table(rest) if rest else None,
    )
    title = "Labels to look at again"
    return Section("labels", title, "Labels", "sections/doubts.html.j2", view)


def _doubt(doubt: Doubt, picture: bytes) -> DoubtView:
    label = doubt.label.lower()
    return DoubtView(
        file=doubt.path,
        label=label,
        css=label,
        probability=number(doubt.probability, 3),
        alt=f"X-ray labelled {label}, of which that is given probability "
        f"{number(doubt.probability, 3)}",
        picture=data_uri(picture),
    )


def _doubt_table(doubts: Sequence[Doubt]) -> Table:
    cut = f"The first {MOST_DOUBTS} of {count(len(doubts))}; audit.json lists all."
    return Table(
        "Doubtful labels",
        (
            Column("File", code=True),
            Column("Split, label"),
            Column("Patient"),
            Column("Probability of its label", numeric=True),
        ),
        tuple(
            (
                doubt.path,
                f"{audit_plots.where(doubt.split)}{doubt.label.lower()}",
                doubt.patient,
                number(doubt.probability, 3),
            )
            for doubt in doubts[:MOST_DOUBTS]
        ),
        cut if len(doubts) > MOST_DOUBTS else plural(len(doubts), "film"),
    )
