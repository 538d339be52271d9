"""The sections of a report that consist of text and tables, one function each.

A function returns `None` if its section has no content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pneumoscope.errors import Reason
from pneumoscope.evaluation.evaluate import PROBABILITY_METRICS, Evaluation
from pneumoscope.evaluation.groups import GroupColumn
from pneumoscope.evaluation.proportions import EDGE_METHOD
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.content import ReportContent, RunFacts, WorstError
from pneumoscope.report.formatting import (
    ABSENT,
    METRICS,
    count,
    duration,
    interval,
    metric_text,
    number,
    percent,
    plural,
    setting,
    unrounded,
)
from pneumoscope.report.page import Column, Section, Table, TablesView, data_uri, pairs

_CHARACTERISTICS = {
    "age": re.compile(r"(?<![a-z])age(?![a-z])"),
    "sex": re.compile(r"(?<![a-z])(sex|gender)(?![a-z])"),
    "the severity of disease": re.compile("sever|stage"),
}
"""What the limitations name, and the columns that hold it."""

_REASONS = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True, slots=True)
class RunView:
    """Facts, counts per split, and cautions about the data and the results."""

    intro: str
    facts: tuple[tuple[str, str], ...]
    counts: Table | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric; `reason` explains why it is undefined, `""` if it is defined."""

    name: str
    label: str
    meaning: str
    value: str
    span: str
    reason: str


@dataclass(frozen=True, slots=True)
class MetricsView:
    """The table of metrics and scikit-learn's report."""

    intro: str
    note: str
    level: str
    rows: tuple[MetricRow, ...]
    classification_report: str


@dataclass(frozen=True, slots=True)
class ErrorView:
    """A wrong prediction; `thumbnail` and `overlay` are data URIs."""

    file: str
    label: str
    css: str
    probability: str
    alt: str
    thumbnail: str
    overlay: str


@dataclass(frozen=True, slots=True)
class ErrorsView:
    """The gallery of wrong predictions."""

    intro: str
    errors: tuple[ErrorView, ...]


@dataclass(frozen=True, slots=True)
class LimitsView:
    """The parts of the limitations that depend on this evaluation."""

    noun: str
    rule: str
    prevalence: str
    optimism: str
    groups: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration field with its value and help text."""

    name: str
    value: str
    help: str


@dataclass(frozen=True, slots=True)
class SettingGroup:
    """The fields of one configuration dataclass; the outermost has no name."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class ReproductionView:
    """Commands, versions, settings."""

    intro: str
    commands: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    settings: tuple[SettingGroup, ...]


def run(content: ReportContent) -> Section:
    """What was run on which data."""
    data, facts = content.data, content.run
    total = sum(facts.seconds.values())
    stages = ", ".join(f"{stage} {duration(s)}" for stage, s in facts.seconds.items())
    known = {
        "Model": content.model.name,
        **content.model.facts,
        "Data": data.name,
        "Data fingerprint": data.fingerprint,
        "Evaluated split": content.split,
        "Started": facts.started,
        "Time": f"{duration(total)} ({stages})" if facts.seconds else "",
    }
    view = RunView(
        intro="The model, the data, and the run time.",
        facts=pairs(known),
        counts=_counts_table(content) if data.counts else None,
        warnings=data.warnings,
    )
    return Section("run", "What was run", "Run", "sections/run.html.j2", view, flows=True)


def _counts_table(content: ReportContent) -> Table:
    rows = tuple(
        (
            c.name,
            count(c.normal),
            count(c.pneumonia),
            count(c.normal + c.pneumonia),
            percent(c.pneumonia / (c.normal + c.pneumonia) if c.normal + c.pneumonia else None, 1),
            count(c.patients),
        )
        for c in content.data.counts
    )
    columns = ("Normal", "Pneumonia", "X-rays", "With pneumonia", "Patients")
    return Table(
        "X-rays and patients per split",
        (Column("Split"), *(Column(name, numeric=True) for name in columns)),
        rows,
        "No patient is in more than one split." if content.data.disjoint and len(rows) > 1 else "",
    )


def metrics(content: ReportContent) -> Section:
    """All metrics with their intervals."""
    found = content.evaluation
    names = [n for n in METRICS if n in found.metrics]
    names += [n for n in found.metrics if n not in METRICS]
    note = (
        f"{plural(found.interval.resamples, 'bootstrap resample')} of patients; {EDGE_METHOD}. "
        "Lower is better for: "
        + ", ".join(t.label for t in METRICS.values() if t.lower_is_better)
        + "."
    )
    view = MetricsView(
        intro=(
            f"At the threshold {unrounded(found.threshold)} ({found.rule}). "
            f"{plural(found.n, 'X-ray')}, {count(found.positives)} with pneumonia. "
            f"{found.why_no_intervals}".rstrip()
        ),
        note=note,
        level=percent(found.interval.level),
        rows=tuple(_metric_row(name, found) for name in names),
        classification_report=found.classification_report.strip("\n"),
    )
    return Section("metrics", "Metrics", "Metrics", "sections/metrics.html.j2", view)


def _metric_row(name: str, found: Evaluation) -> MetricRow:
    estimate, text = found.metrics[name], metric_text(name)
    return MetricRow(
        name=name,
        label=text.label,
        meaning=text.meaning,
        value=number(estimate.value),
        span=interval(estimate),
        reason=_why_undefined(name, found) if estimate.value is None else "",
    )


