from __future__ import annotations

from dataclasses import replace

import pytest

from pneumoscope.data.audit_record import (
    Driver,
    Evidence,
    LabelCandidate,
    LabelReview,
    PatientSimilarity,
    SplitTest,
)
from pneumoscope.data.findings import evidence_findings

REAL = PatientSimilarity(
    "patient", "PNEUMONIA in train", 400, 900, 0.20, -0.001, 0.15, 0.25, 0.002, 0.05
)
SHARED = PatientSimilarity(
    "across", "PNEUMONIA in train and test", 30, 60, 0.19, 0.0, 0.12, 0.26, 0.002
)
TEST = SplitTest(
    "NORMAL",
    "train",
    "test",
    500,
    400,
    0.94,
    0.92,
    0.96,
    0.91,
    0.80,
    (Driver("mean", 0.83, 0.48, 0.56), Driver("file_bytes", 0.7, 7000, 9000)),
)
REVIEW = LabelReview(
    "thumbnails",
    500,
    0.98,
    (("NORMAL", 2.2), ("PNEUMONIA", 1.1)),
    (
        LabelCandidate("train/NORMAL/a.png", "train", "NORMAL", "a", 0.02, 0.96),
        LabelCandidate("train/NORMAL/b.png", "train", "NORMAL", "b", 0.1, 0.8),
    ),
)


def codes(evidence: Evidence) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in evidence_findings(evidence)]


def test_no_evidence_gives_no_finding() -> None:
    assert evidence_findings(Evidence()) == ()


def test_ids_that_identify_persons_and_ids_that_do_not() -> None:
    (found,) = evidence_findings(Evidence((REAL,)))
    assert (found.severity, found.code) == ("note", "patients_alike")
    assert "similarity 0.20, against 0.00 for different patients" in found.text
    assert "The ids identify persons" in found.text
    drift = replace(REAL, neighbours=0.18)
    assert "may reflect the time of acquisition" in evidence_findings(Evidence((drift,)))[0].text
    chance = replace(REAL, same=0.01, low=-0.04, high=0.05, p_value=0.4)
    assert codes(Evidence((chance,))) == [("warning", "patients_not_alike")]
    assert codes(Evidence((replace(chance, patients=8),))) == []


def test_a_wide_interval_does_not_show_that_ids_identify_nobody() -> None:
    wide = replace(REAL, same=0.119, low=0.02, high=0.22, p_value=0.02)
    (found,) = evidence_findings(Evidence((wide,)))
    assert (found.severity, found.code) == ("note", "patients_unclear")
    assert "not more similar" not in found.text


def test_shared_ids_are_a_leak_or_start_again_or_are_unclear() -> None:
    assert codes(Evidence((REAL, SHARED)))[1] == ("problem", "shared_patients_alike")
    other = replace(SHARED, same=0.0, low=-0.05, high=0.06, p_value=0.5)
    assert codes(Evidence((REAL, other)))[1] == ("warning", "shared_patients_differ")
    assert codes(Evidence((other,))) == [("warning", "shared_patients_unclear")]
    wide = replace(other, low=-0.2, high=0.2)
    assert codes(Evidence((REAL, wide)))[1] == ("warning", "shared_patients_unclear")


def test_numbers_of_two_series() -> None:
    numbers = replace(SHARED, kind="number", same=0.0, low=-0.02, high=0.02, p_value=0.5)
    assert codes(Evidence((REAL, numbers)))[1] == ("note", "numbers_not_alike")
    assert codes(Evidence((numbers,))) == [("note", "numbers_unclear")]
    other_class = replace(REAL, where="NORMAL in train")
    assert codes(Evidence((other_class, numbers)))[1] == ("note", "numbers_unclear")
    assert codes(Evidence((replace(numbers, p_value=0.002),))) == [("warning", "numbers_alike")]


def test_separable_splits_and_their_drivers() -> None:
    (found,) = evidence_findings(Evidence(split_tests=(TEST,)))
    assert (found.severity, found.code) == ("warning", "splits_told_apart")
    assert found.text.startswith(
        "NORMAL images of train and test can be separated: AUC 0.94 (95 % interval 0.92 to 0.96)"
    )
    assert "most in brightness (median 0.48 in train, 0.56 in test; AUC of it alone 0.83)" in (
        found.text
    )
    assert "Without brightness and contrast it is still 0.91" in found.text


@pytest.mark.parametrize(
    ("auc", "low", "high", "code"),
    [
        (0.7, 0.6, 0.8, "splits_slightly_apart"),
        (0.58, 0.55, 0.61, "splits_slightly_apart"),
        (0.53, 0.48, 0.58, "splits_alike"),
        (0.55, 0.52, 0.58, "splits_alike"),
        (0.78, 0.48, 0.93, "splits_unclear"),
    ],
)
def test_slight_differences_are_notes(auc: float, low: float, high: float, code: str) -> None:
    tested = replace(TEST, auc=auc, low=low, high=high)
    assert codes(Evidence(split_tests=(tested,))) == [("note", code)]


def test_a_shift_that_no_property_explains_and_one_of_size() -> None:
    vague = replace(TEST, drivers=(Driver("aspect", 0.55, 1.2, 1.21),), shape_auc=0.6)
    assert "No single property explains it" in evidence_findings(Evidence((), (vague,)))[0].text
    sized = replace(TEST, drivers=(Driver("file_bytes", 0.9, 7000, 9100),))
    text = evidence_findings(Evidence((), (sized,)))[0].text
    assert "file size (median 7.0 kB in train, 9.1 kB in test" in text
    wide = replace(TEST, drivers=(Driver("width", 0.9, 1024, 2048),))
    assert "width (median 1024 px in train" in evidence_findings(Evidence((), (wide,)))[0].text


def test_doubtful_labels() -> None:
    (found,) = evidence_findings(Evidence(labels=REVIEW))
    assert (found.severity, found.code) == ("warning", "doubtful_labels")
    assert "2 NORMAL of 500 labels contradict classifiers on thumbnails" in found.text
    assert "about 3 may be wrong" in found.text
    assert "train/NORMAL/a.png is labelled NORMAL, with a probability of 0.02" in found.text
    given = replace(REVIEW, source="predictions")
    assert "the given predictions" in evidence_findings(Evidence(labels=given))[0].text
    assert codes(Evidence(labels=replace(REVIEW, doubts=()))) == []
    poor = replace(REVIEW, doubts=(), expected=(), auc=0.6)
    assert codes(Evidence(labels=poor)) == [("note", "labels_not_judged")]
