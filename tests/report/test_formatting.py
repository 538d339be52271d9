from __future__ import annotations

import pytest

from pneumoscope.evaluation.ranked_metrics import METRIC_NAMES
from pneumoscope.records import Estimate
from pneumoscope.report.formatting import (
    METRICS,
    duration,
    file_size,
    in_words,
    interval,
    metric_text,
    number,
    percent,
    plural,
    setting,
)

SPACE = "\N{NO-BREAK SPACE}"


def test_every_metric_of_the_contract_has_a_label_a_meaning_and_a_reason() -> None:
    assert set(METRICS) == set(METRIC_NAMES)
    for text in METRICS.values():
        assert text.label
        assert text.meaning
        assert text.undefined
    assert [n for n, t in METRICS.items() if t.lower_is_better] == ["brier", "ece"]
    assert metric_text("net_benefit").label == "Net benefit"


def test_what_is_absent_is_a_dash() -> None:
    assert number(None) == "–"
    assert percent(None) == "–"
    assert interval(Estimate(0.5)) == "–"
    assert interval(Estimate(0.5, 0.4)) == "–"
    assert setting("") == "–"
    assert in_words(Estimate(None), 0.95) == "–"


def test_numbers_and_intervals() -> None:
    assert number(-0.5, 1) == "−0.5"
    assert interval(Estimate(0.5, 0.25, 1.0)) == "0.250–1.000"
    assert in_words(Estimate(0.957, 0.941, 0.978), 0.9) == f"0.96 (90{SPACE}% interval 0.94–0.98)"
    assert in_words(Estimate(0.957), 0.9) == "0.96"
    assert plural(1, "patient") == "1 patient"
    assert plural(5216, "patient") == "5,216 patients"


def test_number_that_rounds_to_nothing_has_no_sign() -> None:
    assert number(-0.0001, 2) == "0.00"


def test_interval_with_a_negative_end_can_not_be_misread() -> None:
    assert interval(Estimate(0.0, -0.5, 0.25), 2) == "−0.50 to 0.25"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (4320, "1 h 12 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 byte"),
        (999, "999 bytes"),
        (14_200, "14.2 kB"),
        (3_000_000, "3.0 MB"),
        (5e12, "5.0 TB"),
    ],
)
def test_file_size(size: int, text: str) -> None:
    assert file_size(size) == text


def test_settings_read_as_they_are_typed() -> None:
    assert [setting(v) for v in (True, False, 1e-4, 2000, "stretch")] == [
        "yes",
        "no",
        "0.0001",
        "2,000",
        "stretch",
    ]