def _why_undefined(name: str, found: Evaluation) -> str:
    if name in PROBABILITY_METRICS and not found.scale.probability:
        return "the score is not a probability"
    return metric_text(name).undefined


def worst_errors(content: ReportContent) -> Section | None:
    """The wrong predictions with the highest confidence."""
    if not content.worst_errors:
        return None
    view = ErrorsView(
        intro=(
            f"The {plural(len(content.worst_errors), 'wrong prediction')} whose probability is "
            "furthest from the label, worst first. Warm colours in a heatmap mark the regions that "
            "raised the predicted probability of pneumonia. Some of these may be label noise."
        ),
        errors=tuple(_error(error) for error in content.worst_errors),
    )
    return Section("errors", "Worst errors", "Worst errors", "sections/errors.html.j2", view)


def _error(error: WorstError) -> ErrorView:
    label = CLASS_NAMES[error.label].lower()
    return ErrorView(
        file=error.file,
        label=label,
        css=label,
        probability=number(error.probability, 3),
        alt=f"X-ray labelled {label}, predicted probability {number(error.probability, 3)}",
        thumbnail=data_uri(error.thumbnail),
        overlay=data_uri(error.overlay) if error.overlay is not None else "",
    )


def refused(content: ReportContent) -> Section | None:
    """Inputs without a result, by reason."""
    if not content.refused:
        return None
    total = sum(found.count for found in content.refused)
    rows = tuple(
        (
            found.reason.replace("_", " "),
            Reason(found.reason).status if found.reason in _REASONS else ABSENT,
            count(found.count),
            ", ".join(found.examples) or ABSENT,
        )
        for found in sorted(content.refused, key=lambda found: -found.count)
    )
    table = Table(
        "Inputs without a result",
        (Column("Reason"), Column("Status"), Column("Inputs", numeric=True), Column("Examples")),
        rows,
    )
    view = TablesView(
        f"{plural(total, 'input')} gave no result and {'is' if total == 1 else 'are'} excluded "
        "from all metrics.",
        (table,),
    )
    return Section("refused", "Rejected inputs", "Rejected", "sections/tables.html.j2", view, True)


def limits(content: ReportContent) -> Section:
    """How to read the numbers, and their limitations."""
    found = content.evaluation
    view = LimitsView(
        found.scale.noun,
        found.rule,
        percent(found.positives / found.n, 1),
        _optimism(content),
        subgroup_sentence(found.groups),
    )
    return Section("limits", "Limits and use", "Limits", "sections/limits.html.j2", view)


def _optimism(content: ReportContent) -> str:
    """Whether the model was fitted to these images; the name of a split alone does not show it."""
    learning, seen = content.learning, content.seen
    if learning is not None:
        chosen = "threshold was" if learning.keep == "last" else "epoch and the threshold were"
        return (
            f"The {chosen} chosen on these validation images, so the results are slightly "
            "optimistic. Only a test set that was not used for any choice avoids this."
        )
    if seen is not None and (seen.known or seen.is_optimistic):
        return seen.in_words() if seen.is_optimistic else ""
    if content.split == "test":
        return ""
    return (
        "If the model was trained on some of these images, or its threshold chosen on them, the "
        "results are optimistic."
    )


def subgroup_sentence(groups: Sequence[GroupColumn]) -> str:
    """Which of age, sex and severity are known, and what that means for subgroup analyses."""
    compared: list[str] = []
    rest = []
    unknown = []
    for what, pattern in _CHARACTERISTICS.items():
        columns = [column for column in groups if pattern.search(_spaced(column.name))]
        if any(column.groups for column in columns):
            compared.append(what)
        elif columns:
            rest.append(f"{_sentence(what)} can’t be compared: {columns[0].note}.")
        else:
            unknown.append(what)
    if len(unknown) == len(_CHARACTERISTICS):
        return (
            "Age, sex and the severity of disease are unknown in these data, so differences "
            "between groups of patients can’t be assessed."
        )
    if compared:
        rest.insert(0, f"Results by {' and '.join(compared)} are compared above.")
    if unknown:
        is_are = "is" if len(unknown) == 1 else "are"
        rest.append(f"{_sentence(' and '.join(unknown))} {is_are} unknown in these data.")
    return " ".join((*rest, "Differences between hospitals or countries can’t be assessed."))


def _spaced(name: str) -> str:
    """`PatientSex`, a DICOM keyword, as `patient sex`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def reproduction(content: ReportContent) -> Section:
    """Commands, versions and settings."""
    return reproduction_section(content.run, content.commands)


def reproduction_section(facts: RunFacts, commands: Mapping[str, str] | None = None) -> Section:
    """Commands, versions and settings of any page; its own command comes first."""
    view = ReproductionView(
        intro="The same data, settings, seed and versions give the same results.",
        commands=(("Command that produced this page", facts.command), *(commands or {}).items()),
        versions=pairs(facts.versions),
        settings=_settings(facts.config) if facts.config is not None else (),
    )
    return Section(
        "reproduce", "How to reproduce it", "Reproduce", "sections/reproduce.html.j2", view
    )


def _settings(config: Any, name: str = "") -> tuple[SettingGroup, ...]:
    """The fields of a configuration dataclass; each nested dataclass becomes its own group."""
    plain: list[Setting] = []
    nested: list[SettingGroup] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            nested.extend(_settings(value, f"{name}.{field.name}".lstrip(".")))
        else:
            plain.append(Setting(field.name, setting(value), str(field.metadata.get("help", ""))))
    return (SettingGroup(name, tuple(plain)), *nested)
