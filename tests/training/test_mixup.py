"""Mixup: each image is blended with its predecessor, with labels by the same shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.background import draw_shares, mix_images, mix_labels
from pneumoscope.training.end_to_end import Squares, build_phase_schedule
from pneumoscope.training.loop import PhaseSchedule, _targets, fit
from pneumoscope.training.network import initialise_randomly, with_head
from support.small_network import small_network
from training.test_end_to_end import CONFIG, SIZES, squares_of


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Squares, Squares]:
    folder = tmp_path_factory.mktemp("squares")
    return squares_of(folder / "train", 24), squares_of(folder / "val", 70, 1)


def schedule_of(parts: tuple[Squares, Squares], mix: float, kinds: float = 0.0) -> PhaseSchedule:
    backbone = build_backbone(None)
    initialise_randomly(backbone, 0)
    backbone.trainable = True
    network = with_head(backbone, Architecture(), 0)
    config = replace(CONFIG, distort=replace(CONFIG.distort, mix=mix), kinds=kinds)
    return build_phase_schedule(network, parts, config, SIZES, {})


@pytest.mark.parametrize(("evenness", "mean"), [(1e-3, 1.0), (1.0, 0.75), (10.0, 0.59)])
def test_shares_are_the_larger_part_and_as_even_as_asked(evenness: float, mean: float) -> None:
    shares = draw_shares(np.random.default_rng(0), 4000, evenness)
    assert shares.shape == (4000,)
    assert shares.dtype == np.float32
    assert shares.min() >= 0.5
    assert shares.max() <= 1.0
    assert shares.mean() == pytest.approx(mean, abs=0.01)


def test_each_image_lies_over_the_one_before_it() -> None:
    images = np.zeros((3, 2, 2), np.float32)
    images[:, 0, 0], images[:, 1, 1] = (1.0, 10.0, 100.0), 5.0
    found = np.asarray(mix_images(images, np.array([[1.0], [0.5], [0.75]], np.float32)))
    np.testing.assert_allclose(found[:, 0, 0], [1.0, 5.5, 77.5])
    np.testing.assert_allclose(found[:, 1, 1], 5.0)
    np.testing.assert_allclose(found[:, 0, 1], 0.0)


def test_labels_go_with_their_images() -> None:
    labels, shares = np.array([1, 0, 0, 1]), np.array([1.0, 0.75, 0.5, 0.5], np.float32)
    found = mix_labels(np.eye(2, dtype=np.float32)[labels], shares)
    np.testing.assert_allclose(found, [[0.0, 1.0], [0.75, 0.25], [1.0, 0.0], [0.5, 0.5]])
    images = np.broadcast_to(labels[:, None, None], (4, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(mix_images(images, shares))[:, 0, 0], found[:, 1])


def test_the_loss_of_a_mixed_image_is_that_of_both_labels() -> None:
    weights = np.array([2.0, 0.5], np.float32)
    targets, totals = _targets(np.array([[0.75, 0.25], [0.0, 1.0]], np.float32), weights)
    p = 0.3
    both = 0.75 * 2.0 * -np.log(1 - p) + 0.25 * 0.5 * -np.log(p)
    mixed_loss = totals[0] * -(targets[0, 0] * np.log(p) + (1 - targets[0, 0]) * np.log(1 - p))
    assert mixed_loss == pytest.approx(both)
    assert (targets[1, 0], totals[1]) == (1.0, 0.5)
    targets, totals = _targets(np.array([0, 1, 1]), weights)
    assert targets.shape == (3, 1)
    assert targets.dtype == np.float32
    assert (targets[:, 0].tolist(), totals.tolist()) == ([0, 1, 1], [2.0, 0.5, 0.5])


def test_batches_are_the_same_whenever_they_are_asked(parts: tuple[Squares, Squares]) -> None:
    phase = schedule_of(parts, 0.4, kinds=0.5).phases[0]
    first, again, other = (list(phase.batches(epoch)) for epoch in (2, 2, 3))
    for (found, labels), (inputs, same) in zip(first, again, strict=True):
        assert set(found) == {"squares", "shares", "codes"}
        squares, shares, codes = found["squares"], found["shares"], found["codes"]
        assert shares.shape == codes.shape == (8, 1)
        assert labels.shape == (8, 2)
        np.testing.assert_allclose(labels.sum(1), 1.0, rtol=1e-6)
        # An image keeps the larger share of itself, so its own label dominates.
        np.testing.assert_array_equal(
            (labels[:, 1] > 0.5).astype(int), parts[0].labels[_numbers(parts[0], squares)]
        )
        for name, one in found.items():
            np.testing.assert_array_equal(one, inputs[name])
        np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(first[0][0]["shares"], other[0][0]["shares"])


def _numbers(part: Squares, shown: np.ndarray) -> list[int]:
    """Which images these are."""
    side = shown.shape[1]
    stored = part.take(np.arange(len(part.labels)), side)
    return [int(np.flatnonzero((stored == image).all((1, 2)))[0]) for image in shown]


def test_mixing_changes_what_is_learnt_and_nothing_of_what_is_kept(
    parts: tuple[Squares, Squares], tmp_path: Path
) -> None:
    config = replace(CONFIG.fit, epochs=1)
    labels = (parts[0].labels, parts[1].labels)
    plain, laid = (
        fit(schedule_of(parts, mix), *labels, config, lambda *_: 0.5, tmp_path / f"{mix}", "o")
        for mix in (0.0, 1.0)
    )
    assert [w.shape for w in plain.weights] == [w.shape for w in laid.weights]
    first, second = (np.concatenate([w.ravel() for w in each.weights]) for each in (plain, laid))
    assert not np.allclose(first, second)
