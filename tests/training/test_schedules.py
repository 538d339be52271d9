"""Learning-rate schedules and early stopping are pure functions of the scores so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from pneumoscope.config import FitConfig
from pneumoscope.training.optimizer import best_epoch, learning_rate, should_stop

PLATEAU = FitConfig(plateau_patience=2, plateau_factor=0.5, learning_rate=0.01, stop_patience=4)

STEPS = 100
"""Per epoch, where a schedule is looked at step by step."""

SMOOTH = [
    FitConfig(schedule="constant", epochs=10, warmup=0.25, learning_rate=1.0),
    FitConfig(schedule="cosine", epochs=10, learning_rate=1.0, min_learning_rate=0.1),
    FitConfig(schedule="cosine", epochs=10, warmup=0.15, learning_rate=1.0, min_learning_rate=0.1),
    FitConfig(schedule="one-cycle", epochs=10, learning_rate=1.0, min_learning_rate=1e-3),
    FitConfig(schedule="one-cycle", epochs=10, warmup=0.55, learning_rate=1.0),
    FitConfig(schedule="plateau", epochs=10, warmup=0.2, learning_rate=1.0),
    FitConfig(schedule="step", epochs=10, warmup=0.2, learning_rate=1.0, step_epochs=11),
]
"""None falls in a jump: the last two have no time for it."""


def per_step(config: FitConfig) -> np.ndarray:
    """The step size at every step of a whole training that gains in every epoch."""
    scores = [0.5 + 0.01 * k for k in range(config.epochs)]
    return np.array(
        [
            learning_rate(config, scores[:epoch], step / STEPS)
            for epoch in range(config.epochs)
            for step in range(STEPS)
        ]
    )


def warm(config: FitConfig) -> float:
    """The share of steps that the warm-up takes."""
    return config.warmup or (0.3 if config.schedule == "one-cycle" else 0.0)


def name(config: FitConfig) -> str:
    return f"{config.schedule}-{config.warmup:g}"


@pytest.mark.parametrize("config", SMOOTH, ids=name)
def test_rises_from_a_25th_to_the_peak_and_only_falls_afterwards(config: FitConfig) -> None:
    rates = per_step(config)
    peak = round(warm(config) * len(rates))
    assert rates[0] == pytest.approx(1 / 25 if peak else 1.0)
    assert rates[peak] == pytest.approx(1.0)
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) <= 0)


@pytest.mark.parametrize("config", SMOOTH, ids=name)
def test_never_jumps(config: FitConfig) -> None:
    rates = per_step(config)
    share = warm(config)
    steepest = np.pi / 2 / min(share or 1.0, 1.0 - share)  # of a cosine, or a line, over a phase
    assert np.abs(np.diff(rates)).max() <= 1.001 * steepest / len(rates)
    for epoch in range(1, config.epochs):  # the end of an epoch is the beginning of the next
        scores = [0.5 + 0.01 * k for k in range(epoch)]
        ended = learning_rate(config, scores[:-1], 1.0)
        assert learning_rate(config, scores) == pytest.approx(ended, abs=1e-12)


@pytest.mark.parametrize("config", SMOOTH, ids=name)
def test_ends_where_it_should(config: FitConfig) -> None:
    falls = config.schedule in {"cosine", "one-cycle"}
    wanted = config.min_learning_rate if falls else 1.0
    gaining = [0.5 + 0.01 * k for k in range(config.epochs)]
    assert learning_rate(config, gaining) == pytest.approx(wanted)
    assert learning_rate(config, gaining[:-1], 1.0) == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step"])
def test_only_plateau_heeds_the_scores(
    schedule: Literal["constant", "cosine", "one-cycle", "step"],
) -> None:
    config = FitConfig(schedule=schedule, epochs=10, step_epochs=2)
    for within in (0.0, 0.4):
        assert learning_rate(config, [0.9] * 6, within) == learning_rate(
            config, [0.1, 0.9, 0.2, 0.8, 0.3, 0.7], within
        )


def test_cosine_is_half_way_down_in_the_middle() -> None:
    config = FitConfig(schedule="cosine", epochs=10, learning_rate=1.0, min_learning_rate=0.1)
    assert learning_rate(config, [0.5] * 5) == pytest.approx(0.55)
    late = replace(config, warmup=0.2)
    assert learning_rate(late, [0.5] * 6) == pytest.approx(0.55)


def test_one_cycle_rises_along_a_cosine() -> None:
    config = FitConfig(schedule="one-cycle", epochs=10, warmup=0.4, learning_rate=1.0)
    assert learning_rate(config, [0.5] * 2) == pytest.approx((1 + 1 / 25) / 2)
    quarter = 0.5 * (1 - np.cos(np.pi / 4))  # of the rise, a quarter of the way up
    assert learning_rate(config, [0.5]) == pytest.approx(1 / 25 + 24 / 25 * quarter)


def test_plateau_falls_after_patience_without_a_gain() -> None:
    scores = [0.8, 0.9, 0.9, 0.9, 0.9, 0.9]
    rates = [learning_rate(PLATEAU, scores[:n]) for n in range(len(scores) + 1)]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.0025])


def test_plateau_never_falls_below_its_floor() -> None:
    config = replace(PLATEAU, min_learning_rate=0.004)
    assert learning_rate(config, [0.9] * 50) == 0.004


def test_step_falls_every_few_epochs_and_stays_within_one() -> None:
    config = FitConfig(
        schedule="step", step_epochs=3, plateau_factor=0.1, learning_rate=1.0, epochs=20
    )
    rates = [learning_rate(config, [0.5] * n) for n in range(9)]
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)
    assert learning_rate(config, [0.5] * 2, 0.99) == 1.0
    assert learning_rate(replace(config, min_learning_rate=0.05), [0.5] * 19) == 0.05


def test_a_floor_above_the_first_step_size_lifts_nothing() -> None:
    for schedule in ("constant", "cosine", "one-cycle", "plateau", "step"):
        config = FitConfig(schedule=schedule, learning_rate=1e-4, min_learning_rate=1e-2)
        assert learning_rate(config, [0.5] * 59) <= 1e-4


def test_best_epoch_needs_a_real_gain() -> None:
    assert best_epoch(FitConfig(min_delta=0.01), [0.9, 0.905, 0.92, 0.921]) == 2


def test_many_small_gains_make_a_real_one() -> None:
    """Each is compared with the best, not with the epoch before it."""
    assert best_epoch(FitConfig(min_delta=0.01), [0.9, 0.906, 0.912, 0.918]) == 2


def test_epochs_of_smaller_images_do_not_compete() -> None:
    config = FitConfig(stop_patience=2)
    scores = [0.95, 0.96, 0.7, 0.8, 0.75]
    assert best_epoch(config, scores) == 1
    assert best_epoch(config, scores, first=2) == 3
    assert [best_epoch(config, scores[:n], first=3) for n in (1, 2, 3, 4)] == [0, 1, 2, 3]
    assert should_stop(config, scores)
    assert not should_stop(config, scores, first=2)
    assert should_stop(config, [*scores, 0.7], first=2)


def test_keep_last_keeps_the_last_and_trains_to_the_end() -> None:
    config = FitConfig(keep="last", epochs=6, stop_patience=1)
    falling = [0.9, 0.8, 0.7, 0.6, 0.5]
    assert best_epoch(config, falling) == 4
    assert not should_stop(config, falling)
    assert should_stop(config, [*falling, 0.4])


def test_stops_after_patience_or_when_all_epochs_are_done() -> None:
    assert not should_stop(PLATEAU, [])
    assert not should_stop(PLATEAU, [0.9, 0.8, 0.8, 0.8])
    assert should_stop(PLATEAU, [0.9, 0.8, 0.8, 0.8, 0.8])
    assert should_stop(replace(PLATEAU, epochs=2), [0.1, 0.2])
