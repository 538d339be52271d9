"""A look: the same however exposed, and moved about, not changed, by turns and inversion."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.images import perturbation_sweeps
from pneumoscope.images.framing import EDGES, GRADIENTS, THUMBNAIL, describe_image
from pneumoscope.images.phantom import draw


@pytest.fixture(scope="module")
def square() -> np.ndarray:
    return draw(1, "guest", number=1, label=1, size=128).pixels


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_look_is_the_look_of_the_turned_film(
    square: np.ndarray, quarters: int, inverted: bool
) -> None:
    film = np.rot90(square, quarters)
    film = np.ascontiguousarray(1 - film if inverted else film)
    wanted, found = (
        describe_image(film),
        describe_image(square).rotated(quarters, inverted=inverted),
    )
    np.testing.assert_allclose(found.thumbnail, wanted.thumbnail, atol=1e-5)
    np.testing.assert_allclose(found.energy, wanted.energy, atol=1e-5)
    if quarters or inverted:
        assert np.abs(wanted.energy - describe_image(square).energy).max() > 0.01


def test_exposure_hardly_changes_it(square: np.ndarray) -> None:
    look = describe_image(square)
    flat = describe_image((0.4 * square + 0.2).astype(np.float32))
    np.testing.assert_allclose(flat.thumbnail, look.thumbnail, atol=1e-4)
    np.testing.assert_allclose(flat.energy, look.energy, atol=1e-4)
    for name, described in (
        describe_image(perturbation_sweeps.noise(square, 0.05)).vectors().items()
    ):
        likeness = np.corrcoef(described, look.vectors()[name])[0, 1]
        assert likeness > 0.95, name


def test_directions_are_those_of_growing_brightness() -> None:
    slope = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    for quarters, direction in enumerate((0, 6, 4, 2)):  # right, up, left, down
        energy = describe_image(np.ascontiguousarray(np.rot90(slope, quarters))).energy
        assert energy.sum((0, 1)).argmax() == direction
        assert np.delete(energy, direction, axis=2).max() < 1e-5
    at_45 = describe_image((slope + slope.T) / 2).energy
    assert at_45.sum((0, 1)).argmax() == 1


def test_descriptions_are_told_apart_by_what_they_keep(square: np.ndarray) -> None:
    described = describe_image(square).vectors()
    assert {name: vector.shape for name, vector in described.items()} == {
        THUMBNAIL: (1024,),
        GRADIENTS: (512,),
        EDGES: (512,),
    }
    thumbnail = described[THUMBNAIL]
    assert abs(float(thumbnail.mean())) < 1e-4
    assert np.square(described[GRADIENTS]).mean() == pytest.approx(1, rel=1e-4)
    soft = describe_image(perturbation_sweeps.blur(square, 0.04)).vectors()
    assert soft[EDGES].mean() < described[EDGES].mean() - 0.01


@pytest.mark.parametrize("side", [1, 32, 64, 300])
def test_any_square_has_a_finite_look(side: int) -> None:
    for film in (np.zeros((side, side), np.float32), np.eye(side, dtype=np.float32)):
        look = describe_image(film)
        for described in look.vectors().values():
            assert np.isfinite(described).all()
            assert described.dtype == np.float32
