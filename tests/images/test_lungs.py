"""Lung segmentation against the known outlines of phantoms; other images get a low quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from pneumoscope.errors import DataError, ImageRefusedError, PneumoscopeError
from pneumoscope.images.lungs import (
    MaskFolder,
    bounding_box,
    centre_only,
    find_lungs,
    keep_inside,
    mask_out,
    otsu,
    resized_mask,
    ring_only,
    swap_background,
    swap_ring,
)
from pneumoscope.images.phantom import draw


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_lungs_of_phantoms_match_their_outlines() -> None:
    phantoms = [draw(11, f"p{k}", 1, k % 2, size=160) for k in range(24)]
    found = [find_lungs(phantom.pixels) for phantom in phantoms]
    good = [k for k, lungs in enumerate(found) if lungs.quality >= 0.5]
    assert len(good) >= 18
    overlaps = [dice(found[k].mask, phantoms[k].lungs) for k in good]
    assert np.mean(overlaps) > 0.8
    assert min(overlaps) > 0.6
    # The wide mask covers nearly all of the lungs.
    covered = [(found[k].wide & phantoms[k].lungs).sum() / phantoms[k].lungs.sum() for k in good]
    assert np.mean(covered) > 0.9


def test_two_fields_on_any_shape_and_the_image_unchanged() -> None:
    image = np.asarray(Image.fromarray(draw(2, "a", 1, 0, size=128).pixels).resize((300, 200)))
    image = image.clip(0, 1)
    before = image.copy()
    lungs = find_lungs(image)
    np.testing.assert_array_equal(image, before)
    assert lungs.mask.shape == lungs.wide.shape == (200, 300)
    assert lungs.mask.dtype == bool
    assert label(lungs.mask)[1] == 2
    assert (lungs.mask <= lungs.wide).mean() > 0.99


@pytest.mark.parametrize("name", ["black", "noise", "ramp", "turned"])
def test_images_other_than_an_upright_chest_have_low_quality(name: str) -> None:
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (96, 1))
    pictures = {
        "black": np.zeros((96, 96), np.float32),
        "noise": np.random.default_rng(0).random((96, 96), dtype=np.float32),
        "ramp": ramp,
        "turned": np.ascontiguousarray(1 - draw(2, "a", 1, 0, size=96).pixels),
    }
    assert find_lungs(pictures[name]).quality < 0.5


def test_otsu_minimises_the_variance_within_classes() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 0.5, 300), rng.normal(4, 0.7, 200)])

    def within(cut: float) -> float:
        sides = (values[values < cut], values[values >= cut])
        return float(sum(len(side) * side.var() for side in sides if len(side)))

    best = min(np.linspace(values.min(), values.max(), 400), key=within)
    # The variance hardly changes across the gap: compare the variance, not the position.
    assert within(otsu(values)) <= within(best) * 1.02


def test_ring_and_centre_add_up_to_the_image() -> None:
    image = np.random.default_rng(0).random((80, 40), dtype=np.float32) + 0.01
    ring, centre = ring_only(image, 0.125), centre_only(image, 0.125)
    np.testing.assert_allclose(ring + centre, image)
    assert (ring[10:70, 5:35] == 0).all()
    assert (ring[:10] > 0).all()
    assert (ring[:, :5] > 0).all()


def test_grey_is_the_mean_of_the_rest_and_independent_of_the_masked_region() -> None:
    image = np.random.default_rng(0).random((80, 40), dtype=np.float32)
    mask = np.zeros((80, 40), bool)
    mask[10:70, 5:35] = True
    for hidden, painted in (
        (mask, ring_only(image, 0.125, "grey")),
        (~mask, centre_only(image, 0.125, "grey")),
        (mask, mask_out(image, mask, "grey")),
        (~mask, keep_inside(image, mask, "grey")),
    ):
        np.testing.assert_allclose(painted[hidden], image[~hidden].mean(), rtol=1e-5)
        np.testing.assert_array_equal(painted[~hidden], image[~hidden])
        assert painted.dtype == np.float32
    everything = np.ones((80, 40), bool)
    assert (mask_out(image, everything, "grey") == 0).all()  # no pixels are left to average


def test_a_swapped_region_is_the_other_image_matched_in_brightness() -> None:
    rng = np.random.default_rng(0)
    image = (0.3 + 0.1 * rng.random((80, 40))).astype(np.float32)
    other = np.asarray(Image.fromarray(rng.random((60, 70), np.float32)))
    mask = np.zeros((80, 40), bool)
    mask[10:70, 5:35] = True
    for lent in (swap_ring(image, other, 0.125), swap_background(image, other, mask)):
        assert lent.shape == image.shape
        assert lent.dtype == np.float32
        np.testing.assert_array_equal(lent[mask], image[mask])
        np.testing.assert_allclose(lent[~mask].mean(), image[~mask].mean(), rtol=1e-3)
        np.testing.assert_allclose(lent[~mask].std(), image[~mask].std(), rtol=1e-2)
        fitted = np.asarray(Image.fromarray(other).resize((40, 80), Image.Resampling.BILINEAR))
        assert np.corrcoef(lent[~mask], fitted[~mask])[0, 1] > 0.999
    everything = np.ones((80, 40), bool)
    np.testing.assert_array_equal(swap_background(image, other, everything), image)
    flat = np.full((9, 9), 0.7, np.float32)  # without contrast of its own
    assert np.ptp(swap_ring(image, flat, 0.125)[~mask]) < 1e-6
    with pytest.raises(PneumoscopeError, match="mask: found shape"):
        swap_background(image, other, mask.T)


def test_lungs_and_the_rest_add_up_to_the_image() -> None:
    image = np.full((20, 20), 0.5, np.float32)
    mask = np.zeros((20, 20), bool)
    mask[4:9, 3:6] = mask[12:15, 14:18] = True
    np.testing.assert_allclose(mask_out(image, mask) + keep_inside(image, mask), image)
    assert keep_inside(image, mask)[5, 4] == 0.5
    assert mask_out(image, mask)[5, 4] == 0
    box = bounding_box(mask)
    assert box.sum() == (15 - 4) * (18 - 3)
    assert (box >= mask).all()
    assert not bounding_box(np.zeros((5, 5), bool)).any()
    with pytest.raises(PneumoscopeError, match="mask: found shape"):
        mask_out(image, mask[:10])


def test_masks_are_found_by_the_path_or_name_of_the_image(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    (masks / "NORMAL").mkdir(parents=True)
    white = np.zeros((50, 50), np.uint8)
    white[10:40, 5:20] = 255
    Image.fromarray(white).save(masks / "NORMAL" / "a.png")
    Image.fromarray(white.T.copy()).save(masks / "b.png")
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(masks / "empty.png")
    (masks / "broken.png").write_bytes(b"no image")
    folder = MaskFolder(masks, images)
    lungs = folder.lungs(images / "NORMAL" / "a.jpeg", (100, 200))
    assert lungs is not None
    assert lungs.quality == 1.0
    np.testing.assert_array_equal(lungs.mask, resized_mask(white > 0, (100, 200)))
    assert lungs.mask[50, 50]
    assert not lungs.mask[50, 150]
    elsewhere = folder.lungs(Path("/elsewhere/b.dcm"), (50, 50))
    assert elsewhere is not None
    assert elsewhere.mask[10, 30]
    assert folder.lungs(images / "c.png", (50, 50)) is None
    assert folder.lungs(images / "empty.png", (50, 50)) is None
    with pytest.raises(ImageRefusedError, match=r"broken\.png"):
        folder.lungs(images / "broken.jpeg", (50, 50))


def test_masks_without_white_are_no_empty_lungs(tmp_path: Path) -> None:
    ones = np.zeros((50, 50), np.uint8)
    ones[10:40, 5:20] = 1
    Image.fromarray(ones).save(tmp_path / "ones.png")
    Image.fromarray(ones * 127).save(tmp_path / "grey.png")
    speck = np.zeros((50, 50), np.uint8)
    speck[20, 20] = 255
    Image.fromarray(speck).save(tmp_path / "speck.png")
    folder = MaskFolder(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"ones\.png: its brightest pixel is 1 of 255"):
        folder.lungs(tmp_path / "ones.jpeg", (50, 50))
    with pytest.raises(DataError, match="127 of 255"):
        folder.lungs(tmp_path / "grey.jpeg", (50, 50))
    assert folder.lungs(tmp_path / "speck.jpeg", (5, 5)) is None  # nothing is left of it
