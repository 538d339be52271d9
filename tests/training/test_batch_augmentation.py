"""Each random change of batch augmentation does what its setting states, and nothing at 0."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pneumoscope.config import DistortConfig
from pneumoscope.errors import UsageError
from pneumoscope.images.perturbation_sweeps import enhancement
from pneumoscope.training import batch_augmentation
from pneumoscope.training.batch_augmentation import build_batch_augmentation
from pneumoscope.training.runtime import load_keras

NOTHING = replace(DistortConfig(**{f.name: 0 for f in fields(DistortConfig)}), crop_least=1.0)
NOTHING = replace(NOTHING, crop_most=1.0)
"""Every change off."""

EVERYTHING = DistortConfig(blur=1, enhance=0.6, jpeg=1, frame=1, marker=1, erasing=1)
"""Every change in every image."""

SIZE = 32
COUNT = 48
"""Images in a batch: enough for chances of a half to fall either way in every backend's draws."""


def changed(
    images: np.ndarray,
    config: DistortConfig,
    size: int = SIZE,
    seed: int = 0,
    training: bool = True,
) -> np.ndarray:
    layer = build_batch_augmentation(config, size, seed)
    return np.array(load_keras().ops.convert_to_numpy(layer(images, training=training)))


def noise(count: int = COUNT, side: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)


def flat(grey: int, count: int = COUNT) -> np.ndarray:
    return np.full((count, SIZE, SIZE), grey, np.uint8)


def ramp(axis: int, count: int = COUNT) -> np.ndarray:
    """Grey that rises evenly by 4 a pixel from 64, along rows (1) or columns (2)."""
    line = (64 + 4 * np.arange(SIZE)).astype(np.uint8)
    shape = (1, SIZE, 1) if axis == 1 else (1, 1, SIZE)
    return np.broadcast_to(line.reshape(shape), (count, SIZE, SIZE)).copy()


def coordinates() -> tuple[np.ndarray, np.ndarray]:
    """X and y of the pixels' centres, (SIZE, SIZE)."""
    centres = (2 * np.arange(SIZE) + 1) / SIZE - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x, y


def roughness(images: np.ndarray) -> np.ndarray:
    """Mean difference between neighbours, per image."""
    return np.asarray(np.abs(np.diff(images, axis=2)).mean((1, 2)))


def test_output_is_what_the_network_takes() -> None:
    for grey in (noise(), flat(0), flat(255)):
        out = changed(grey, EVERYTHING)
        assert out.dtype == np.float32
        assert out.shape == (COUNT, SIZE, SIZE)
        assert np.isfinite(out).all()
        assert out.min() >= 0
        assert out.max() <= 1
    assert len({image.tobytes() for image in changed(flat(128), EVERYTHING)}) == COUNT


@pytest.mark.parametrize("training", [True, False])
def test_with_everything_off_it_scales_only(training: bool) -> None:
    out = changed(noise(), NOTHING, training=training)
    np.testing.assert_allclose(out, noise().astype(np.float32) / 255, atol=3e-6)


@pytest.mark.parametrize("size", [24, 32, 40])
@pytest.mark.parametrize("config", [NOTHING, EVERYTHING], ids=["training", "otherwise"])
def test_another_size_is_a_bilinear_interpolation(size: int, config: DistortConfig) -> None:
    """With everything off; and, outside training, with everything on."""
    grey = noise(4)
    out = changed(grey, config, size, training=config is NOTHING)
    wanted = load_keras().ops.image.resize(
        grey.astype(np.float32)[..., None] / 255, (size, size), antialias=False
    )
    np.testing.assert_allclose(out, np.asarray(wanted)[..., 0], atol=1e-5)


