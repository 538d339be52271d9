from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumoscope.data.audit_record import SplitTest
from pneumoscope.data.thumbnails import (
    Scores,
    ThumbnailSet,
    area,
    comparisons,
    cross_validated,
    interval_of_area,
    split_tests,
)
from pneumoscope.progress import SILENT
from support.drawn_thumbnails import draw_thumbnails, smooth


def two_splits(per_split: int) -> tuple[list[str], list[str]]:
    splits = ["train"] * per_split + ["test"] * per_split
    return splits, [f"p{k // 2}" for k in range(2 * per_split)]


def compared(images: ThumbnailSet) -> tuple[SplitTest, ...]:
    with SILENT.task("", 1, "") as task:
        return split_tests(images, 0, task)


def test_area_is_that_of_pairs_within_folds() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 200)
    logits = np.round(rng.normal(size=200) + classes, 1)  # with ties
    assert area(Scores(logits, np.zeros(200, np.int64)), classes) == pytest.approx(
        roc_auc_score(classes, logits)
    )
    fold = rng.integers(0, 3, 200)
    won = pairs = 0.0
    for number in range(3):
        own = fold == number
        here = float(classes[own].sum() * (1 - classes[own]).sum())
        won += here * roc_auc_score(classes[own], logits[own])
        pairs += here
    assert area(Scores(logits, fold), classes) == pytest.approx(won / pairs)


def test_intervals_of_areas_cover_with_clustered_patients() -> None:
    rng = np.random.default_rng(1)
    truth = 0.7602  # of normal scores 1 apart, deviation sqrt(2): Phi(1 / sqrt(2) / sqrt(2))
    covered = 0
    for _ in range(200):
        codes = np.repeat(np.arange(60), 3)
        classes = np.repeat(rng.integers(0, 2, 60), 3)
        logits = classes + np.repeat(rng.normal(0, 0.8, 60), 3) + rng.normal(0, 0.6, 180)
        patients = codes.astype(np.str_)
        scores = Scores(logits, np.zeros(180, np.int64))
        low, high = interval_of_area(scores, classes, patients, 0)
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_images_of_a_patient_are_held_out_together() -> None:
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(40), 5)
    known_by_heart = np.eye(40, dtype=np.float32)[codes]
    classes = rng.integers(0, 2, 40)[codes]
    scores = cross_validated(known_by_heart, classes, codes.astype(np.str_), 0)
    assert scores is not None
    assert area(scores, classes) < 0.65
    for code in range(40):
        assert len(set(scores.fold[codes == code])) == 1


def test_too_few_patients_give_no_result() -> None:
    features = np.zeros((40, 3), np.float32)
    classes = np.repeat([0, 1], 20)
    assert cross_validated(features, classes, classes.astype(np.str_), 0) is None


def test_splits_of_one_distribution_are_not_separated() -> None:
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(15):
        splits, patients = two_splits(40)
        images = draw_thumbnails(rng, np.zeros(80, np.int64), splits, patients, person=0.3)
        (found,) = compared(images)
        told += found.low > 0.5
    assert told <= 3


def test_a_planted_shift_of_brightness_is_found_and_named() -> None:
    rng = np.random.default_rng(4)
    splits, patients = two_splits(80)
    brighter = np.repeat([0.0, 0.5], 80)[:, None] * np.ones((1, 1024))
    images = draw_thumbnails(rng, np.ones(160, np.int64), splits, patients, pattern=brighter)
    (found,) = compared(images)
    assert (found.label, found.first, found.second) == ("PNEUMONIA", "train", "test")
    assert found.auc > 0.9
    assert found.low > 0.8
    assert found.drivers[0].name in ("mean", "centre", "border")
    assert found.drivers[0].second > found.drivers[0].first
    assert found.shape_auc < 0.7


def test_a_planted_shift_of_framing_shows_in_the_shape() -> None:
    rng = np.random.default_rng(5)
    splits, patients = two_splits(80)
    picture = smooth(rng, 1)
    picture -= picture.mean()
    images = draw_thumbnails(
        rng,
        np.zeros(160, np.int64),
        splits,
        patients,
        pattern=np.repeat([0, 1], 80)[:, None] * picture,
    )
    (found,) = compared(images)
    assert found.shape_auc > 0.85


def test_small_splits_are_left_out() -> None:
    rng = np.random.default_rng(6)
    splits = ["train"] * 60 + ["val"] * 15
    images = draw_thumbnails(rng, np.zeros(75, np.int64), splits, [f"p{k}" for k in range(75)])
    assert compared(images) == ()
    assert comparisons() == 6
