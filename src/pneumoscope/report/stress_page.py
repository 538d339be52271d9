"""The page of a stress test: findings first, then the table, curves, shortcuts, one film changed.

Comes in: `StressContent`. Goes out: `stress.html`, one file that opens from disk.
Loads no model and measures nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumoscope.evaluation.stress import METRICS, Paired
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.records import Estimate
from pneumoscope.report import stress_plots
from pneumoscope.report.audit_page import FindingGroup, FindingsView
from pneumoscope.report.formatting import ABSENT, count, interval, number, percent, plural
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    Section,
    Table,
    TablesView,
    data_uri,
    render_page,
    write_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead
from pneumoscope.report.stress_findings import (
    CONTROL_NAMES,
    Example,
    Shortcuts,
    StressContent,
    StressRow,
    heatmap_sentence,
    stress_findings,
    verdict,
)
from pneumoscope.report.svg import MUTED, Svg
from pneumoscope.report.text_sections import reproduction_section

_GROUPS = {"problem": ("Problems", "serious"), "warning": ("Warnings", "notable"),
           "note": ("Notes", "fine")}  # fmt: skip
_JUDGED = {
    "holds": "within",
    "unsure": "within, unsure",
    "fails": "beyond",
    "shown": ABSENT,
}
_METRIC_COLUMNS = (
    Column("Sensitivity", numeric=True),
    Column("Specificity", numeric=True),
    Column("AUC", numeric=True),
)


@dataclass(frozen=True, slots=True)
class ExampleView:
    """A picture as an address inside the page, and what stands below it."""

    picture: str
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """The pictures of one sweep."""

    title: str
    examples: tuple[ExampleView, ...]


@dataclass(frozen=True, slots=True)
class ExamplesView:
    """One film under every change."""

    intro: str
    groups: tuple[ExampleGroup, ...]


@dataclass(frozen=True, slots=True)
class MethodView:
    """What of the method depends on this test."""

    level: str
    largest_fall: str
    longest_side: str
    ring: str
    quality: str
    folds: int


def write_stress_page(path: Path, content: StressContent) -> None:
    """Write the page to `path`, whole or not at all; the same content gives the same bytes.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_page(path, "report.html.j2", _head(content), sections_of(content))


def render_stress_page(content: StressContent) -> str:
    """The page as HTML text."""
    return render_page("report.html.j2", _head(content), sections_of(content))


def stress_figures(content: StressContent) -> tuple[Svg, ...]:
    """Every figure: a curve per sweep, and the shortcuts' AUCs where they were asked for."""
    figures = []
    for sweep in SWEEPS:
        rows = [row for row in content.rows if row.sweep == sweep.name]
        level = content.interval.level
        figures.append(stress_plots.sweep_curves(sweep, rows, content.plain, level))
    if content.shortcuts is not None:
        figures.append(_auc_figure(content, content.shortcuts))
    return tuple(figures)


def sections_of(content: StressContent) -> tuple[Section, ...]:
    """The sections that have something to show, in the page's order."""
    figures = {svg.name: svg for svg in stress_figures(content)}
    found = (
        _findings(content),
        _changes(content),
        _curves(figures),
        _shortcuts(content, figures),
        _examples(content.examples),
        _method(content),
        reproduction_section(content.run),
    )
    return tuple(section for section in found if section is not None)


def _head(content: StressContent) -> ReportHead:
    level = percent(content.interval.level)
    keys = [
        KeyNumber(
            {"auc": "AUC"}.get(metric, metric.capitalize()),
            number(content.plain[metric].value),
            f"{level}: {interval(content.plain[metric])}",
        )
        for metric in METRICS
    ]
    plausible = [row for row in content.worst_first if row.plausible]
    keys.append(
        KeyNumber("Largest fall", number(max(plausible[0].found.fall, 0.0)), plausible[0].title)
    )
    of = f" of {count(content.drawn_from)}" if content.drawn_from > content.images else ""
    return ReportHead(
        title="Stress test",
        eyebrow=" · ".join((content.model.name, content.data.name)),
        summary=(
            f"{plural(content.images, 'X-ray')}{of}, of {plural(content.patients, 'patient')}, "
            f"{count(content.positives)} with pneumonia, shown to the model as they are and in "
            f"{plural(len(content.rows), 'changed way')}, at its own threshold "
            f"{number(content.threshold, 2)}. {verdict(content)} "
            f"{content.model.facts.get('Seen before', '')}"
        ).rstrip(),
        banner=(
            "A model that withstands these changes may still fail on other patients. Don’t use it "
            "for a decision about a patient."
        ),
        keys=tuple(keys),
    )


