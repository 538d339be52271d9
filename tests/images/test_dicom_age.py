"""Ages from every form in a DICOM header."""

from __future__ import annotations

import pytest

from pneumoscope.images.dicom.patient import age_string, patient_age


@pytest.mark.parametrize(
    ("stated", "low", "high", "words"),
    [
        ("003Y", 3, 4, "3 years"),
        ("001Y", 1, 2, "1 year"),
        ("018M", 1.5, 19 / 12, "18 months"),
        ("052W", 364 / 365.25, 371 / 365.25, "52 weeks"),
        ("010D", 10 / 365.25, 11 / 365.25, "10 days"),
        ("67Y", 67, 68, "67 years"),
        (" 4y ", 4, 5, "4 years"),
        ("000Y", 0, 1, "0 years"),
    ],
)
def test_stated_ages(stated: str, low: float, high: float, words: str) -> None:
    age, odd = patient_age(stated, "", "")
    assert age is not None
    assert (age.low, age.high) == pytest.approx((low, high))
    assert age.words == words
    assert odd == ()


@pytest.mark.parametrize("stated", ["four", "4", "004", "Y", "999Y", "4.5Y", "-03Y"])
def test_an_invalid_age_gives_a_warning(stated: str) -> None:
    age, odd = patient_age(stated, "", "")
    assert age is None
    assert repr(stated) in odd[0]


@pytest.mark.parametrize(
    ("birth", "study", "low", "words"),
    [
        ("20200229", "20240228", 47 / 12, "3 years"),
        ("20200229", "20240229", 4, "4 years"),
        ("2020-02-29", "2021.03.01", 1, "12 months"),
        ("20240101", "20240120", 0, "0 months"),
        ("19500101", "20240101", 74, "74 years"),
    ],
)
def test_ages_by_dates(birth: str, study: str, low: float, words: str) -> None:
    age, odd = patient_age("", birth, study)
    assert age is not None
    assert age.low == pytest.approx(low)
    assert age.words == words
    assert odd == ()


@pytest.mark.parametrize(
    ("birth", "study"), [("", "20240101"), ("20240101", ""), ("20241301", "20250101"), ("x", "y")]
)
def test_without_two_dates_there_is_no_age(birth: str, study: str) -> None:
    assert patient_age("", birth, study) == (None, ())


def test_a_birth_after_the_study_gives_a_warning() -> None:
    age, odd = patient_age("", "20250101", "20240101")
    assert age is None
    assert "after its study date" in odd[0]


def test_a_contradiction_gives_a_warning_and_the_stated_age_counts() -> None:
    age, odd = patient_age("003Y", "19500101", "20240101")
    assert age is not None
    assert age.words == "3 years"
    assert "3 years" in odd[0]
    assert "74 years" in odd[0]
    assert patient_age("003Y", "20190601", "20240101")[1] == ()  # shifted by months


@pytest.mark.parametrize(
    ("birth", "study", "stated"),
    [
        ("20240101", "20240120", "000M"),
        ("20240101", "20241231", "011M"),
        ("20240101", "20251231", "023M"),
        ("20240101", "20260101", "002Y"),
        ("19600704", "20260901", "066Y"),
        ("20250101", "20240101", ""),
        ("", "20240101", ""),
        ("20240101", "someday", ""),
    ],
)
def test_two_dates_become_an_age_that_contains_the_true_one(
    birth: str, study: str, stated: str
) -> None:
    assert age_string(birth, study) == stated
    age, by_dates = patient_age(stated, "", "")[0], patient_age("", birth, study)[0]
    if stated:
        assert age is not None
        assert by_dates is not None
        assert age.low <= by_dates.low
        assert by_dates.high <= age.high + 1e-9
