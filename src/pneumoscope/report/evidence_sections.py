"""Sections and figures of the audit page: patient similarity, split shift, label noise, spreads.

A section function returns `None` if its section has no content. Equal inputs give equal bytes.
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
from pneumoscope.report import plots
from pneumoscope.report.formatting import count, file_size, number, plural
from pneumoscope.report.page import Column, Drawn, FiguresView, Head, Section, Table, data_uri
from pneumoscope.report.plots import CLASS_COLOURS
from pneumoscope.report.svg import (
    INK,
    RULE,
    WIDTH,
    Colour,
    Svg,
    draw_text,
    drawing,
    grid,
    mark_point,
    name_axes,
    new_axes,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOUBTS = 60
"""Longer lists are truncated on the page; `audit.json` contains all entries."""

_KINDS: Mapping[str, str] = {
    "patient": "images with the same patient id",
    "across": "images with the same id in two splits",
    "number": "images with the same number in two series of ids",
}

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


@dataclass(frozen=True, slots=True)
class DoubtView:
    """A label-noise candidate; `picture` is a data URI."""

    file: str
    label: str
    css: str
    probability: str
    alt: str
    picture: str


@dataclass(frozen=True, slots=True)
class DoubtsView:
    """The gallery of label-noise candidates, and a table of those without a picture."""

    intro: str
    doubts: tuple[DoubtView, ...]
    table: Table | None


def likeness(audit: Audit) -> Section | None:
    """Whether images with the same id are more alike than images of different ids."""
    found = audit.evidence.likeness
    if not found:
        return None
    table = Table(
        "Similarity of image pairs with the same id and with different ids",
        (
            Column("Images"),
            *(
                Column(name, numeric=True)
                for name in ("Ids", "Pairs", "Same id", "Adjacent ids", "Different ids", "p")
            ),
        ),
        tuple(_likeness_row(one) for one in found),
        "Adjacent ids: different ids with consecutive numbers. p: permutation test of the "
        "hypothesis that similarity does not depend on the id.",
    )
    view = FiguresView(
        "Similarity is the correlation of two thumbnails after subtracting the mean image of their "
        "class and split: about 0 for images of different patients, 1 for an image and its copy. "
        "Lines are 95 % intervals over ids.",
        (Drawn("", plots.likeness_intervals(found)),),
        tables=(table,),
    )
    title = "Are images of the same patient similar?"
    return Section("likeness", title, "Similarity", "sections/figures.html.j2", view, flows=True)


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
    """Whether a classifier can distinguish the splits."""
    tests = audit.evidence.split_tests
    if not tests:
        return None
    table = Table(
        "AUC of the classifiers, and the largest differences",
        (
            Column("Class, splits"),
            *(Column(name, numeric=True) for name in ("Images", "All", "Shape", "Properties")),
            Column("Largest differences"),
        ),
        tuple(_test_row(test) for test in tests),
        "All: thumbnails and file properties. Shape: thumbnails normalised for brightness and "
        "contrast. Properties: file properties alone. Largest differences: medians in the first "
        "and the second split, and AUC.",
    )
    view = FiguresView(
        "Classifier two-sample test: a classifier is trained to predict which split an image of "
        "one class comes from, and tested on other patients. At an AUC of 0.5 the splits are "
        "indistinguishable. Lines are 95 % intervals over patients.",
        (Drawn("", plots.split_areas(tests)),),
        tables=(table,),
    )
    title = "Are the splits distinguishable?"
    return Section("shift", title, "Split shift", "sections/figures.html.j2", view, flows=True)


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
    """The images whose labels may be wrong; as a gallery where pictures are given."""
    review = audit.evidence.labels
    if review is None or not review.doubts:
        return None
    shown = [doubt for doubt in review.doubts if doubt.path in pictures]
    rest = [doubt for doubt in review.doubts if doubt.path not in pictures]
    source = (
        "Each label is compared with the prediction of a classifier on thumbnails, cross-validated "
        "by patient"
        if review.source == "thumbnails"
        else "Each label is compared with the given prediction"
    )
    expected = " and ".join(f"{number(wrong, 0)} {name}" for name, wrong in review.expected)
    view = DoubtsView(
        intro=(
            f"{source} (AUC {number(review.auc)} on {plural(review.judged, 'image')}). Confident "
            f"learning estimates that about {expected} labels are wrong. A difficult image can "
            "be a label-noise candidate too; only a radiologist can decide. Strongest first."
        ),
        doubts=tuple(_doubt(doubt, pictures[doubt.path]) for doubt in shown),
        table=_doubt_table(rest) if rest else None,
    )
    title = "Label-noise candidates"
    return Section("labels", title, "Labels", "sections/doubts.html.j2", view)


def _doubt(doubt: LabelCandidate, picture: bytes) -> DoubtView:
    label = doubt.label.lower()
    return DoubtView(
        file=doubt.path,
        label=label,
        css=label,
        probability=number(doubt.probability, 3),
        alt=f"X-ray labelled {label}, predicted probability of this label "
        f"{number(doubt.probability, 3)}",
        picture=data_uri(picture),
    )


def _doubt_table(doubts: Sequence[LabelCandidate]) -> Table:
    truncated = f"The first {MOST_DOUBTS} of {count(len(doubts))}; audit.json lists all."
    return Table(
        "Label-noise candidates",
        (
            Column("File", code=True),
            Column("Split, label"),
            Column("Patient"),
            Column("Probability of its label", numeric=True),
        ),
        tuple(
            (
                doubt.path,
                f"{where(doubt.split)}{doubt.label.lower()}",
                doubt.patient,
                number(doubt.probability, 3),
            )
            for doubt in doubts[:MOST_DOUBTS]
        ),
        truncated if len(doubts) > MOST_DOUBTS else plural(len(doubts), "image"),
    )


def class_balance(groups: Sequence[Group]) -> Svg:
    """Draw a bar per split and class with its number of images."""
    with drawing():
        figure, axes = new_axes(WIDTH, 24 + _ROW * len(groups), margins=(128, 12, 62, 12))
        most = max((group.images for group in groups), default=1)
        for row, group in enumerate(groups):
            axes.barh(row, group.images, height=0.62, color=_colour(group.label).light, linewidth=0)
            draw_text(axes, group.images + 0.02 * most, row, count(group.images), size=10)
        axes.set_xlim(0, most)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _rows(axes, [(group.split, group.label) for group in groups])
        parts = [f"{where(g.split)}{g.label.lower()} {count(g.images)}" for g in groups]
        return to_svg(figure, "balance", f"Images: {'; '.join(parts)}.")


def spread_of(
    quantity: Quantity, distributions: Sequence[Distribution], levels: Sequence[float]
) -> Svg:
    """Draw the distribution of a quantity per split and class.

    A line shows the range, bars the central 90 % and 50 % of the images, a dot the median.
    """
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
    """The split's name with a trailing space, or `""` if the data set has no splits."""
    return "" if split == "none" else f"{split} "


def images_per_patient(table: Sequence[tuple[int, int]]) -> str:
    """`2,100 patients with 1 image, 500 patients with 2 images, …`."""
    return ", ".join(
        f"{plural(patients, 'patient')} with {plural(images, 'image')}"
        for images, patients in table
    )


def _colour(label: str) -> Colour:
    return CLASS_COLOURS[CLASS_NAMES.index(label)] if label in CLASS_NAMES else INK


def _rows(axes: Axes, cells: Sequence[tuple[str, str]]) -> None:
    """Label the rows from top to bottom."""
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_yticks(range(len(cells)), [f"{where(split)}{label.lower()}" for split, label in cells])
    axes.tick_params(axis="y", length=0, labelcolor=INK.light, labelsize=10)
    axes.spines["left"].set_visible(False)
