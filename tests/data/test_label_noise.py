from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.data.thumbnails import confident_candidates, review_labels
from support.drawn_thumbnails import draw_thumbnails


def test_candidates_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    probabilities = np.array([0.1, 0.1, 0.2, 0.9, 0.8, 0.9, 0.7, 0.05])
    # Thresholds: class 0 at mean(0.9, 0.9, 0.8, 0.1) = 0.675; class 1 at mean(0.8, 0.9, 0.7, 0.05)
    # = 0.6125. Counted as 1: images 3 to 6; as 0: images 0, 1, 2 and 7.
    found = confident_candidates(labels, probabilities)
    assert found.places.tolist() == [7, 3]
    assert found.margins.tolist() == pytest.approx([0.9, 0.8])
    assert found.expected == pytest.approx((1.0, 1.0))


def test_an_image_above_neither_threshold_is_not_a_candidate() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array([0.0, 0.0, 0.55, 0.45, 1.0, 1.0])
    assert confident_candidates(labels, probabilities).places.tolist() == []


def test_planted_flips_are_found_far_above_chance_and_counted() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600)
    patients = [f"p{k // 2}" for k in range(600)]
    images = draw_thumbnails(rng, truth, ["none"] * 600, patients, person=0.2, disease=1.5)
    flipped = rng.choice(600, 30, replace=False)
    labels = truth.copy()
    labels[flipped] = 1 - labels[flipped]
    review = review_labels(replace(images, labels=labels), 0)
    assert review is not None
    assert review.source == "thumbnails"
    named = [int(doubt.path.split("/")[-1].split(".")[0]) for doubt in review.doubts]
    hits = set(named) & set(flipped.tolist())
    assert len(hits) >= 20  # by chance a list of this length holds two
    assert len(set(named[:20]) & set(flipped.tolist())) >= 17
    assert 20 <= sum(wrong for _, wrong in review.expected) <= 60
    margins = [doubt.margin for doubt in review.doubts]
    assert margins == sorted(margins, reverse=True)
    assert all(doubt.probability < 0.5 for doubt in review.doubts)


def test_correct_labels_on_easy_images_give_no_candidates() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    images = draw_thumbnails(
        rng, labels, ["none"] * 300, [f"p{k}" for k in range(300)], disease=2.0
    )
    review = review_labels(images, 0)
    assert review is not None
    assert review.auc > 0.99
    assert len(review.doubts) <= 3


def test_predictions_of_a_model_score_only_their_images() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 80)
    images = draw_thumbnails(rng, labels, ["test"] * 160, [f"p{k}" for k in range(160)])
    predictions = np.where(labels == 1, 0.9, 0.1)
    predictions[[3, 100]] = [0.97, 0.02]
    predictions[:2] = np.nan
    review = review_labels(images, 0, predictions)
    assert review is not None
    assert (review.source, review.judged) == ("predictions", 158)
    assert [doubt.path for doubt in review.doubts] == [
        "test/PNEUMONIA/100.png",
        "test/NORMAL/3.png",
    ]
    assert [doubt.probability for doubt in review.doubts] == [0.02, 0.03]


def test_few_images_are_not_reviewed() -> None:
    rng = np.random.default_rng(3)
    images = draw_thumbnails(
        rng, np.repeat([0, 1], 40), ["none"] * 80, [f"p{k}" for k in range(80)], disease=2.0
    )
    assert review_labels(images, 0) is None


def test_random_scores_give_no_candidates() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 100)
    images = draw_thumbnails(rng, labels, ["none"] * 200, [f"p{k}" for k in range(200)])
    review = review_labels(images, 0)
    assert review is not None
    assert (review.expected, review.doubts) == ((), ())
    assert review.auc < 0.75
