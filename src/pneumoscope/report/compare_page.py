"""The page of a comparison: the verdict, every metric of both models, the answers that changed.

Comes in: `CompareContent`. Goes out: `compare.html`, one file that opens from disk.
Loads no model and measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    render_page,
    write_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead

_KEYS = ("auc", "sensitivity", "specificity")
_MOST_LISTED = 100


@dataclass(frozen=True, slots=True)
class Flip:
    """A case whose answer changed, as pictures.

    Attributes:
        file: the image's name.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        probabilities: of the old and the new model (or scores in their own units).
        thumbnail: the X-ray as PNG bytes; `None` where there is no image to show.
        overlays: under the old and the new model's heatmap; `None` without one.
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
        old: the old model's name.
        new: the new one's.
        data: the data's name.
        split: which part of it.
        comparison: the numbers.
        config: margins and confidence.
        only_old: images that the old model alone answered.
        only_new: images that the new model alone answered.
        flips: the first of the cases whose answer changed.
        flipped: how many there are.
        command: that made the page.
        uncertain: images that each model answers with `uncertain`; `None`: it never does.
        one_scale: whether both scores are probabilities, so that a threshold can be carried over.
        notes: how many of the images each model was trained on, a sentence each.
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
    """A case whose answer changed, with its pictures as addresses inside the page."""

    file: str
    label: str
    css: str
    change: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FlipsView:
    """The gallery of changed answers."""

    intro: str
    flips: tuple[FlipView, ...]


def write_compare_page(path: Path, content: CompareContent) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, "report.html.j2", _head(content), _sections(content))


def render_compare_page(content: CompareContent) -> str:
    """The page as HTML text."""
    return render_page("report.html.j2", _head(content), _sections(content))


def _head(content: CompareContent) -> ReportHead:
    found = content.comparison
    verdict = (
        "The new model passes: it is not worse than the old one by more than the margins."
        if found.passed
        else "The new model does not pass: "
        + "; ".join(f"{_label(c.name)} {c.reason}" for c in found.checks if not c.passed)
        + "."
    )
    text = (
        f"{plural(found.n, 'X-ray')} of {plural(found.patients, 'patient')}, answered by both. "
        f"{verdict} {plural(content.flipped, 'answer')} changed."
    )
    level = percent(content.config.level)
    keys = []
    for name in _KEYS:
        gap = found.differences.two_sided[name]
        keys.append(
            KeyNumber(
                f"{metric_text(name).label}: change",
                _signed(gap.value),
                f"{level}: {interval(gap)}",
            )
        )
    return ReportHead(
        "Comparison of two models" if content.one_scale else "Comparison of two scores",
        f"{content.old} → {content.new} · {content.data}",
        text,
        "The numbers hold for these images. Don’t use them, or the models, for a decision about a "
        "patient.",
        tuple(keys),
    )


def _sections(content: CompareContent) -> tuple[Section, ...]:
    found = (_verdict(content), _metrics(content), _disagreement(content), _flips(content))
    return tuple(section for section in (*found, _made(content)) if section is not None)


