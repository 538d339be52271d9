from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from pneumoscope.data.audit_record import (
    Audit,
    Distribution,
    DuplicateGroup,
    Finding,
    Group,
    Member,
    SharedPatient,
    Unreadable,
)
from pneumoscope.data.duplicates import QUANTILE_LEVELS, describe, separations
from pneumoscope.report import evidence_sections
from pneumoscope.report.audit_page import MOST_ROWS, render_audit_page

HOSTILE = "<script>alert('x')</script>$x$.png"


def duplicates(*, conflict: bool, count: int = 1) -> tuple[DuplicateGroup, ...]:
    return tuple(
        DuplicateGroup(
            "near",
            (
                Member(f"train/NORMAL/a{i}.png", "train", "NORMAL", f"p{i}"),
                Member(
                    f"train/other/b{i}.png", "train", "PNEUMONIA" if conflict else "NORMAL", "q"
                ),
            ),
            2,
            0.985,
            across_splits=False,
            across_patients=True,
            label_conflict=conflict,
        )
        for i in range(count)
    )


@pytest.fixture(scope="module")
def audit() -> Audit:
    rng = np.random.default_rng(3)
    cells = [("train", "NORMAL")] * 40 + [("train", "PNEUMONIA")] * 60 + [("test", "NORMAL")] * 25
    numbers = rng.uniform(0.5, 1.0, (125, 6)) * [2000, 1500, 1.5, 300_000, 0.6, 0.3]
    spread = describe(numbers, cells)
    return Audit(
        root="/somewhere/phantoms",
        images=1226,
        patients=90,
        findings=(
            Finding("problem", "shared_patients", "A problem with a cure."),
            Finding("warning", "shortcut", f"A warning about {HOSTILE}."),
            Finding("note", "class_balance", "A note."),
        ),
        groups=(
            Group("train", "NORMAL", 1040, 30, 1, (), (("PNG", 1039),)),
            Group("train", "PNEUMONIA", 161, 40, 0, (("bacteria", 99), ("virus", 62)), ()),
            Group("test", "NORMAL", 25, 20, 0, (), ()),
        ),
        unreadable=(Unreadable(HOSTILE, "train", "NORMAL", "not_an_image", "text inside"),),
        identical=(),
        near=duplicates(conflict=True),
        near_search_stopped=True,
        shared_patients=(SharedPatient("bacteria-417", (("train", 3), ("test", 1))),),
        images_per_patient=((1, 60), (2, 30)),
        quantile_levels=QUANTILE_LEVELS,
        edges=spread.edges,
        distributions=spread.distributions,
        separations=separations(numbers, cells),
    )


@pytest.fixture(scope="module")
def html(audit: Audit) -> str:
    return render_audit_page(audit)


def test_findings_come_first_and_gravest_first(html: str) -> None:
    places = [
        html.index(part)
        for part in ("A problem with a cure.", "A warning about", "A note.", 'id="balance"')
    ]
    assert places == sorted(places)
    assert "1,226 images of 90 patients: 1 problem and 1 warning. 1 image could not" in html


def test_counts_duplicates_patients_and_unreadable_are_shown(html: str) -> None:
    for part in (
        "1,040",
        "bacteria 99, virus 62",
        "60 patients with 1 image, 30 patients with 2 images",
        "Conflicts: the same image with both labels",
        "train/NORMAL/a0.png, train/other/b0.png",
        "0.985",
        "The search reached its limit",
        "bacteria-417",
        "train 3, test 1",
        "not an image",
        "text inside",
    ):
        assert part in html, part


def test_hostile_names_are_escaped(html: str) -> None:
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2


def test_nothing_is_requested_and_figures_have_readings(html: str) -> None:
    assert "src=" not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert html.count("<svg ") == 7
    assert html.count('role="img" aria-label="') == 7


def test_sections_without_content_disappear(audit: Audit) -> None:
    empty = replace(
        audit,
        groups=(),
        unreadable=(),
        near=(),
        shared_patients=(),
        distributions=(),
        separations=(),
        findings=(),
    )
    html = render_audit_page(empty)
    assert "No problem was found" in html
    assert "All images could be read." in html
    for section in ("balance", "spread", "shortcuts", "duplicates", "patients", "unreadable"):
        assert f'id="{section}"' not in html


def test_long_tables_are_cut_and_say_so(audit: Audit) -> None:
    many = replace(audit, near=duplicates(conflict=False, count=MOST_ROWS + 5))
    html = render_audit_page(many)
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} groups" in html
    assert html.count("<code>train/NORMAL/") == MOST_ROWS


def test_same_audit_gives_the_same_bytes(audit: Audit, html: str) -> None:
    assert render_audit_page(audit) == html


def test_spread_states_the_medians_with_units() -> None:
    found = Distribution(
        "file_bytes", "none", "NORMAL", 3, 1.0, (1e3, 1e3, 2e3, 14_200, 2e4, 3e4, 3e4), (3,)
    )
    svg = evidence_sections.spread_of("file_bytes", [found], QUANTILE_LEVELS)
    assert svg.reading == "Medians: normal 14.2 kB."
    ElementTree.fromstring(svg.inline)  # noqa: S314
    flat = replace(found, quantity="width", split="val", quantiles=(224.0,) * 7)
    svg = evidence_sections.spread_of("width", [flat], QUANTILE_LEVELS)
    assert svg.reading == "Medians: val normal 224 px."