def test_flip_is_the_mirror_image_half_of_the_time() -> None:
    grey = noise()
    out = changed(grey, replace(NOTHING, flip=0.5))
    plain = grey.astype(np.float32) / 255
    kept = np.abs(out - plain).max((1, 2)) < 1e-5
    mirrored = np.abs(out - plain[:, :, ::-1]).max((1, 2)) < 1e-5
    assert np.all(kept ^ mirrored)
    assert 0.2 < mirrored.mean() < 0.8
    assert np.abs(changed(grey, replace(NOTHING, flip=1.0)) - plain[:, :, ::-1]).max() < 1e-5


def test_rotation_turns_about_the_centre_by_as_much_as_it_says() -> None:
    x, y = coordinates()
    blob = np.exp(-((x - 0.5) ** 2 + y**2) / 0.02)
    grey = np.broadcast_to((255 * blob).astype(np.uint8), (COUNT, SIZE, SIZE))
    out = changed(grey, replace(NOTHING, rotation=60))
    out = out * (np.hypot(x, y) < 0.9)  # the corners are not part of the image
    mass = out.sum((1, 2))
    at_x, at_y = (out * x).sum((1, 2)) / mass, (out * y).sum((1, 2)) / mass
    np.testing.assert_allclose(np.hypot(at_x, at_y), 0.5, atol=0.02)
    angles = np.degrees(np.arctan2(at_y, at_x))
    assert np.abs(angles).max() <= 62
    assert angles.min() < -30
    assert angles.max() > 30


def test_crop_magnifies_what_it_shows_and_moves() -> None:
    """A quarter of the area is half of each side, so that grey rises half as fast."""
    quarter = replace(NOTHING, crop_least=0.25, crop_most=0.25)
    out = changed(ramp(2), quarter)
    slopes = np.median(np.diff(out, axis=2), axis=(1, 2))
    np.testing.assert_allclose(slopes, 0.5 * 4 / 255, rtol=1e-2)
    starts = np.median(out[:, :, 0], axis=1) * 255
    assert starts.min() >= 64
    assert starts.min() < 64 + 20  # near the left edge
    assert starts.max() > 64 + 44  # near the middle, the largest offset
    assert starts.max() <= 64 + 4 * SIZE / 2 + 1


def test_crops_area_is_in_its_range_whatever_their_aspect() -> None:
    config = replace(NOTHING, crop_least=0.3, crop_most=0.6, aspect=0.4)
    # One seed, so both are cropped alike.
    wide = np.median(np.diff(changed(ramp(2), config), axis=2), axis=(1, 2)) * 255 / 4
    high = np.median(np.diff(changed(ramp(1), config), axis=1), axis=(1, 2)) * 255 / 4
    area, aspect = wide * high, np.log(wide / high)
    assert area.min() >= 0.29
    assert area.min() < 0.37
    assert area.max() <= 0.61
    assert area.max() > 0.53
    assert np.abs(aspect).max() <= 0.42
    assert aspect.min() < -0.2
    assert aspect.max() > 0.2


def test_a_crop_beyond_the_edge_shows_one_grey_or_the_edge_drawn_out() -> None:
    config = replace(NOTHING, crop_least=2.0, crop_most=2.0)
    out = changed(flat(255, 3 * COUNT), config)
    beyond = out < 0.999
    none = ~beyond.any((1, 2))  # the edge's own white
    assert 0.3 < none.mean() < 0.7
    for image, outside in zip(out[~none], beyond[~none], strict=True):
        assert len(np.unique(image[outside])) == 1
        assert outside.mean() == pytest.approx(0.5, abs=0.1)  # of twice the area
    greys = np.array([image.min() for image in out[~none]])
    assert np.mean(greys < 1e-5) > 0.4  # mostly black
    assert np.any(greys > 0.1)


def test_gamma_is_a_power() -> None:
    out = changed(flat(64), replace(NOTHING, gamma=0.7))
    assert np.ptp(out, axis=(1, 2)).max() < 1e-6
    exponents = np.log(np.log(out[:, 0, 0]) / np.log(64 / 255))
    assert np.abs(exponents).max() <= 0.7001
    assert exponents.min() < -0.35
    assert exponents.max() > 0.35


