"""The sections of an audit's page on its evidence; `None`: nothing to show.

Comes in: `Evidence`, and pictures of doubtful films by path if they are to be shown. Goes out:
`Section`s whose views hold words, figures and addresses of pictures inside the page.
Reads no image and measures nothing.

The figures of an audit: how many images of each class, and how their sizes and greys spread.

Comes in: records of an `Audit`. Goes out: `Svg`, the same bytes for the same input.
Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pneumoscope.data.audit_record import (
    Audit,
    Distribution,
    Driver,
    Group,
    LabelCandidate,
    PatientSimilarity,
    Quantity,
    SplitTest,
)
from pneumoscope.data.findings import PROPERTY_WORDS
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report import evidence_sections, plots
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
from pneumoscope.report.plots import CLASS_COLOURS
from pneumoscope.report.svg import (
    INK,
    RULE,
    WIDTH,
    Colour,
    Svg,
    drawing,
    grid,
    mark_point,
    name_axes,
    new_axes,
    say,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        (Drawn("", plots.likeness_intervals(found)),),
        tables=(table,),
    )
    title = "Do films of one patient look alike?"
    return Section("likeness", title, "Likeness", "sections/figures.html.j2", view, flows=True)


def _likeness_row(one: PatientSimilarity) -> tuple[Head | str, ...]:
    return (
        Head(plots.likeness_name(one), _KINDS[one.kind]),
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
        (Drawn("", plots.split_areas(tests)),),
        tables=(table,),
    )
    title = "Can the splits be told apart?"
    return Section("shift", title, "Shift", "sections/figures.html.j2", view, flows=True)


def _test_row(test: SplitTest) -> tuple[str, ...]:
    return (
        plots.splits_name(test),
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


def _doubt(doubt: LabelCandidate, picture: bytes) -> DoubtView:
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


def _doubt_table(doubts: Sequence[LabelCandidate]) -> Table:
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
                f"{evidence_sections.where(doubt.split)}{doubt.label.lower()}",
                doubt.patient,
                number(doubt.probability, 3),
            )
            for doubt in doubts[:MOST_DOUBTS]
        ),
        cut if len(doubts) > MOST_DOUBTS else plural(len(doubts), "film"),
    )


_ROW = 26
_MEDIAN = 0.5
_BARS = ((1.0, 0.9, 0.8), (0.9, 4.0, 0.45), (0.5, 9.0, 0.6))
"""Share of the images around the median, line width, opacity."""

QUANTITY_NAMES: Mapping[Quantity, str] = {
    "width": "Width, pixels",
    "height": "Height, pixels",
    "aspect": "Aspect, width over height",
    "file_bytes": "File size, kB",
    "mean": "Mean intensity, 0 to 1",
    "deviation": "Contrast: deviation of intensity",
}


def class_balance(groups: Sequence[Group]) -> Svg:
    """Images per split and class as bars that start at one line."""
    with drawing():
        figure, axes = new_axes(WIDTH, 24 + _ROW * len(groups), margins=(128, 12, 62, 12))
        most = max((group.images for group in groups), default=1)
        for row, group in enumerate(groups):
            axes.barh(row, group.images, height=0.62, color=_colour(group.label).light, linewidth=0)
            say(axes, group.images + 0.02 * most, row, count(group.images), size=10)
        axes.set_xlim(0, most)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _rows(axes, [(group.split, group.label) for group in groups])
        parts = [f"{where(g.split)}{g.label.lower()} {count(g.images)}" for g in groups]
        return to_svg(figure, "balance", f"Images: {'; '.join(parts)}.")


def spread_of(
    quantity: Quantity, distributions: Sequence[Distribution], levels: Sequence[float]
) -> Svg:
    """One quantity per split and class: all images (thin), 90 % (thick), half, and the median."""
    with drawing():
        figure, axes = new_axes(WIDTH, 76 + _ROW * len(distributions), margins=(128, 32, 16, 30))
        for row, found in enumerate(distributions):
            at = dict(zip(levels, found.quantiles, strict=True))
            _spread_bar(axes, row, at, _colour(found.label))
        _rows(axes, [(found.split, found.label) for found in distributions])
        grid(axes, "x")
        axes.margins(x=0.04)
        axes.locator_params(axis="x", nbins=5)
        axes.spines["bottom"].set_color(RULE.light)
        if quantity == "file_bytes":
            axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:,.0f}")
        elif quantity in ("width", "height"):
            axes.xaxis.set_major_formatter(lambda side, _: f"{side:,.0f}")
        name_axes(axes, "", QUANTITY_NAMES[quantity])
        parts = [
            f"{where(found.split)}{found.label.lower()} {value_of(quantity, median)}"
            for found in distributions
            for level, median in zip(levels, found.quantiles, strict=True)
            if level == _MEDIAN
        ]
        return to_svg(figure, f"spread-{quantity}", f"Medians: {'; '.join(parts)}.")


def _spread_bar(axes: Axes, row: int, at: Mapping[float, float], colour: Colour) -> None:
    for share, width, opacity in _BARS:
        low, high = round((1 - share) / 2, 4), round((1 + share) / 2, 4)
        if low in at and high in at:
            axes.plot(
                [at[low], at[high]],
                [row, row],
                color=colour.light,
                linewidth=width,
                alpha=opacity,
                solid_capstyle="butt",
            )
    if _MEDIAN in at:
        mark_point(axes, at[_MEDIAN], row)


def value_of(quantity: Quantity, value: float) -> str:
    """A value of a quantity with its unit."""
    if quantity == "file_bytes":
        return file_size(round(value))
    if quantity in ("width", "height"):
        return f"{count(round(value))} px"
    return f"{value:.2f}"


def where(split: str) -> str:
    """`train, `, or nothing where the data set has no splits."""
    return "" if split == "none" else f"{split} "


def images_per_patient(table: Sequence[tuple[int, int]]) -> str:
    """`2,100 patients with 1 image, 500 with 2, …` for the facts of a page."""
    return ", ".join(
        f"{plural(patients, 'patient')} with {plural(images, 'image')}"
        for images, patients in table
    )


def _colour(label: str) -> Colour:
    return CLASS_COLOURS[CLASS_NAMES.index(label)] if label in CLASS_NAMES else INK


def _rows(axes: Axes, cells: Sequence[tuple[str, str]]) -> None:
    """Name the rows from the top down."""
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_yticks(range(len(cells)), [f"{where(split)}{label.lower()}" for split, label in cells])
    axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=10)
    axes.spines["left"].set_visible(False)
