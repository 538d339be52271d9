"""Schedules are pure functions of the scores so far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pneumoscope.config import FitConfig
from pneumoscope.training.schedules import best_epoch, learning_rate, should_stop

PLATEAU = FitConfig(plateau_patience=2, plateau_factor=0.5, learning_rate=0.01, stop_patience=4)


def test_plateau_falls_after_patience_without_a_gain() -> None:
    scores = [0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
    rates = [learning_rate(PLATEAU, scores[:n]) for n in range(len(scores) + 1)]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.0025])


def test_plateau_never_falls_below_its_floor() -> None:
    config = replace(PLATEAU, min_learning_rate=0.004)
    assert learning_rate(config, [0.9] * 50) == 0.004


def test_cosine_goes_from_first_to_last() -> None:
    config = FitConfig(schedule="cosine", epochs=11, learning_rate=1.0, min_learning_rate=0.1)
    assert learning_rate(config, []) == 1.0
    assert learning_rate(config, [0.5] * 5) == pytest.approx(0.55)
    assert learning_rate(config, [0.5] * 10) == pytest.approx(0.1)


def test_constant_stays() -> None:
    config = FitConfig(schedule="constant", learning_rate=0.3)
    assert {learning_rate(config, [0.1] * n) for n in range(20)} == {0.3}


def test_best_epoch_needs_a_real_gain() -> None:
    assert best_epoch(FitConfig(min_delta=0.01), [0.9, 0.905, 0.92, 0.921]) == 2


def test_stops_after_patience_or_when_all_epochs_are_done() -> None:
    assert not should_stop(PLATEAU, [])
    assert not should_stop(PLATEAU, [0.9, 0.8, 0.8, 0.8])
    assert should_stop(PLATEAU, [0.9, 0.8, 0.8, 0.8, 0.8])
    assert should_stop(replace(PLATEAU, epochs=2), [0.1, 0.2])
