"""Background swap and lung masking: how often, where, and with which targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import DistortConfig
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.lungs import find_lungs
from pneumoscope.images.phantom import draw
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.background import ChangedBackgrounds, LungExtractor, change_backgrounds
from pneumoscope.training.end_to_end import Squares, build_phase_schedule
from pneumoscope.training.features import KEY_BYTES, ArrayStore, FeatureTable
from pneumoscope.training.guidance import UNKNOWN
from pneumoscope.training.network import initialise_randomly, with_head
from support.small_network import small_network
from training.test_end_to_end import CONFIG, SIDE, SIZES, squares_of

COUNT, LENGTH = 200, 80
BOX = (slice(20, 60), slice(15, 55))


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def batch(*, lungs: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Squares of noise without common grey values, and a box of lungs in each."""
    pixels = np.random.default_rng(3).integers(1, 256, (COUNT, LENGTH, LENGTH), np.uint8)
    codes = np.zeros_like(pixels)
    if lungs:
        codes[:, *BOX] = 3
    return pixels, codes


def changed_by(
    surround: float, silence: float, *, lungs: bool = True, frame: float = 0.0
) -> tuple[np.ndarray, ChangedBackgrounds]:
    squares, codes = batch(lungs=lungs)
    config = DistortConfig(surround=surround, surround_frame=frame, silence=silence)
    before = squares.copy()
    found = change_backgrounds(squares, codes, config, np.random.default_rng(0))
    np.testing.assert_array_equal(squares, before)
    return squares, found


def squares_with_lungs(folder: Path, count: int) -> Squares:
    """Images of which every third is normal, with lungs in the middle of each."""
    train = squares_of(folder, count)
    store = ArrayStore(folder / "lungs", "u1", (SIDE, SIDE))
    keys = [f"lungs {k}".encode().ljust(KEY_BYTES) for k in range(count)]
    fields = np.zeros((count, SIDE, SIDE), np.uint8)
    fields[:, 20:44, 20:44] = 3
    store.add(keys, fields)
    table = FeatureTable(store, tuple((key,) for key in keys), tuple(range(count)), ())
    labels = (np.arange(count) % 3 > 0).astype(np.int64)
    return Squares(train.table, labels, train.subtypes, table)


def kept(squares: np.ndarray, found: ChangedBackgrounds, *, inside: bool) -> np.ndarray:
    """Share of each image's pixels, well within the lungs or well without, that are as before.

    Within one grey: the foot of a soft seam reaches far.
    """
    same = np.abs(found.squares.astype(int) - squares) <= 1
    if inside:
        return np.asarray(same[:, 38:42, 33:37].mean((1, 2)))
    return np.asarray(same[:, :2].mean((1, 2)))


def test_lungs_are_what_found_lungs_are_and_none_where_they_are_not_sure() -> None:
    extractor = LungExtractor(128)
    image = draw(2, "a", 1, 0, size=128).pixels
    fields = find_lungs(image)
    assert fields.quality >= 0.5
    codes = extractor.prepare(image, Preprocessor())
    assert codes.shape == extractor.shape
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes == 3, fields.mask)
    np.testing.assert_array_equal(codes > 0, fields.wide | fields.mask)
    blank = np.full((128, 128), 0.5, np.float32)
    assert not extractor.prepare(blank, Preprocessor()).any()


@pytest.mark.parametrize("lungs", [True, False])
def test_other_surroundings_leave_the_lungs_as_they_were(lungs: bool) -> None:
    squares, found = changed_by(0.4, 0.0, lungs=lungs)
    assert not found.without_lungs.any()
    other = (found.squares != squares).any((1, 2))
    np.testing.assert_array_equal(found.own, ~other)
    assert other.mean() == pytest.approx(0.4, abs=0.1)
    assert (kept(squares, found, inside=True) == 1).all()
    assert (kept(squares, found, inside=False)[other] < 0.1).all()


