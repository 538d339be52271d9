"""Lung-based cropping: the lungs fill the same share of all images, whatever the framing."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.stress import shortcut_baseline
from pneumoscope.images.lungs import (
    MEDIAN_BOX,
    LungBox,
    LungFields,
    find_lungs,
    lung_box,
    match_framing,
)
from pneumoscope.images.phantom import draw
from support.known import known, limits


def fields(top: int, bottom: int, left: int, right: int, shape: tuple[int, int]) -> LungFields:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return LungFields(mask, mask, 1.0)


def test_the_box_is_in_shares_of_the_sides() -> None:
    box = lung_box(fields(10, 60, 40, 160, (100, 200)))
    assert box == LungBox(0.2, 0.1, 0.8, 0.6)
    assert lung_box(None) is None
    assert lung_box(fields(0, 0, 0, 0, (10, 10))) is None


@pytest.mark.parametrize("share", [0.5, 0.71, 1.0])
def test_a_bright_box_fills_the_share_and_is_centred(share: float) -> None:
    image = np.zeros((200, 300), np.float32)
    image[40:140, 30:180] = 1.0
    box = LungBox(0.1, 0.2, 0.6, 0.7)
    matched = match_framing(image, box, share)
    assert matched.shape == image.shape
    assert matched.dtype == np.float32
    inside = matched > 0.5
    for axis in (0, 1):
        covered = np.flatnonzero(inside.any(axis=axis))
        side = inside.shape[1 - axis]
        assert (covered[-1] + 1 - covered[0]) / side == pytest.approx(share, abs=0.015)
        assert (covered[-1] + 1 + covered[0]) / 2 / side == pytest.approx(0.5, abs=0.01)


def test_beyond_the_edge_the_edge_is_repeated_and_no_lungs_mean_the_median_box() -> None:
    image = np.tile(np.linspace(0.2, 0.8, 100, dtype=np.float32), (80, 1))
    matched = match_framing(image, LungBox(0.0, 0.0, 1.0, 1.0), 0.5)
    assert matched[:, 0] == pytest.approx(0.2)
    assert matched[:, -1] == pytest.approx(0.8)
    np.testing.assert_array_equal(
        match_framing(image, None, 0.7), match_framing(image, MEDIAN_BOX, 0.7)
    )


def test_matching_removes_the_cue() -> None:
    """Phantoms of one class are cropped more tightly: the box separates them until matched."""
    own, matched, labels = [], [], []
    for k in range(120):
        image = draw(1, f"p{k}", k, 0, size=96).pixels
        closer = 2 + 12 * (k % 2) + k % 3
        image = image[closer:-closer, 4:-4]
        found = find_lungs(image)
        if (box := lung_box(found)) is None or found.quality < 0.5:
            continue
        again = lung_box(find_lungs(match_framing(image, box, 0.71)))
        if again is not None:
            own.append(box.values())
            matched.append(again.values())
            labels.append(k % 2)
    patients = list(map(str, range(len(labels))))
    assert len(labels) > 80
    told = shortcut_baseline(np.array(own), labels, patients, 5, IntervalConfig(resamples=200))
    left = shortcut_baseline(np.array(matched), labels, patients, 5, IntervalConfig(resamples=200))
    assert told is not None
    assert left is not None
    assert known(told.auc.value) > 0.85
    low, high = limits(left.auc)
    assert low < 0.5 < high
