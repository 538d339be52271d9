"""`compare.html`: the verdict on a new model, metrics of both models, changed predictions.

All numbers come from `CompareContent`; nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.config import CompareConfig
from pneumoscope.evaluation.compare import Comparison
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.report.formatting import (
    ABSENT,
    METRICS,
    count,
    interval,
    metric_text,
    number,
    percent,
    plural,
)
from pneumoscope.report.page import (
    Column,
    Head,
    Section,
    Table,
    TablesView,
    data_uri,
    notes,
    render_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead

_KEYS = ("auc", "sensitivity", "specificity")
_MOST_LISTED = 100


@dataclass(frozen=True, slots=True)
class Flip:
    """An image whose predicted class changed.

    Attributes:
        file: the image's name.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        probabilities: of the old and the new model (or scores in their own units).
        thumbnail: the X-ray as PNG bytes, or `None`.
        overlays: the X-ray with the old and with the new model's heatmap, each PNG bytes or `None`.
    """

    file: str
    label: int
    probabilities: tuple[float, ...]
    thumbnail: bytes | None
    overlays: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class CompareContent:
    """Everything on the page.

    Attributes:
        old: name of the old model.
        new: name of the new model.
        data: name of the data set.
        split: the compared split.
        comparison: the results.
        config: margins and confidence.
        only_old: number of images with a result from the old model only.
        only_new: number of images with a result from the new model only.
        flips: images whose predicted class changed; may be truncated.
        flipped: the number of all such images.
        command: the command that produced the page.
        uncertain: number of images in each model's abstention band; `None`: it does not abstain.
        one_scale: whether both scores are probabilities, so that they can share a threshold.
        notes: cautions about the images and both systems, one sentence each.
    """

    old: str
    new: str
    data: str
    split: EvaluatedSplit
    comparison: Comparison
    config: CompareConfig
    only_old: int
    only_new: int
    flips: tuple[Flip, ...]
    flipped: int
    command: str
    uncertain: tuple[int | None, ...] = (None, None)
    one_scale: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FlipView:
    """An image whose predicted class changed; `pictures` are data URIs with their alt texts."""

    file: str
    label: str
    css: str
    change: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FlipsView:
    """The gallery of changed predictions."""

    intro: str
    flips: tuple[FlipView, ...]


def render_compare_page(content: CompareContent) -> str:
    """The page as HTML; equal contents give equal bytes."""
    return render_page("report.html.j2", _head(content), _sections(content))


def _head(content: CompareContent) -> ReportHead:
    found = content.comparison
    verdict = (
        "The new model passes: it is non-inferior to the old model within the margins."
        if found.passed
        else "The new model does not pass: "
        + "; ".join(f"{_label(c.name)} {c.reason}" for c in found.checks if not c.passed)
        + "."
    )
    text = (
        f"{plural(found.n, 'X-ray')} of {plural(found.patients, 'patient')} with results from both "
        f"models. {verdict} {plural(content.flipped, 'prediction')} changed."
    )
    level = percent(content.config.level)
    keys = []
    for name in _KEYS:
        gap = found.differences.two_sided[name]
        keys.append(
            KeyNumber(
                f"{metric_text(name).label}, difference",
                _signed(gap.value),
                f"{level}: {interval(gap)}",
            )
        )
    return ReportHead(
        "Comparison of two models" if content.one_scale else "Comparison of two scores",
        f"{content.old} → {content.new} · {content.data}",
        text,
        "The results apply to these images only. Do not use them, or the models, for decisions "
        "about patients.",
        tuple(keys),
    )


def _sections(content: CompareContent) -> tuple[Section, ...]:
    found = (
        notes(content.notes),
        _verdict(content),
        _metrics(content),
        _disagreement(content),
        _flips(content),
    )
    return tuple(section for section in (*found, _made(content)) if section is not None)


def _verdict(content: CompareContent) -> Section:
    confidence = percent(content.config.confidence)
    columns = (
        Column("Criterion"),
        Column("Difference", numeric=True),
        Column(f"{confidence} lower limit", numeric=True),
        Column("Margin", numeric=True),
        Column("Verdict"),
    )
    rows = tuple(
        (
            Head(f"{_label(check.name)} non-inferior", check.reason),
            _signed(check.difference),
            _signed(check.lower),
            f"−{check.margin:g}",
            "passed" if check.passed else "not passed",
        )
        for check in content.comparison.checks
    )
    view = TablesView(
        "A criterion is passed if the one-sided lower confidence limit of the difference, new "
        f"minus old, is above the margin, with at least {content.config.fewest} patients of each "
        "class. The limit is the lower of two, both clustered by patient: that of the bootstrap, "
        "and DeLong’s (AUC) or Tango’s (sensitivity, specificity).",
        (Table("Verdict", columns, rows),),
    )
    return Section("verdict", "Verdict", "Verdict", "sections/tables.html.j2", view)


def _metrics(content: CompareContent) -> Section:
    found = content.comparison
    level = percent(content.config.level)
    columns = [
        Column("Metric"),
        Column("Old", numeric=True),
        Column("New", numeric=True),
        Column("Difference", numeric=True),
        Column(f"{level} interval", numeric=True),
    ]
    if content.one_scale:
        columns.append(Column("New, at the old threshold", numeric=True))
        columns.append(Column("Difference, at the old threshold", numeric=True))
    rows = []
    for name in METRICS:
        gap, carried = found.differences.two_sided[name], found.carried_differences.two_sided[name]
        if not content.one_scale and gap.value is None:
            continue
        rows.append(
            (
                metric_text(name).label,
                number(found.old[name].value),
                number(found.new[name].value),
                _signed(gap.value),
                interval(gap),
                *((number(found.carried[name].value),) if content.one_scale else ()),
                *((_signed(carried.value),) if content.one_scale else ()),
            )
        )
    note = (
        f"Thresholds: old {number(found.thresholds[0], 4)}, new {number(found.thresholds[1], 4)}. "
        "Intervals of differences: bootstrap with the same resampled patients for both models; "
        "Tango’s interval for accuracy, sensitivity and specificity."
    )
    note += (
        " Lower is better for Brier score and calibration error."
        if content.one_scale
        else " At least one score is not a probability, so calibration is not compared."
    )
    auc = found.auc
    text = "DeLong’s paired test is undefined: a class is missing, or the variance is 0."
    if auc.p is not None:
        text = (
            f"DeLong’s paired test: difference of the AUCs {_signed(auc.difference.value)}, "
            f"p {_p(auc.p)}."
        )
    view = TablesView(text, (Table("Metrics", tuple(columns), tuple(rows), note),))
    return Section("metrics", "Metrics", "Metrics", "sections/tables.html.j2", view)


def _disagreement(content: CompareContent) -> Section:
    columns = (
        Column("Images"),
        Column("Only old correct", numeric=True),
        Column("Only new correct", numeric=True),
        Column("Exact p", numeric=True),
        Column("Mid-p", numeric=True),
    )
    rows = tuple(
        (
            "All" if name == "all" else name.capitalize(),
            count(test.only_old),
            count(test.only_new),
            _p(test.exact),
            _p(test.mid),
        )
        for name, test in content.comparison.disagreement.items()
    )
    note = (
        "McNemar’s tests assume independent images. With several images per patient, p is too "
        "small."
    )
    tables = [Table("Disagreement", columns, rows, note)]
    if any(withheld is not None for withheld in content.uncertain):
        tables.append(_uncertain(content))
    view = TablesView(
        "Images on which the predicted classes differ, by which model is correct.", tuple(tables)
    )
    title = "Disagreement"
    return Section("disagree", title, "Disagreement", "sections/tables.html.j2", view, True)


def _uncertain(content: CompareContent) -> Table:
    rows = tuple(
        (name, "never" if withheld is None else count(withheld))
        for name, withheld in zip(("Old model", "New model"), content.uncertain, strict=True)
    )
    return Table(
        "Abstention (indeterminate results)",
        (Column("Model"), Column("Images", numeric=True)),
        rows,
        "All metrics on this page apply the threshold, as if no model abstained.",
    )


def _flips(content: CompareContent) -> Section | None:
    if not content.flips:
        return None
    if any(flip.thumbnail is None for flip in content.flips):
        return _listed_flips(content)
    shown = (
        "all of them"
        if len(content.flips) == content.flipped
        else f"the first {len(content.flips)} of them"
    )
    view = FlipsView(
        f"{plural(content.flipped, 'prediction')} changed. Shown are {shown}; those that became "
        "wrong come first. From left to right: the X-ray, the X-ray with the old model’s heatmap, "
        "and with the new model’s.",
        tuple(_flip(flip, content.comparison.thresholds) for flip in content.flips),
    )
    return Section("flips", "Changed predictions", "Changed", "sections/flips.html.j2", view)


def _listed_flips(content: CompareContent) -> Section:
    """The changed predictions as a table, if there are no images to show."""
    thresholds = content.comparison.thresholds
    columns = (
        Column("Case", code=True),
        Column("Label"),
        Column("Old", numeric=True),
        Column("New", numeric=True),
        Column("Now"),
    )
    rows = tuple(
        (
            flip.file,
            CLASS_NAMES[flip.label].lower(),
            *(number(score, 3) for score in flip.probabilities),
            _now(flip, thresholds),
        )
        for flip in content.flips[:_MOST_LISTED]
    )
    more = content.flipped - len(rows)
    note = f"{plural(more, 'further case')} in compare.json." if more else ""
    view = TablesView(
        f"{plural(content.flipped, 'prediction')} changed; those that became wrong come first.",
        (Table("Changed predictions", columns, rows, note),),
    )
    return Section("flips", "Changed predictions", "Changed", "sections/tables.html.j2", view)


def _now(flip: Flip, thresholds: tuple[float, float]) -> str:
    return "correct" if int(flip.probabilities[1] >= thresholds[1]) == flip.label else "wrong"


def _flip(flip: Flip, thresholds: tuple[float, float]) -> FlipView:
    label = CLASS_NAMES[flip.label].lower()
    before, after = (number(value, 3) for value in flip.probabilities)
    pictures = [(data_uri(flip.thumbnail or b""), f"X-ray labelled {label}")]
    for overlay, name in zip(flip.overlays, ("old", "new"), strict=True):
        if overlay is not None:
            pictures.append((data_uri(overlay), f"The same with the {name} model’s heatmap"))
    return FlipView(
        flip.file,
        label,
        label,
        f"{before} → {after}, now {_now(flip, thresholds)}",
        tuple(pictures),
    )


def _made(content: CompareContent) -> Section:
    rows = (
        ("Old model", content.old),
        ("New model", content.new),
        ("Data", f"{content.data}, {content.split}"),
        ("Images with a result from the old model only", count(content.only_old)),
        ("Images with a result from the new model only", count(content.only_new)),
        ("Command", content.command),
    )
    view = TablesView("", (Table("Inputs and command", (Column("Item"), Column("Value")), rows),))
    return Section("made", "Reproduction", "Reproduction", "sections/tables.html.j2", view, True)


def _label(name: str) -> str:
    label = metric_text(name).label
    return label if label.isupper() else label.lower()


def _signed(value: float | None) -> str:
    if value is None:
        return ABSENT
    text = number(value)
    return text if value <= 0 or text.strip("0.") == "" else f"+{text}"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else number(value)