def test_other_surroundings_are_paint_or_another_images() -> None:
    _, found = changed_by(1.0, 0.0)
    corner = found.squares[:, :4, :4].reshape(COUNT, -1)
    painted = (corner == corner[:, :1]).all(1)
    assert painted.mean() == pytest.approx(0.5, abs=0.12)
    greys = corner[painted, 0]
    assert (greys == 0).mean() == pytest.approx(1 / 3, abs=0.15)
    assert len(np.unique(greys)) > 20  # of any grey
    # The background of another image, matched in brightness and contrast.
    assert corner[~painted].mean() == pytest.approx(128, abs=6)
    assert corner[~painted].std() == pytest.approx(74, abs=6)


@pytest.mark.parametrize("lungs", [True, False])
def test_without_lungs_the_surroundings_stay(lungs: bool) -> None:
    squares, found = changed_by(0.0, 0.25, lungs=lungs)
    assert found.without_lungs.mean() == pytest.approx(0.25, abs=0.1)
    np.testing.assert_array_equal((found.squares != squares).any((1, 2)), found.without_lungs)
    np.testing.assert_array_equal(found.own, ~found.without_lungs)
    middle = (
        found.squares[found.without_lungs, 38:42, 33:37]
        .reshape(found.without_lungs.sum(), -1)
        .astype(int)
    )
    assert (np.abs(middle - middle[:, :1]) <= 1).all()  # one fill value, except for a soft edge
    if lungs:
        assert (kept(squares, found, inside=False) == 1).all()


def test_a_frame_of_another_image_has_no_effect_on_whether_lungs_were_found() -> None:
    """With a share of frames, images with and without lungs get frames equally often."""
    rows = slice(0, 4), slice(None)  # a frame of 5 % and more, and no lungs
    for lungs in (True, False):
        squares, found = changed_by(0.8, 0.0, lungs=lungs, frame=0.4)
        assert (kept(squares, found, inside=True) == 1).all()
        other = (found.squares[:, *rows] != squares[:, *rows]).any((1, 2))
        near = (found.squares[:, 17, 17:53] != squares[:, 17, 17:53]).all(1)
        assert other.mean() == pytest.approx(0.8 if lungs else 0.32, abs=0.08)
        assert (near.mean() > 0.2) == lungs  # only lungs have an outline this close


def test_an_image_is_changed_in_one_way_at_most() -> None:
    squares, found = changed_by(0.5, 0.5)
    inside, outside = (kept(squares, found, inside=where) for where in (True, False))
    np.testing.assert_array_equal(inside == 1, ~found.without_lungs)
    assert ((inside == 1) ^ (outside == 1)).all()


def test_nothing_is_asked_where_no_lungs_are_shown(tmp_path: Path) -> None:
    train, val = squares_with_lungs(tmp_path / "train", 24), squares_of(tmp_path / "val", 70, 1)
    backbone = build_backbone(None)
    initialise_randomly(backbone, 0)
    network = with_head(backbone, Architecture(), 0)
    distort = replace(CONFIG.distort, surround=0.2, silence=0.5)
    config = replace(CONFIG, distort=distort, kinds=0.5)
    for phase, side in zip(
        build_phase_schedule(network, (train, val), config, SIZES, {}).phases,
        (42, SIDE),
        strict=True,
    ):
        batches = list(phase.batches(1))
        targets = np.concatenate([labels for _, labels in batches])
        codes = np.concatenate([inputs["codes"][:, 0] for inputs, _ in batches])
        masked = (targets[:, 1] != 0) & (targets[:, 1] != 1)
        assert 0.2 < masked.mean() < 0.8
        np.testing.assert_allclose(targets[masked], [[1 / 3, 2 / 3]] * masked.sum(), rtol=1e-6)
        assert (codes[masked] == UNKNOWN).all()
        assert set(codes[~masked]) > {UNKNOWN}
        assert {inputs["squares"].shape[1] for inputs, _ in batches} == {side}
        for (inputs, labels_), (again, same) in zip(batches, phase.batches(1), strict=True):
            np.testing.assert_array_equal(inputs["squares"], again["squares"])
            np.testing.assert_array_equal(labels_, same)


def test_a_single_image_has_only_its_own_background() -> None:
    square = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    config = DistortConfig(surround=0.0, silence=0.0)
    changed = change_backgrounds(square, np.zeros_like(square), config, np.random.default_rng(0))
    np.testing.assert_array_equal(changed.squares, square)
