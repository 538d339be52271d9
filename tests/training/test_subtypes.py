"""The auxiliary subtype head: trained on known subtypes only, and absent from the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.records import ImageRecord
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.end_to_end import Squares, build_phase_schedule
from pneumoscope.training.guidance import UNKNOWN, balanced_order, build_subtype_head, subtype_codes
from pneumoscope.training.loop import PhaseSchedule, fit
from pneumoscope.training.network import initialise_randomly, with_head
from pneumoscope.training.runtime import load_keras
from support.small_network import small_network
from training.test_end_to_end import CONFIG, SIZES, squares_of


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def test_codes_follow_the_names() -> None:
    names = ("virus", "", "bacteria", "virus")
    records = [ImageRecord(Path(f"{k}.png"), 1, str(k), subtype=s) for k, s in enumerate(names)]
    assert subtype_codes(records).tolist() == [1, UNKNOWN, 0, 1]
    assert subtype_codes([]).tolist() == []


def test_kinds_come_equally_often_and_the_others_once() -> None:
    codes = np.array([UNKNOWN] * 5 + [0] * 20 + [1] * 3)
    rows = balanced_order(codes, np.random.default_rng(0))
    assert np.bincount(codes[rows] + 1).tolist() == [5, 12, 11]
    times = np.bincount(rows, minlength=len(codes))
    assert times[:5].tolist() == [1] * 5
    assert set(times[5:25].tolist()) == {0, 1}  # a frequent subtype: no image twice
    assert sorted(times[25:].tolist()) == [3, 4, 4]
    assert rows.tolist() != sorted(rows)
    again = balanced_order(codes, np.random.default_rng(1))
    assert set(rows) != set(again)  # other images of the frequent subtype
    for alone in (np.full(6, UNKNOWN), np.zeros(6, np.int64)):
        assert sorted(balanced_order(alone, np.random.default_rng(0))) == list(range(6))


def test_the_loss_is_of_known_subtypes_alone() -> None:
    keras = load_keras()
    layer = build_subtype_head(2, 0.5, 0)
    logits, pooled = np.zeros((4, 1), np.float32), np.zeros((4, 3), np.float32)

    def added(codes: list[float]) -> float:
        layer([logits, pooled, np.array(codes, np.float32)[:, None]], training=True)
        (loss,) = layer.losses
        return float(keras.ops.convert_to_numpy(loss))

    # Uninformative features give both subtypes probability 1/2: log 2 for each known one.
    assert added([0, 1, 0, 1]) == pytest.approx(0.5 * np.log(2), rel=1e-5)
    assert added([0, -1, -1, -1]) == pytest.approx(0.5 * np.log(2) / 4, rel=1e-5)
    assert added([-1, -1, -1, -1]) == 0.0


def schedule_of(parts: tuple[Squares, Squares], weight: float) -> PhaseSchedule:
    backbone = build_backbone(None)
    initialise_randomly(backbone, 0)
    backbone.trainable = True
    network = with_head(backbone, Architecture(), 0)
    return build_phase_schedule(network, parts, replace(CONFIG, kinds=weight), SIZES, {})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Squares, Squares]:
    folder = tmp_path_factory.mktemp("squares")
    return squares_of(folder / "train", 24), squares_of(folder / "val", 70, 1)


def test_what_is_kept_is_the_network_alone(parts: tuple[Squares, Squares], tmp_path: Path) -> None:
    schedule = schedule_of(parts, 0.5)
    shapes = [w.shape for w in schedule.network.get_weights()]
    assert len(schedule.trainable()) == len(schedule.network.trainable_variables) + 2
    config = replace(CONFIG.fit, epochs=1)
    labels = (parts[0].labels, parts[1].labels)
    fitted = fit(schedule, *labels, config, lambda *_: 0.5, tmp_path / "c.npz", "o")
    assert [w.shape for w in fitted.weights] == shapes


def test_the_question_changes_what_is_learnt(
    parts: tuple[Squares, Squares], tmp_path: Path
) -> None:
    config = replace(CONFIG.fit, epochs=1)
    labels = (parts[0].labels, parts[1].labels)
    kept = [
        fit(schedule_of(parts, w), *labels, config, lambda *_: 0.5, tmp_path / f"{w}.npz", "o")
        for w in (0.0, 5.0)
    ]
    first, second = (np.concatenate([w.ravel() for w in each.weights]) for each in kept)
    assert not np.allclose(first, second)


def test_nothing_is_asked_where_there_is_one_kind(parts: tuple[Squares, Squares]) -> None:
    alone = replace(parts[0], subtypes=np.minimum(parts[0].subtypes, 0))
    schedule = schedule_of((alone, parts[1]), 0.5)
    assert len(schedule.trainable()) == len(schedule.network.trainable_variables)


def test_lessons_show_kinds_evenly_if_asked(parts: tuple[Squares, Squares]) -> None:
    subtypes = np.array([UNKNOWN] * 8 + [0] * 13 + [1] * 3)
    train = replace(parts[0], subtypes=subtypes)

    def seen(even: bool) -> list[int]:
        network = with_head(build_backbone(None), Architecture(), 0)
        config = replace(CONFIG, even_kinds=even)
        phase = build_phase_schedule(network, (train, parts[1]), config, SIZES, {}).phases[0]
        squares = [image for inputs, _ in phase.batches(0) for image in inputs["squares"]]
        images = parts[0].take(np.arange(24), squares[0].shape[0])
        numbers = {each.tobytes(): k for k, each in enumerate(images)}
        rows = [numbers[square.tobytes()] for square in squares]
        return [int(count) for count in np.bincount(subtypes[rows] + 1)]

    assert seen(False) == [8, 13, 3]
    assert seen(True) == [8, 8, 8]
