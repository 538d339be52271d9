"""`audit.html`: findings of a data audit, then figures and tables.

All numbers come from an `Audit`. The page shows X-rays only if pictures of label-noise candidates
are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.data.audit_record import Audit, DuplicateGroup, Severity
from pneumoscope.report import evidence_sections
from pneumoscope.report.formatting import ABSENT, count, number, plural
from pneumoscope.report.page import (
    Column,
    Drawn,
    FiguresView,
    FindingGroup,
    FindingsView,
    Section,
    Table,
    TablesView,
    render_page,
)

MOST_ROWS = 200
"""Longer tables are truncated on the page; `audit.json` contains all rows."""

_NO_PICTURES: Mapping[str, bytes] = {}

_SEVERITIES: dict[Severity, tuple[str, str]] = {
    "problem": ("Problems", "serious"),
    "warning": ("Warnings", "notable"),
    "note": ("Notes", "fine"),
}

_MOST_SEPARATIONS = 12


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The texts at the top of the page."""

    title: str
    eyebrow: str
    summary: str
    banner: str


def render_audit_page(audit: Audit, pictures: Mapping[str, bytes] = _NO_PICTURES) -> str:
    """The page of an audit as HTML; equal audits give equal bytes.

    Args:
        audit: the results of the audit.
        pictures: PNG bytes by `LabelCandidate.path`; the page then shows X-rays.
    """
    sections = sections_of(audit, pictures)
    return render_page("audit.html.j2", _head(audit, bool(pictures)), sections)


def sections_of(audit: Audit, pictures: Mapping[str, bytes] = _NO_PICTURES) -> tuple[Section, ...]:
    """The sections that have content, in order."""
    found = (
        _findings(audit),
        _balance(audit),
        _spreads(audit),
        _separations(audit),
        evidence_sections.splits(audit),
        _duplicates(audit),
        _patients(audit),
        evidence_sections.likeness(audit),
        evidence_sections.labels(audit, pictures),
        _unreadable(audit),
    )
    return tuple(section for section in found if section is not None)


def _head(audit: Audit, shows_images: bool) -> AuditHead:
    problems = len(audit.with_severity("problem"))
    warnings = len(audit.with_severity("warning"))
    verdict = "no problem" if not problems else plural(problems, "problem")
    return AuditHead(
        title="Data audit",
        eyebrow=Path(audit.root).name or audit.root,
        summary=(
            f"{plural(audit.images, 'image')} of {plural(audit.patients, 'patient')}: {verdict} "
            f"and {plural(warnings, 'warning') if warnings else 'no warning'}. "
            f"{_unreadable_in_words(audit)}"
        ),
        banner=(
            "This page shows X-rays. Share it as carefully as the images themselves."
            if shows_images
            else "This page shows no X-ray, but file names and patient ids may identify patients."
        ),
    )


def _unreadable_in_words(audit: Audit) -> str:
    if not audit.unreadable:
        return "All images could be read."
    return f"{plural(len(audit.unreadable), 'image')} could not be read."


def _findings(audit: Audit) -> Section:
    view = FindingsView(
        tuple(
            FindingGroup(*_SEVERITIES[severity], tuple(found.text for found in own))
            for severity in _SEVERITIES
            if (own := audit.with_severity(severity))
        )
    )
    return Section(
        "findings", "Findings", "Findings", "sections/findings.html.j2", view, flows=True
    )


def _balance(audit: Audit) -> Section | None:
    if not audit.groups:
        return None
    columns = ("Images", "Patients", "Unreadable")
    table = Table(
        "Splits and classes",
        (
            Column("Split, class"),
            *(Column(name, numeric=True) for name in columns),
            Column("Subtypes"),
            Column("Formats"),
        ),
        tuple(
            (
                f"{evidence_sections.where(group.split)}{group.label.lower()}",
                count(group.images),
                count(group.patients),
                count(group.unreadable),
                _listed(group.subtypes),
                _listed(group.formats),
            )
            for group in audit.groups
        ),
    )
    view = FiguresView(
        f"{evidence_sections.images_per_patient(audit.images_per_patient[:6])}."
        if audit.images_per_patient
        else "",
        (Drawn("Images per split and class", evidence_sections.class_balance(audit.groups)),),
        tables=(table,),
    )
    return Section(
        "balance", "Classes and splits", "Classes", "sections/figures.html.j2", view, flows=True
    )


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count(images)}" for name, images in counts) or ABSENT


def _spreads(audit: Audit) -> Section | None:
    figures = []
    for quantity in evidence_sections.QUANTITY_NAMES:
        own = [d for d in audit.distributions if d.quantity == quantity]
        if own:
            figures.append(
                Drawn("", evidence_sections.spread_of(quantity, own, audit.quantile_levels))
            )
    if not figures:
        return None
    view = FiguresView(
        "Dot: median. Wide bar: central 50 % of the images. Narrow bar: central 90 %. Line: range. "
        "Where the groups differ, this quantity alone distinguishes them, without the lungs.",
        tuple(figures),
    )
    title, short = "Size and intensity", "Size, intensity"
    return Section("spread", title, short, "sections/figures.html.j2", view)


