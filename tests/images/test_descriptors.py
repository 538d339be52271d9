"""Image descriptors: independent of exposure, and permuted by rotation and inversion."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.images import perturbation_sweeps
from pneumoscope.images.phantom import draw
from pneumoscope.inference.input_check import EDGES, GRADIENTS, THUMBNAIL, describe_image


@pytest.fixture(scope="module")
def square() -> np.ndarray:
    return draw(1, "guest", number=1, label=1, size=128).pixels


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotated_descriptors_are_those_of_the_rotated_image(
    square: np.ndarray, quarters: int, inverted: bool
) -> None:
    image = np.rot90(square, quarters)
    image = np.ascontiguousarray(1 - image if inverted else image)
    wanted, found = (
        describe_image(image),
        describe_image(square).rotated(quarters, inverted=inverted),
    )
    np.testing.assert_allclose(found.thumbnail, wanted.thumbnail, atol=1e-5)
    np.testing.assert_allclose(found.energy, wanted.energy, atol=1e-5)
    if quarters or inverted:
        assert np.abs(wanted.energy - describe_image(square).energy).max() > 0.01


def test_exposure_hardly_changes_the_descriptors(square: np.ndarray) -> None:
    described_image = describe_image(square)
    flat = describe_image((0.4 * square + 0.2).astype(np.float32))
    np.testing.assert_allclose(flat.thumbnail, described_image.thumbnail, atol=1e-4)
    np.testing.assert_allclose(flat.energy, described_image.energy, atol=1e-4)
    for name, described in (
        describe_image(perturbation_sweeps.noise(square, 0.05)).vectors().items()
    ):
        likeness = np.corrcoef(described, described_image.vectors()[name])[0, 1]
        assert likeness > 0.95, name


def test_directions_point_to_increasing_brightness() -> None:
    slope = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    for quarters, direction in enumerate((0, 6, 4, 2)):  # right, up, left, down
        energy = describe_image(np.ascontiguousarray(np.rot90(slope, quarters))).energy
        assert energy.sum((0, 1)).argmax() == direction
        assert np.delete(energy, direction, axis=2).max() < 1e-5
    at_45 = describe_image(((slope + slope.T) / 2).astype(np.float32)).energy
    assert at_45.sum((0, 1)).argmax() == 1


def test_vectors_differ_in_what_they_keep(square: np.ndarray) -> None:
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
def test_any_square_has_finite_descriptors(side: int) -> None:
    for image in (np.zeros((side, side), np.float32), np.eye(side, dtype=np.float32)):
        described_image = describe_image(image)
        for described in described_image.vectors().values():
            assert np.isfinite(described).all()
            assert described.dtype == np.float32
