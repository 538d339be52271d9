"""Sweeps: every perturbation at increasing strengths, and those that only sweeps use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.images.augment import _perspective, photograph
from pneumoscope.images.perturbation_sweeps import (
    PERTURBATIONS,
    SWEEPS,
    Step,
    Sweep,
    border,
    collimation,
    crop,
    enhancement,
    inversion,
    marker,
    resolution,
    zoom,
)
from pneumoscope.images.phantom import draw

STEPS = [step for sweep in SWEEPS for step in sweep.steps]


def xray(height: int = 160, width: int = 160) -> np.ndarray:
    grey = Image.fromarray(draw(1, "p", 1, 1, size=160).pixels)
    return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def test_every_perturbation_has_a_sweep() -> None:
    assert {sweep.name for sweep in SWEEPS} == {
        *("brightness", "contrast", "gamma", "noise", "blur", "jpeg", "resolution", "rotation"),
        *(
            "enhancement",
            "crop",
            "collimation",
            "zoom",
            "border",
            "inversion",
            "marker",
            "photograph",
        ),
    }
    names = [step.perturbation.name for step in STEPS]
    assert len(set(names)) == len(names) <= 60  # so that 500 images take minutes
    assert len({step.perturbation.title for step in STEPS}) == len(names)


def test_the_standard_perturbations_are_plausible_steps() -> None:
    plausible = {(s.perturbation.change, s.perturbation.strength) for s in STEPS if s.plausible}
    assert {(p.change, p.strength) for p in PERTURBATIONS} <= plausible


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_strengths_rise_and_images_move_away_from_the_neutral_one(sweep: Sweep) -> None:
    strengths = [step.perturbation.strength for step in sweep.steps]
    assert strengths == sorted(set(strengths))
    image = xray()
    moved = [distance(step.perturbation.apply(image), image) for step in sweep.steps]
    neutral = np.inf if sweep.neutral is None else sweep.neutral
    below = [m for m, s in zip(moved, strengths, strict=True) if s < neutral]
    above = [m for m, s in zip(moved, strengths, strict=True) if s > neutral]
    assert below == sorted(below, reverse=True)
    assert above == sorted(above)
    assert min(moved) > 2e-4
    if sweep.neutral is not None and sweep.name != "jpeg":
        same = sweep.steps[0].perturbation.change(image, sweep.neutral)
        np.testing.assert_allclose(same, image, atol=1e-5)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_plausible_strengths_are_contiguous_around_the_neutral_one(sweep: Sweep) -> None:
    flags = "".join("x" if step.plausible else "." for step in sweep.steps).strip(".")
    assert "." not in flags


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.perturbation.name)
def test_shape_type_and_range_stay_and_equal_images_give_equal_copies(step: Step) -> None:
    for image in (xray(61, 83), np.zeros((40, 33), np.float32), np.ones((8, 9), np.float32)):
        before = image.copy()
        changed = step.perturbation.apply(image, 3)
        assert changed.shape == image.shape
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(changed, step.perturbation.apply(image, 3))


def test_resolution_removes_fine_structures_and_keeps_broad_ones() -> None:
    fine = np.indices((128, 128)).sum(axis=0) % 2
    np.testing.assert_allclose(resolution(fine.astype(np.float32), 8), 0.5, atol=0.02)
    ramp = np.tile(((np.arange(128) + 0.5) / 128).astype(np.float32), (128, 1))
    np.testing.assert_allclose(resolution(ramp, 8)[:, 16:-16], ramp[:, 16:-16], atol=0.01)
    assert len(np.unique(resolution(xray(), 8))) > 64  # enlarged smoothly, not in blocks
    np.testing.assert_array_equal(resolution(xray(), 160), xray())
    np.testing.assert_array_equal(resolution(xray(), 500), xray())


def test_zoom_in_is_the_crop_of_the_same_reach_and_out_has_no_black() -> None:
    image = xray(100, 100)
    inner = (slice(2, -2), slice(2, -2))  # a crop lacks the neighbours at the edge
    np.testing.assert_allclose(zoom(image, 1.25)[inner], crop(image, 0.1)[inner], atol=1e-6)
    bright = np.full((100, 100), 0.7, np.float32)
    np.testing.assert_allclose(zoom(bright, 0.5), bright)
    out = zoom(image, 0.8)
    np.testing.assert_array_equal(out[10:90, 10:90], border(image, 0.125)[10:90, 10:90])
    np.testing.assert_array_equal(out[:10, 10:90], np.tile(out[10, 10:90], (10, 1)))


def test_collimation_cuts_two_sides_and_stretches_the_rest() -> None:
    image = np.ones((100, 60), np.float32)
    image[:, 6:54] = 0.0
    np.testing.assert_array_equal(collimation(image, 0.1), np.zeros((100, 60)))
    assert collimation(image, 0.08).max() == 1.0  # not a pixel more
    np.testing.assert_array_equal(collimation(image, -0.1), image)  # columns stay where they are
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (60, 1))
    np.testing.assert_allclose(
        collimation(ramp, 0.25)[:, ::33], [[0.25, 0.42, 0.58, 0.75]] * 60, atol=0.01
    )
    np.testing.assert_array_equal(collimation(ramp.T.copy(), -0.25), collimation(ramp, 0.25).T)


def test_enhancement_amplifies_fine_structures_and_keeps_broad_ones() -> None:
    ramp = np.tile(np.linspace(0.2, 0.8, 400, dtype=np.float32), (300, 1))
    inner = (slice(None), slice(80, -80))
    np.testing.assert_allclose(enhancement(ramp, 1.0)[inner], ramp[inner], atol=2e-3)
    rows = np.indices((400, 400))[1]
    fine = (0.5 + 0.1 * np.sin(2 * np.pi * rows / 10)).astype(np.float32)
    for gain in (1.0, -0.5, -1.0):
        wanted = 0.5 + (1 + gain) * (fine - 0.5)
        np.testing.assert_allclose(enhancement(fine, gain)[inner], wanted[inner], atol=0.01)
    small, large = (enhancement(xray(side, side), 1.0) for side in (112, 336))
    shrunk = Image.fromarray(large).resize((112, 112), Image.Resampling.BOX)
    assert distance(np.asarray(shrunk), small) < 0.02  # the same for any image size


def test_inversion_is_the_negative() -> None:
    np.testing.assert_allclose(inversion(xray(), 1.0), 1 - xray(), atol=1e-6)
    np.testing.assert_allclose(inversion(xray(), 0.5), np.full((160, 160), 0.5), atol=1e-6)


def test_marker_is_a_white_letter_at_the_upper_left_and_nothing_else() -> None:
    image = np.zeros((200, 300), np.float32)
    lettered = marker(image, 0.2)
    rows, columns = np.nonzero(lettered)
    assert 8 <= rows.min() <= 12
    assert 45 <= rows.max() <= 53
    assert columns.max() < 60
    assert 0.05 < lettered[10:50, 10:36].mean() < 0.6
    assert marker(image, 0.1).sum() < lettered.sum()


def test_perspective_moves_the_corners_to_their_targets() -> None:
    shown = np.array([(10.0, 5.0), (90.0, 0.0), (100.0, 80.0), (0.0, 95.0)])
    wanted = np.array([(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)])
    a, b, c, d, e, f, g, h = _perspective(shown, wanted)
    for (x, y), (u, v) in zip(shown, wanted, strict=True):
        below = g * x + h * y + 1
        assert (a * x + b * y + c) / below == pytest.approx(u, abs=1e-9)
        assert (d * x + e * y + f) / below == pytest.approx(v, abs=1e-9)


def test_a_photograph_shows_black_beside_the_image_and_uneven_light() -> None:
    taken = photograph(np.full((120, 120), 0.5, np.float32), 1.0, seed=4)
    assert taken[0, 0] < 0.1
    middle = taken[40:80, 40:80].mean()
    quarters = [taken[20:50, 20:50], taken[20:50, 70:100], taken[70:100, 20:50],
                taken[70:100, 70:100]]  # fmt: skip
    assert max(q.mean() for q in quarters) - min(q.mean() for q in quarters) > 0.05 * middle
    assert not np.array_equal(taken, photograph(np.full((120, 120), 0.5, np.float32), 1.0, seed=5))


@pytest.mark.parametrize(
    ("change", "strength"),
    [
        (resolution, 4),
        (collimation, 0.5),
        (zoom, 0.0),
        (inversion, 1.5),
        (marker, 0.7),
        (photograph, -0.1),
    ],
)
def test_impossible_strengths_are_rejected_with_the_way_out(
    change: Callable[..., np.ndarray], strength: float
) -> None:
    with pytest.raises(UsageError, match="Give another strength"):
        change(xray(), strength)


def test_a_colour_image_can_not_be_photographed() -> None:
    with pytest.raises(PneumoscopeError, match="photograph: found an array of shape"):
        photograph(np.zeros((4, 4, 3), np.float32), 0.5)