def test_contrast_is_about_the_mean() -> None:
    grey = 96 + noise() // 4
    plain = grey.astype(np.float32) / 255
    out = changed(grey, replace(NOTHING, contrast=0.6))
    np.testing.assert_allclose(out.mean((1, 2)), plain.mean((1, 2)), atol=2e-3)
    factors = np.log(out.std((1, 2)) / plain.std((1, 2)))
    assert np.abs(factors).max() <= 0.601
    assert factors.min() < -0.3
    assert factors.max() > 0.3


def test_brightness_shifts_and_shading_slopes() -> None:
    out = changed(flat(128), replace(NOTHING, brightness=0.2)) - 128 / 255
    assert np.ptp(out, axis=(1, 2)).max() < 1e-6
    assert 0.1 < np.abs(out).max() <= 0.2001
    out = changed(flat(128), replace(NOTHING, shading=0.2)) - 128 / 255
    np.testing.assert_allclose(out.mean((1, 2)), 0, atol=1e-5)
    for axis in (1, 2):
        assert np.abs(np.diff(out, n=2, axis=axis)).max() < 1e-5  # a plane
        rise = np.diff(out, axis=axis).mean((1, 2)) * SIZE / 2
        assert 0.1 < np.abs(rise).max() <= 0.2001
        assert rise.min() < 0 < rise.max()