def _verdict(content: CompareContent) -> Section:
    confidence = percent(content.config.confidence)
    columns = (
        Column("Question"),
        Column("Change", numeric=True),
        Column(f"{confidence} lower limit", numeric=True),
        Column("Margin", numeric=True),
        Column("Answer"),
    )
    rows = tuple(
        (
            Head(f"{_label(check.name)} not worse", check.reason),
            _signed(check.difference),
            _signed(check.lower),
            f"−{check.margin:g}",
            "passed" if check.passed else "not passed",
        )
        for check in content.comparison.checks
    )
    view = TablesView(
        "A question is passed where the one-sided limit of “new minus old” lies above minus the "
        f"margin, on at least {content.config.fewest} patients of each class. The limit is the "
        "lower of the bootstrap’s over patients and DeLong’s (AUC) or Tango’s (shares).",
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
        Column("Change", numeric=True),
        Column(f"{level} interval", numeric=True),
    ]
    if content.one_scale:
        columns.append(Column("New at the old threshold", numeric=True))
        columns.append(Column("Change there", numeric=True))
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
        f"Old at its threshold {number(found.thresholds[0], 4)}, new at its own "
        f"{number(found.thresholds[1], 4)}. Both on the same resampled patients; "
        "accuracy, sensitivity and specificity with Tango’s interval."
    )
    note += (
        " Lower is better for Brier score and calibration error."
        if content.one_scale
        else " A score is no probability here: calibration is not compared."
    )
    auc = found.auc
    text = "DeLong’s paired test needs both classes and errors of ranking."
    if auc.p is not None:
        text = (
            f"DeLong’s paired test: AUC changes by {_signed(auc.difference.value)}, p {_p(auc.p)}."
        )
    view = TablesView(text, (Table("Metrics", tuple(columns), tuple(rows), note),))
    return Section("metrics", "Metrics", "Metrics", "sections/tables.html.j2", view)


def _disagreement(content: CompareContent) -> Section:
    columns = (
        Column("Images"),
        Column("Only old right", numeric=True),
        Column("Only new right", numeric=True),
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
    note = "McNemar’s tests take images for independent; where patients have many, p is too small."
    tables = [Table("Disagreement", columns, rows, note)]
    if any(withheld is not None for withheld in content.uncertain):
        tables.append(_uncertain(content))
    view = TablesView("Where the two answer differently, who was right?", tuple(tables))
    title = "Where they disagree"
    return Section("disagree", title, "Disagreement", "sections/tables.html.j2", view, True)


def _uncertain(content: CompareContent) -> Table:
    rows = tuple(
        (name, "never" if withheld is None else count(withheld))
        for name, withheld in zip(("Old model", "New model"), content.uncertain, strict=True)
    )
    return Table(
        "Answered ‘uncertain’",
        (Column("By"), Column("Images", numeric=True)),
        rows,
        "All numbers on this page go by the threshold, as if no answer were withheld.",
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
        f"{plural(content.flipped, 'answer')} changed; {shown}, newly wrong ones first. Each: "
        "the X-ray, then under the old and the new model’s heatmap.",
        tuple(_flip(flip, content.comparison.thresholds) for flip in content.flips),
    )
    return Section("flips", "Changed answers", "Changed", "sections/flips.html.j2", view)


def _listed_flips(content: CompareContent) -> Section:
    """The cases whose answer changed as a table, where there are no images to show."""
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
        f"{plural(content.flipped, 'answer')} changed, newly wrong ones first.",
        (Table("Changed answers", columns, rows, note),),
    )
    return Section("flips", "Changed answers", "Changed", "sections/tables.html.j2", view)


def _now(flip: Flip, thresholds: tuple[float, float]) -> str:
    return "right" if int(flip.probabilities[1] >= thresholds[1]) == flip.label else "wrong"


def _flip(flip: Flip, thresholds: tuple[float, float]) -> FlipView:
    label = CLASS_NAMES[flip.label].lower()
    before, after = (number(value, 3) for value in flip.probabilities)
    pictures = [(data_uri(flip.thumbnail or b""), f"X-ray labelled {label}")]
    for overlay, name in zip(flip.overlays, ("old", "new"), strict=True):
        if overlay is not None:
            pictures.append((data_uri(overlay), f"The same under the {name} model’s heatmap"))
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
        ("Answered by the old one alone", count(content.only_old)),
        ("Answered by the new one alone", count(content.only_new)),
        *(("Seen before", note) for note in content.notes),
        ("Made by", content.command),
    )
    view = TablesView("", (Table("How it was made", (Column("What"), Column("Which")), rows),))
    return Section("made", "How it was made", "Made", "sections/tables.html.j2", view, True)


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