def _findings(content: StressContent) -> Section:
    found = stress_findings(content)
    groups = []
    for severity, (title, css) in _GROUPS.items():
        texts = tuple(finding.text for finding in found if finding.severity == severity)
        if texts:
            groups.append(FindingGroup(title, css, texts))
    view = FindingsView(tuple(groups))
    template = "sections/findings.html.j2"
    return Section("findings", "Findings", "Findings", template, view, flows=True)


def _changes(content: StressContent) -> Section:
    rows = content.worst_first
    refusing = any(row.found.refused for row in rows)
    withheld = content.uncertain
    told = {"Refused": refusing, "Uncertain": withheld is not None}
    counted = tuple(Column(name, numeric=True) for name, asked in told.items() if asked)
    changes = Table(
        "What is lost and gained, worst first",
        (Column("X-rays"), Column("Limit"), *_METRIC_COLUMNS, *counted),
        tuple(
            (
                row.title,
                _JUDGED[row.judgement],
                *_differences(row.found),
                *((count(row.found.refused),) if refusing else ()),
                *((count(withheld[row.name]),) if withheld is not None else ()),
            )
            for row in rows
        ),
        "The change of each metric on the same images, with the interval of the paired "
        "difference; sorted by the larger fall of sensitivity and specificity."
        + (
            f" ‘Uncertain’ is what the model would answer for so many; as they are, for "
            f"{count(withheld['plain'])}. They count by the threshold all the same."
            if withheld is not None
            else ""
        ),
    )
    values = Table(
        "What is left",
        (Column("X-rays"), *_METRIC_COLUMNS),
        tuple((row.title, *_values(row)) for row in rows),
        "Each metric of the changed images, with its interval, in the same order.",
        ["as they are", *(_with_interval(content.plain[metric]) for metric in METRICS)],
    )
    view = TablesView("", (changes, values))
    return Section("changes", "What each change costs", "Changes", "sections/tables.html.j2", view)


def _values(row: StressRow) -> list[str]:
    return [_with_interval(row.found.changed[metric]) for metric in METRICS]


def _differences(found: Paired) -> list[str]:
    return [_with_interval(found.difference[metric]) for metric in METRICS]


def _with_interval(estimate: Estimate) -> str:
    span = interval(estimate)
    return number(estimate.value) + (f" ({span})" if span != ABSENT else "")


def _curves(figures: dict[str, Svg]) -> Section:
    view = FiguresView(
        "Circles: sensitivity; squares: specificity; triangles: AUC, each with its interval, at "
        "every strength. Shaded strengths are plausible: the limit is judged by these.",
        tuple(Drawn("", svg) for name, svg in figures.items() if name.startswith("sweep-")),
        small=True,
    )
    return Section("curves", "How it gives way", "Curves", "sections/figures.html.j2", view)


def _auc_figure(content: StressContent, shortcuts: Shortcuts) -> Svg:
    rows = [stress_plots.AucRow("the model, whole film", content.plain["auc"])]
    rows += [
        stress_plots.AucRow(row.title, row.found.changed["auc"])
        for row in (*shortcuts.framing, *shortcuts.rows)
    ]
    for name, control in shortcuts.controls.items():
        if control is not None:
            label = f"no model: {_SHORT_CONTROLS[name]}"
            rows.append(stress_plots.AucRow(label, control.auc, MUTED))
    return stress_plots.auc_rows(rows, content.interval.level)


