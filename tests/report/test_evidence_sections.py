from __future__ import annotations

from xml.etree import ElementTree

import pytest

from pneumoscope.data.audit_record import (
    Audit,
    Driver,
    Evidence,
    LabelCandidate,
    LabelReview,
    PatientSimilarity,
    SplitTest,
)
from pneumoscope.report import evidence_sections, plots
from pneumoscope.report.audit_page import render_audit_page

PNG = b"\x89PNG no more than bytes"


def audit_of(evidence: Evidence) -> Audit:
    return Audit("/x", 5, 4, (), (), (), (), (), False, (), (), (), (), (), (), evidence)


def doubts(count: int) -> LabelReview:
    found = tuple(
        LabelCandidate(f"test/NORMAL/<b>{k}.png", "test", "NORMAL", f"p{k}", 0.02, 0.96)
        for k in range(count)
    )
    return LabelReview("thumbnails", 300, 0.97, (("NORMAL", 2.0), ("PNEUMONIA", 0.4)), found)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence(
        likeness=(
            PatientSimilarity(
                "patient", "NORMAL in train", 58, 157, 0.08, 0.002, 0.02, 0.13, 0.002, 0.03
            ),
            PatientSimilarity(
                "across", "PNEUMONIA in train and test", 9, 20, 0.3, 0.0, 0.1, 0.5, 0.008
            ),
        ),
        split_tests=(
            SplitTest(
                "PNEUMONIA",
                "train",
                "val",
                1234,
                800,
                0.74,
                0.71,
                0.77,
                0.72,
                0.68,
                (Driver("deviation", 0.65, 0.21, 0.23), Driver("width", 0.6, 1024, 2000)),
            ),
        ),
        labels=doubts(3),
    )


def test_the_page_reports_all_three(evidence: Evidence) -> None:
    html = render_audit_page(audit_of(evidence))
    for part in (
        'id="likeness"',
        "Pneumonia in train and test",
        "images with the same id in two splits",
        'id="shift"',
        "Pneumonia, train and val",
        "1,234",
        "contrast 0.21 → 0.23 (0.65); width 1,024 px → 2,000 px (0.60)",
        'id="labels"',
        "about 2 NORMAL and 0 PNEUMONIA labels are wrong",
        "test/NORMAL/&lt;b&gt;0.png",
    ):
        assert part in html, part
    assert "<img" not in html
    assert "This page shows no X-ray" in html
    assert "<b>" not in html


def test_pictures_make_a_gallery_and_a_warning(evidence: Evidence) -> None:
    html = render_audit_page(audit_of(evidence), {"test/NORMAL/<b>1.png": PNG})
    assert html.count('<img src="data:image/png;base64,') == 1
    assert "This page shows X-rays" in html
    assert "This page contains X-rays." in html
    # The others stand in the table below it.
    assert html.count(">test/NORMAL/&lt;b&gt;") == 3


def test_long_lists_are_cut_and_say_so() -> None:
    most = evidence_sections.MOST_DOUBTS
    html = render_audit_page(audit_of(Evidence(labels=doubts(most + 5))))
    assert f"The first {most} of {most + 5}; audit.json lists all." in html
    assert html.count(">test/NORMAL/") == most


def test_nothing_to_show() -> None:
    html = render_audit_page(audit_of(Evidence()))
    for section in ("likeness", "shift", "labels"):
        assert f'id="{section}"' not in html


def test_figures_read_aloud(evidence: Evidence) -> None:
    alike = plots.likeness_intervals(evidence.likeness)
    assert alike.reading == (
        "Excess similarity: Normal in train 0.08 (0.02 to 0.13); "
        "Pneumonia in train and test 0.30 (0.10 to 0.50)."
    )
    shift = plots.split_areas(evidence.split_tests)
    assert shift.reading == "AUC between splits: Pneumonia, train and val 0.74 (0.71 to 0.77)."
    for svg in (alike, shift):
        ElementTree.fromstring(svg.inline)  # noqa: S314