def _separations(audit: Audit) -> Section | None:
    if not audit.separations:
        return None
    ranked = sorted(audit.separations, key=lambda pair: -pair.auc)
    names = evidence_sections.QUANTITY_NAMES
    rows = [
        (
            names[pair.quantity].split(",")[0].split(":")[0],
            f"{pair.first} versus {pair.second}",
            "classes" if pair.between == "classes" else "splits",
            number(pair.auc),
        )
        for pair in ranked[:_MOST_SEPARATIONS]
    ]
    table = Table(
        "Discrimination by single quantities",
        (
            Column("Quantity"),
            Column("Groups"),
            Column("Between"),
            Column("AUC", numeric=True),
        ),
        tuple(rows),
        f"The {len(rows)} highest of {count(len(ranked))} AUCs.",
    )
    view = TablesView(
        "How well a single quantity separates two groups: not at all at an AUC of 0.5, perfectly "
        "at 1. A high AUC between classes is a shortcut that a network may learn. A high AUC "
        "between splits is a distribution shift.",
        (table,),
    )
    return Section("shortcuts", "Shortcuts", "Shortcuts", "sections/tables.html.j2", view)


def _duplicates(audit: Audit) -> Section | None:
    if not audit.identical and not audit.near:
        return None
    both = (*audit.identical, *audit.near)
    conflicts = [group for group in both if group.label_conflict]
    across = [group for group in both if group.across_splits and not group.label_conflict]
    rest = [group for group in both if not group.label_conflict and not group.across_splits]
    titled = (
        ("Conflicts: the same image with both labels", conflicts),
        ("Across splits", across),
        ("Within one split, same label", rest),
    )
    tables = tuple(_duplicate_table(title, groups) for title, groups in titled if groups)
    intro = (
        f"{plural(len(audit.identical), 'group')} of identical files and "
        f"{plural(len(audit.near), 'group')} of near duplicates, detected by perceptual hash and "
        "confirmed by the correlation of thumbnails."
    )
    if audit.near_search_stopped:
        intro += " The search reached its limit, so the list is incomplete."
    view = TablesView(intro, tables)
    return Section("duplicates", "Duplicates", "Duplicates", "sections/tables.html.j2", view)


def _duplicate_table(title: str, groups: Sequence[DuplicateGroup]) -> Table:
    rows = tuple(
        (
            group.kind,
            ", ".join(member.path for member in group.members),
            _distinct(evidence_sections.where(m.split).strip() for m in group.members),
            _distinct(m.label.lower() for m in group.members),
            _distinct(m.patient for m in group.members),
            number(group.correlation, 3),
        )
        for group in groups[:MOST_ROWS]
    )
    return Table(
        title,
        (
            Column("Kind"),
            Column("Files", code=True),
            Column("Splits"),
            Column("Labels"),
            Column("Patients"),
            Column("Correlation", numeric=True),
        ),
        rows,
        _row_count(len(groups), "group"),
    )


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value)) or ABSENT


def _patients(audit: Audit) -> Section | None:
    if not audit.shared_patients:
        return None
    rows = tuple(
        (shared.patient, _listed(shared.images)) for shared in audit.shared_patients[:MOST_ROWS]
    )
    table = Table(
        "Patients in more than one split",
        (Column("Patient"), Column("Images per split")),
        rows,
        _row_count(len(audit.shared_patients), "patient"),
    )
    view = TablesView(
        "Results on patients that a model was trained on are too optimistic.", (table,)
    )
    title = "Patients across splits"
    return Section("patients", title, "Patients", "sections/tables.html.j2", view, flows=True)


def _unreadable(audit: Audit) -> Section | None:
    if not audit.unreadable:
        return None
    rows = tuple(
        (
            image.path,
            f"{evidence_sections.where(image.split)}{image.label.lower()}",
            image.reason.replace("_", " "),
            image.detail,
        )
        for image in audit.unreadable[:MOST_ROWS]
    )
    table = Table(
        "Unreadable images",
        (Column("File"), Column("Split, class"), Column("Reason"), Column("Detail")),
        rows,
        _row_count(len(audit.unreadable), "image"),
    )
    intro = (
        f"{count(len(audit.unreadable))} of {plural(audit.images, 'image')}; they are left out of "
        "training and evaluation."
    )
    view = TablesView(intro, (table,))
    title = "Unreadable images"
    return Section("unreadable", title, "Unreadable", "sections/tables.html.j2", view, flows=True)


def _row_count(total: int, what: str) -> str:
    if total <= MOST_ROWS:
        return plural(total, what)
    return f"The first {MOST_ROWS} of {plural(total, what)}; audit.json lists all."