_SHORT_CONTROLS = {
    "lung_box": "box around the lungs",
    "matched_box": "that box, framing matched",
    "thumbnails": "16×16 thumbnail",
    "properties": "file properties",
    "outline": "outline of the lungs",
}


def _shortcuts(content: StressContent, figures: dict[str, Svg]) -> Section | None:
    shortcuts = content.shortcuts
    if shortcuts is None:
        return None
    parts = Table(
        "Parts of the film, shown to the model",
        (Column("Shown"), *_METRIC_COLUMNS, Column("X-rays", numeric=True)),
        tuple((row.title, *_values(row), count(row.found.images)) for row in shortcuts.rows),
        "Each metric with its interval, on the images for which there is such a part.",
    )
    level = percent(content.interval.level)
    controls = Table(
        "Controls, trained without the model",
        (Column("Told apart by"), Column("AUC", numeric=True),
         Column(f"{level} interval", numeric=True), Column("Images", numeric=True)),
        tuple(
            (CONTROL_NAMES[name], number(found.auc.value), interval(found.auc),
             count(found.images))
            for name, found in shortcuts.controls.items() if found is not None
        ),
        f"Logistic regression on these images alone, in {content.config.folds} folds that part no "
        "patient.",
    )  # fmt: skip
    whose = "your masks" if shortcuts.lungs_from == "masks" else "a simple segmentation"
    intro = (
        f"Lungs by {whose}: usable on {plural(shortcuts.with_lungs, 'X-ray')}; "
        f"{count(shortcuts.without_lungs)} left out where lungs are needed. Of a heatmap’s energy "
        f"{_with_interval(shortcuts.energy)} lies in the lungs, which take "
        f"{number(shortcuts.lung_share.value)} of the image. {heatmap_sentence(shortcuts)}"
    )
    exchanged = Table(
        "Parts of another film: what the other class changes",
        (Column("Another film’s"), *_METRIC_COLUMNS, Column("X-rays", numeric=True)),
        tuple(
            (row.title, *_differences(row.found), count(row.found.images))
            for row in shortcuts.exchanges
        ),
        "Part lent by the other class minus part lent by the same class, on the same X-rays. The "
        "lender is the next one of another patient; a model that reads the lungs alone answers "
        "alike.",
    )
    framing = Table(
        "Framing matched: the lungs fill the same share of every image",
        (Column("X-rays"), Column("Limit"), *_METRIC_COLUMNS),
        tuple((row.title, _JUDGED[row.judgement], *_values(row)) for row in shortcuts.framing),
        "Each image re-cut so that the lungs’ bounding box fills one share of its width and "
        f"height; {count(shortcuts.without_lungs)} without detected lungs by the median box.",
        ["as they are", ABSENT, *(_with_interval(content.plain[metric]) for metric in METRICS)],
    )
    tables = tuple(table for table in (framing, parts, exchanged, controls) if table.rows)
    view = FiguresView(intro, (Drawn("", figures["shortcuts"]),), tables=tables)
    return Section("shortcuts", "Does it read the lungs?", "Shortcuts", "sections/figures.html.j2",
                   view)  # fmt: skip


def _examples(examples: tuple[Example, ...]) -> Section | None:
    if not examples:
        return None
    groups: dict[str, list[ExampleView]] = {}
    for example in examples:
        note = "no answer" if example.probability is None else number(example.probability)
        groups.setdefault(example.sweep, []).append(
            ExampleView(data_uri(example.picture), example.title, note)
        )
    view = ExamplesView(
        "One X-ray of the test under every change; below each the probability of pneumonia that it "
        "was given.",
        tuple(ExampleGroup(title, tuple(found)) for title, found in groups.items()),
    )
    return Section("examples", "What it looks like", "Examples", "sections/examples.html.j2", view)


def _method(content: StressContent) -> Section:
    config = content.config
    view = MethodView(
        percent(content.interval.level),
        number(config.largest_fall, 2),
        count(config.longest_side),
        f"{100 * config.ring:g}\N{NO-BREAK SPACE}%",
        number(config.lung_quality, 2),
        config.folds,
    )
    template = "sections/stress_method.html.j2"
    return Section("method", "How to read it", "Method", template, view)