def test_blur_smooths_and_sharpening_does_the_opposite() -> None:
    grey = (96 + noise() // 4).astype(np.uint8)
    plain = roughness(grey.astype(np.float32) / 255)
    blurred = roughness(changed(grey, replace(NOTHING, blur=1))) / plain
    assert np.all(blurred <= 1.0001)
    assert blurred.min() < 0.5
    both = roughness(changed(grey, replace(NOTHING, blur=1, sharpen=1))) / plain
    assert both.min() < 0.7
    assert both.max() > 1.3
    for image in changed(flat(128, 6), replace(NOTHING, blur=1, sharpen=1)):
        np.testing.assert_allclose(image, 128 / 255, atol=1e-5)  # including the edges
    seldom = roughness(changed(grey, replace(NOTHING, blur=0.5))) / plain
    assert 0.2 < np.mean(np.abs(seldom - 1) < 1e-3) < 0.8


def test_enhance_is_what_stress_calls_enhancement() -> None:
    x, y = coordinates()
    scene = 110 + 40 * np.cos(5 * x) * np.sin(4 * y) + 40 * (np.hypot(x - 0.3, y) < 0.3)
    grey = np.broadcast_to(scene.astype(np.uint8), (COUNT, SIZE, SIZE))
    plain = grey[0].astype(np.float32) / 255
    tried = np.linspace(-0.3, 0.6, 181)
    wanted = np.stack([enhancement(plain, float(gain)) for gain in tried])
    out = changed(grey, replace(NOTHING, enhance=0.6))
    errors = np.abs(out[:, None] - wanted).mean((2, 3))
    # Half a step between two gains, and the smaller copy that `enhancement` smooths.
    assert errors.min(1).max() < 0.001
    gains = tried[errors.argmin(1)]
    assert gains.min() < -0.1
    assert gains.max() > 0.4
    for image in changed(flat(128, 6), replace(NOTHING, enhance=0.6)):
        np.testing.assert_allclose(image, 128 / 255, atol=1e-5)  # including the edges


def test_noise_is_at_most_as_strong_as_it_says_and_without_a_bias() -> None:
    out = changed(flat(128), replace(NOTHING, noise=0.06)) - 128 / 255
    deviations = out.std((1, 2))
    assert deviations.max() < 0.07
    assert deviations.max() > 0.03
    assert deviations.min() < 0.02
    assert abs(out.mean()) < 1e-3


def test_frame_paints_borders_of_one_grey_and_no_more() -> None:
    out = changed(flat(128), replace(NOTHING, frame=1, frame_width=0.25))
    painted = np.abs(out - 128 / 255) > 1e-5
    inside = slice(SIZE // 4, -SIZE // 4)
    assert not painted[:, inside, inside].any()
    assert painted.any((1, 2)).mean() > 0.8
    for image, border in zip(out, painted, strict=True):
        assert len(np.unique(image[border])) <= 1
        rows, columns = border.all(1), border.all(0)  # complete rows and columns only
        np.testing.assert_array_equal(border, rows[:, None] | columns[None, :])
        for side in (rows, rows[::-1], columns, columns[::-1]):
            half = side[: SIZE // 2].astype(int)
            assert np.all(np.diff(half) <= 0)  # from the edge inwards without a gap
    widths = [tuple(border.all(1)) for border in painted]
    assert len(set(widths)) > 5
    assert np.mean(out[:, 0, :][painted[:, 0, :]] == 0) > 0.5  # mostly black


def test_marker_is_small_and_bright() -> None:
    out = changed(flat(0), replace(NOTHING, marker=1))
    bright = out > 0.69
    assert np.all(bright | (out < 1e-4))
    assert bright.any((1, 2)).mean() > 0.7  # others lie across the edge
    assert bright.mean((1, 2)).max() < 0.03
    middles = [np.argwhere(image).mean(0) for image in bright if image.any()]
    assert np.std(middles, axis=0).min() > SIZE / 8  # anywhere
    assert not (changed(flat(0), replace(NOTHING, marker=0.5)) > 0.5).any((1, 2)).all()


def test_erasing_paints_one_rectangle_in_one_grey() -> None:
    out = changed(flat(128), replace(NOTHING, erasing=1))
    painted = np.abs(out - 128 / 255) > 1e-5
    for image, hidden in zip(out, painted, strict=True):
        rows, columns = hidden.any(1), hidden.any(0)
        np.testing.assert_array_equal(hidden, rows[:, None] & columns[None, :])
        assert np.ptp(image[hidden]) < 1e-6 if hidden.any() else True
    share = painted.mean((1, 2))
    assert share.max() <= 0.23  # 20 %, and half a pixel on each side
    assert share.max() > 0.08
    assert (changed(flat(128), replace(NOTHING, erasing=0.5)) != out).any((1, 2)).mean() > 0.2


class _Fixed:
    """Draws of a JPEG at quality 50, always used."""

    def factor(self, reach: float) -> Any:
        return load_keras().ops.ones((1, 1, 1))

    def chance(self, share: float) -> Any:
        return load_keras().ops.ones((1, 1, 1))


def test_jpeg_is_jpeg() -> None:
    """At quality 50, the standard's own table: the same loss as Pillow's encoder."""
    x, y = coordinates()
    grain = np.random.default_rng(0).standard_normal((SIZE, SIZE))  # of all frequencies
    grey = np.clip(128 + 60 * np.sin(4 * x + 3 * y) + 20 * grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=50)
    encoded = Image.open(stream)
    assert isinstance(encoded, JpegImageFile)
    assert (
        tuple(map(tuple, np.reshape(encoded.quantization[0], (8, 8))))
        == batch_augmentation._JPEG_TABLE
    )
    wanted = np.asarray(encoded).astype(np.float32) / 255
    ops = load_keras().ops
    x32 = ops.convert_to_tensor(grey[None].astype(np.float32) / 255)
    out = np.asarray(batch_augmentation._jpeg(ops, x32, _Fixed(), DistortConfig(jpeg=1)))[0]  # type: ignore[arg-type]
    assert np.abs(grey / 255 - wanted).max() > 0.05
    # Pillow works in whole numbers: a coefficient on the edge of two steps may go either way.
    assert np.abs(out - wanted).mean() < 0.004
    assert np.mean(np.abs(out - wanted) > 1.5 / 255) < 0.1


def test_jpeg_hardly_changes_what_is_smooth() -> None:
    config = replace(NOTHING, jpeg=1)
    x, y = coordinates()
    smooth = (128 + 60 * np.cos(2 * x) * np.cos(1.5 * y)).astype(np.uint8)
    grey = np.broadcast_to(smooth, (COUNT, SIZE, SIZE))
    loss = np.abs(changed(grey, config) - grey / 255).mean((1, 2))
    assert 0 < loss.max() < 0.04
    rough = np.abs(changed(noise(), config) - noise() / 255).mean((1, 2))
    assert rough.min() > loss.max() / 2
    assert rough.max() > 3 * loss.max()


def test_jpeg_works_in_blocks_of_eight() -> None:
    """A change in one block affects that block only."""
    config = replace(NOTHING, jpeg=1)
    one, other = noise(), noise()
    other[:, 8:16, 16:24] = 255 - other[:, 8:16, 16:24]
    differ = np.abs(changed(one, config) - changed(other, config)) > 1e-5
    assert differ[:, 8:16, 16:24].any((1, 2)).all()
    differ[:, 8:16, 16:24] = False
    assert not differ.any()


def test_an_image_is_changed_by_its_own_draws_alone() -> None:
    """The change of an image does not depend on the other images of its batch."""
    grey = noise(6)
    other = grey.copy()
    other[1:] = 255 - other[1:]
    mine, theirs = changed(grey, EVERYTHING), changed(other, EVERYTHING)
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-5)
    assert np.abs(mine[1:] - theirs[1:]).max() > 0.1


def test_the_seed_decides_and_nothing_else_does() -> None:
    grey = noise(6)
    first = changed(grey, DistortConfig(), seed=3)
    np.random.default_rng().random()
    np.testing.assert_array_equal(changed(grey, DistortConfig(), seed=3), first)
    assert np.abs(changed(grey, DistortConfig(), seed=4) - first).max() > 0.1


def test_goes_on_with_the_same_draws_once_its_variables_are_restored() -> None:
    grey, ops = noise(6), load_keras().ops
    layer = build_batch_augmentation(DistortConfig(), SIZE, 3)
    first = np.array(ops.convert_to_numpy(layer(grey, training=True)))
    state = [np.array(ops.convert_to_numpy(v)) for v in layer.variables]
    assert state  # part of a checkpoint
    following = np.array(ops.convert_to_numpy(layer(grey, training=True)))
    assert np.abs(following - first).max() > 0.1
    other = build_batch_augmentation(DistortConfig(), SIZE, 99)
    for variable, value in zip(other.variables, state, strict=True):
        variable.assign(value)
    resumed = np.array(ops.convert_to_numpy(other(grey, training=True)))
    np.testing.assert_array_equal(resumed, following)


def test_nothing_is_drawn_outside_training() -> None:
    layer = build_batch_augmentation(DistortConfig(), SIZE, 3)
    grey, ops = noise(6), load_keras().ops
    before = [np.array(ops.convert_to_numpy(v)) for v in layer.variables]
    layer(grey)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def test_fits_into_a_model_for_batches_of_any_number() -> None:
    keras = load_keras()
    squares = keras.Input((SIZE, SIZE), dtype="uint8")
    out = build_batch_augmentation(EVERYTHING, 24, 0)(squares)
    assert tuple(out.shape) == (None, 24, 24)
    model = keras.Model(squares, out)
    for count in (1, 3):
        assert np.asarray(model(noise(count), training=True)).shape == (count, 24, 24)


def test_crops_that_cant_be_drawn_are_wrong_usage() -> None:
    config = replace(NOTHING, crop_least=0.9, crop_most=0.5)
    with pytest.raises(UsageError, match=r"distort\.crop_least: found 0\.9, wanted at most"):
        build_batch_augmentation(config, SIZE, 0)


@pytest.mark.engines
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_holds_on_other_backends_too(backend: str) -> None:
    """The same on other backends, with their own random numbers; some tests, for they are slow."""
    tests = "output_is or everything_off or goes_on"
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", tests]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        [*command, "-W", "ignore", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout
