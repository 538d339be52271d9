"""`stress.html`: findings of a stress test, tables, curves, shortcut tests and example images.

All numbers come from `StressContent`; nothing is computed here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pneumoscope.evaluation.stress import METRICS, Paired
from pneumoscope.images.grey import summary
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.report import stress_plots
from pneumoscope.report.formatting import (
    ABSENT,
    count,
    interval,
    number,
    percent,
    plural,
    with_interval,
)
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    FindingGroup,
    FindingsView,
    Section,
    Table,
    TablesView,
    data_uri,
    notes,
    render_page,
)
from pneumoscope.report.report_page import KeyNumber, ReportHead
from pneumoscope.report.stress_findings import (
    BASELINE_NAMES,
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
    "holds": "within the limit",
    "unsure": "within the limit, inconclusive",
    "fails": "exceeded",
    "shown": ABSENT,
}
_METRIC_COLUMNS = (
    Column("Sensitivity", numeric=True),
    Column("Specificity", numeric=True),
    Column("AUC", numeric=True),
)

_SHORT_BASELINES = {
    "lung_box": "lung box",
    "matched_box": "lung box, framing matched",
    "thumbnails": "16×16 thumbnail",
    "properties": "file properties",
    "outline": "lung outline",
}


@dataclass(frozen=True, slots=True)
class ExampleView:
    """An image as a data URI, with its caption."""

    picture: str
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """The example images of one sweep."""

    title: str
    examples: tuple[ExampleView, ...]


@dataclass(frozen=True, slots=True)
class ExamplesView:
    """One image under every change."""

    intro: str
    groups: tuple[ExampleGroup, ...]


@dataclass(frozen=True, slots=True)
class MethodView:
    """The parts of the method section that depend on this test."""

    level: str
    largest_fall: str
    longest_side: str
    ring: str
    quality: str
    folds: int
    unsure: str


def render_stress_page(content: StressContent) -> str:
    """The page as HTML; equal contents give equal bytes."""
    return render_page("report.html.j2", _head(content), sections_of(content))


def stress_figures(content: StressContent) -> tuple[Svg, ...]:
    """All figures: a curve per sweep, and the AUCs of the shortcut tests if they were run."""
    figures = []
    for sweep in SWEEPS:
        rows = [row for row in content.rows if row.sweep == sweep.name]
        level = content.interval.level
        figures.append(stress_plots.sweep_curves(sweep, rows, content.plain, level))
    if content.shortcuts is not None:
        figures.append(_auc_figure(content, content.shortcuts))
    return tuple(figures)


def sections_of(content: StressContent) -> tuple[Section, ...]:
    """The sections that have content, in order."""
    figures = {svg.name: svg for svg in stress_figures(content)}
    found = (
        notes(_notes(content)),
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
        KeyNumber("Largest decrease", number(max(plausible[0].found.fall, 0.0)), plausible[0].title)
    )
    of = f" of {count(content.drawn_from)}" if content.drawn_from > content.sampled else ""
    return ReportHead(
        title="Stress test",
        eyebrow=" · ".join((content.model.name, content.data.name)),
        summary=(
            f"{plural(content.images, 'X-ray')}{of} from {plural(content.patients, 'patient')}, "
            f"{count(content.positives)} with pneumonia, tested unchanged and with "
            f"{plural(len(content.rows), 'change')} at the model’s threshold of "
            f"{number(content.threshold, 2)}. {verdict(content)} "
            f"{content.model.facts.get('Seen before', '')}"
        ).rstrip(),
        banner=(
            "A model that is robust to these changes may still fail on other patients. Do not use "
            "it for decisions about patients."
        ),
        keys=tuple(keys),
    )


def _notes(content: StressContent) -> tuple[str, ...]:
    """The sample, images without a result, unusual files, and cautions about the data."""
    found = []
    if content.sampled < content.drawn_from:
        found.append(
            f"The test is on a sample of {count(content.sampled)} of "
            f"{plural(content.drawn_from, 'image')}: whole patients, drawn by class."
        )
    if content.refused:
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in content.refused.items())
        found.append(
            f"{count(sum(content.refused.values()))} of {plural(content.sampled, 'image')} gave no "
            f"result when unchanged and are excluded: {reasons}."
        )
    if content.warned:
        found.append(f"Images with unusual files: {summary(Counter(content.warned))}.")
    return (*content.data.warnings, *found)


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
    shown = {"Rejected": refusing, "Indeterminate": withheld is not None}
    counted = tuple(Column(name, numeric=True) for name, is_shown in shown.items() if is_shown)
    changes = Table(
        "Differences from the unchanged images, worst first",
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
        "Change of each metric on the same images, with the interval of the paired difference; "
        "sorted by the larger decrease of sensitivity and specificity."
        + (
            " ‘Indeterminate’ counts the images in the abstention band; of the unchanged images, "
            f"these are {count(withheld['plain'])}. All metrics apply the threshold to them."
            if withheld is not None
            else ""
        ),
    )
    values = Table(
        "Values on the changed images",
        (Column("X-rays"), *_METRIC_COLUMNS),
        tuple((row.title, *_values(row)) for row in rows),
        "Each metric on the changed images, with its interval, in the same order.",
        ["unchanged", *(with_interval(content.plain[metric]) for metric in METRICS)],
    )
    view = TablesView("", (changes, values))
    return Section("changes", "Effect of each change", "Changes", "sections/tables.html.j2", view)


def _values(row: StressRow) -> list[str]:
    return [with_interval(row.found.changed[metric]) for metric in METRICS]


def _differences(found: Paired) -> list[str]:
    return [with_interval(found.difference[metric]) for metric in METRICS]


def _curves(figures: dict[str, Svg]) -> Section:
    view = FiguresView(
        "Circles: sensitivity; squares: specificity; triangles: AUC, each with its interval at "
        "every strength. Shaded strengths are plausible; the limit applies to these.",
        tuple(Drawn("", svg) for name, svg in figures.items() if name.startswith("sweep-")),
        small=True,
    )
    title = "Performance against strength"
    return Section("curves", title, "Curves", "sections/figures.html.j2", view)


def _auc_figure(content: StressContent, shortcuts: Shortcuts) -> Svg:
    rows = [stress_plots.AucRow("the model, whole image", content.plain["auc"])]
    rows += [
        stress_plots.AucRow(row.title, row.found.changed["auc"])
        for row in (*shortcuts.framing, *shortcuts.rows)
    ]
    for name, baseline in shortcuts.baselines.items():
        if baseline is not None:
            label = f"baseline: {_SHORT_BASELINES[name]}"
            rows.append(stress_plots.AucRow(label, baseline.auc, MUTED))
    return stress_plots.auc_rows(rows, content.interval.level)


def _shortcuts(content: StressContent, figures: dict[str, Svg]) -> Section | None:
    shortcuts = content.shortcuts
    if shortcuts is None:
        return None
    parts = Table(
        "Results on parts of the image",
        (Column("Visible part"), *_METRIC_COLUMNS, Column("X-rays", numeric=True)),
        tuple((row.title, *_values(row), count(row.found.images)) for row in shortcuts.rows),
        "Each metric with its interval, on the images in which the part exists.",
    )
    level = percent(content.interval.level)
    baselines = Table(
        "Shortcut baselines, trained without the model",
        (Column("Input of the baseline"), Column("AUC", numeric=True),
         Column(f"{level} interval", numeric=True), Column("Images", numeric=True)),
        tuple(
            (BASELINE_NAMES[name], number(found.auc.value), interval(found.auc),
             count(found.images))
            for name, found in shortcuts.baselines.items() if found is not None
        ),
        f"Logistic regression, trained on these images alone in {content.config.folds}-fold "
        "cross-validation by patient.",
    )  # fmt: skip
    source = "your masks" if shortcuts.lungs_from == "masks" else "a simple segmentation"
    intro = (
        f"Lung masks from {source}: usable on {plural(shortcuts.with_lungs, 'X-ray')}; the other "
        f"{count(shortcuts.without_lungs)} are left out where masks are needed. On average, "
        f"{with_interval(shortcuts.energy)} of a heatmap’s energy lies in the lungs, which cover "
        f"{number(shortcuts.lung_share.value)} of the image. {heatmap_sentence(shortcuts)}"
    )
    exchanged = Table(
        "Parts replaced from another image: other class minus same class",
        (Column("Replaced part"), *_METRIC_COLUMNS, Column("X-rays", numeric=True)),
        tuple(
            (row.title, *_differences(row.found), count(row.found.images))
            for row in shortcuts.exchanges
        ),
        "Metrics with the part taken from an image of the other class, minus those with the part "
        "taken from an image of the same class, on the same X-rays. The part comes from the next "
        "image of another patient. The difference is 0 for a model that uses only the lungs.",
    )
    framing = Table(
        "Framing matched: the lungs fill the same share of every image",
        (Column("X-rays"), Column("Limit"), *_METRIC_COLUMNS),
        tuple((row.title, _JUDGED[row.judgement], *_values(row)) for row in shortcuts.framing),
        "Each image is cropped so that the lungs’ bounding box fills a fixed share of its width "
        f"and height; for {count(shortcuts.without_lungs)} without detected lungs, the median box "
        "is used.",
        ["unchanged", ABSENT, *(with_interval(content.plain[metric]) for metric in METRICS)],
    )
    tables = tuple(table for table in (framing, parts, exchanged, baselines) if table.rows)
    view = FiguresView(intro, (Drawn("", figures["shortcuts"]),), tables=tables)
    title = "Does the model use the lungs?"
    return Section("shortcuts", title, "Shortcuts", "sections/figures.html.j2", view)


def _examples(examples: tuple[Example, ...]) -> Section | None:
    if not examples:
        return None
    groups: dict[str, list[ExampleView]] = {}
    for example in examples:
        note = "no result" if example.probability is None else number(example.probability)
        groups.setdefault(example.sweep, []).append(
            ExampleView(data_uri(example.picture), example.title, note)
        )
    view = ExamplesView(
        "One X-ray of the test under every change, with its predicted probability of pneumonia.",
        tuple(ExampleGroup(title, tuple(found)) for title, found in groups.items()),
    )
    return Section("examples", "Examples", "Examples", "sections/examples.html.j2", view)


def _method(content: StressContent) -> Section:
    config = content.config
    view = MethodView(
        percent(content.interval.level),
        f"{config.largest_fall:g}",
        count(config.longest_side),
        f"{100 * config.ring:g}\N{NO-BREAK SPACE}%",
        f"{config.lung_quality:g}",
        config.folds,
        _JUDGED["unsure"],
    )
    template = "sections/stress_method.html.j2"
    return Section("method", "Method and interpretation", "Method", template, view)
