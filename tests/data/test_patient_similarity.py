from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pneumoscope.arrays import Float32Array
from pneumoscope.data import patient_similarity
from pneumoscope.data.patient_similarity import _Group as Group
from pneumoscope.data.patient_similarity import inside, patient_similarities
from pneumoscope.data.thumbnails import ThumbnailSet, residuals_from_mean, standardised
from support.drawn_thumbnails import draw_thumbnails


def persons(
    rng: np.random.Generator, count: int, images: int, share: float
) -> tuple[Float32Array, npt.NDArray[np.str_]]:
    """Rows of `count` persons with `images` each; the part `share` is specific to the person."""
    own = rng.normal(size=(count * images, 40))
    common = np.repeat(rng.normal(size=(count, 40)), images, axis=0)
    rows = np.sqrt(1 - share) * own + np.sqrt(share) * common
    keys = np.repeat([f"p{k}" for k in range(count)], images)
    return residuals_from_mean(rows.astype(np.float32)), keys


def test_means_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    rows, keys = persons(rng, 8, 3, 0.4)
    rows, keys = rows[:-2], keys[:-2]  # one person has a single image
    order = rng.permutation(len(rows))
    found = inside(rows[order], keys[order], "x", rng)
    assert found is not None
    same: dict[str, list[float]] = {}
    strangers = []
    for one, other in itertools.combinations(range(len(rows)), 2):
        product = float(rows[one] @ rows[other])
        if keys[one] == keys[other]:
            same.setdefault(str(keys[one]), []).append(product)
        else:
            strangers.append(product)
    assert found.same == pytest.approx(np.mean([np.mean(v) for v in same.values()]), abs=1e-4)
    assert found.strangers == pytest.approx(np.mean(strangers), abs=1e-4)
    assert (found.patients, found.pairs) == (7, 21)


def test_arbitrary_ids_give_uniform_p_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_similarity, "_PERMUTATIONS", 99)
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(150):
        rows, keys = persons(rng, 12, 3, 0.0)
        found = inside(rows, keys, "x", rng)
        assert found is not None
        p_values.append(found.p_value)
    assert 0.42 < np.mean(p_values) < 0.58
    assert np.mean(np.array(p_values) <= 0.1) < 0.18


def test_shared_ids_of_different_patients_give_uniform_p_values_in_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patient_similarity, "_PERMUTATIONS", 99)
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(150):
        # Eight persons in each split have the same eight ids and are different persons.
        groups = [Group(*persons(rng, 8, 4, 0.6)) for _ in range(2)]
        found = patient_similarity.between(groups[0], groups[1], "across", "x", rng)
        assert found is not None
        p_values.append(found.p_value)
    assert 0.42 < np.mean(p_values) < 0.58
    assert np.mean(np.array(p_values) <= 0.1) < 0.18


def test_intervals_cover_the_true_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_similarity, "_PERMUTATIONS", 9)
    rng = np.random.default_rng(3)
    rows, keys = persons(rng, 3000, 2, 0.3)
    truth = inside(rows, keys, "x", rng)
    assert truth is not None
    covered = 0
    for _ in range(300):
        rows, keys = persons(rng, 60, 2, 0.3)
        found = inside(rows, keys, "x", rng)
        assert found is not None
        covered += found.low <= truth.difference <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_too_few_ids_give_no_result() -> None:
    rng = np.random.default_rng(4)
    assert inside(*persons(rng, 4, 3, 0.5), "x", rng) is None
    one, other = (Group(*persons(rng, 4, 3, 0.5)) for _ in range(2))
    assert patient_similarity.between(one, other, "across", "x", rng) is None


def test_neighbouring_ids_show_a_drift() -> None:
    rng = np.random.default_rng(5)
    steps = np.repeat(np.cumsum(rng.normal(size=(60, 40)), axis=0), 2, axis=0)
    rows = residuals_from_mean((steps + rng.normal(size=(120, 40))).astype(np.float32))
    keys = np.repeat([f"p{k}" for k in range(60)], 2)
    found = inside(rows, keys, "x", rng)
    assert found is not None
    assert found.p_value <= 0.01
    assert found.neighbours is not None
    assert found.neighbours > 0.5
    assert abs(found.strangers) < 0.05


def test_a_real_leak_and_a_false_one() -> None:
    rng = np.random.default_rng(6)
    count = 40
    labels = np.ones(4 * count, np.int64)
    ids = [f"bacteria-{k}" for k in range(count)]
    splits = ["train"] * 2 * count + ["test"] * 2 * count
    leak = draw_thumbnails(rng, labels, splits, [*ids, *ids, *ids, *ids], person=0.4)
    by_where = {one.where: one for one in patient_similarities(leak, 0)}
    across = by_where["PNEUMONIA in train and test"]
    assert (across.kind, across.patients, across.pairs) == ("across", count, 4 * count)
    assert across.p_value <= 0.01
    assert across.low > 0
    assert by_where["PNEUMONIA in train"].p_value <= 0.01

    # The same ids, but different persons in test.
    other = [f"x{k}" for k in range(count)]
    drawn = draw_thumbnails(rng, labels, splits, [*ids, *ids, *other, *other], person=0.4)
    drawn = draw_with_ids(drawn, [*ids, *ids, *ids, *ids])
    across = {one.where: one for one in patient_similarities(drawn, 0)}[
        "PNEUMONIA in train and test"
    ]
    assert across.p_value > 0.01
    assert across.high < by_where["PNEUMONIA in train"].difference / 2


def draw_with_ids(images: ThumbnailSet, ids: list[str]) -> ThumbnailSet:
    return replace(images, patients=np.array(ids))


def test_numbers_of_two_series_are_compared() -> None:
    rng = np.random.default_rng(7)
    ids = [f"{kind}-{k}" for kind in ("bacteria", "virus") for k in range(30)]
    images = draw_thumbnails(rng, np.ones(60, np.int64), ["none"] * 60, ids, person=0.5)
    found = [one for one in patient_similarities(images, 0) if one.kind == "number"]
    assert [(one.where, one.patients) for one in found] == [("PNEUMONIA, bacteria and virus", 30)]
    assert found[0].p_value > 0.01
    same = draw_thumbnails(
        rng, np.ones(60, np.int64), ["none"] * 60, [*ids[:30], *ids[:30]], person=0.5
    )
    found = [
        one for one in patient_similarities(draw_with_ids(same, ids), 0) if one.kind == "number"
    ]
    assert found[0].p_value <= 0.01


def test_byte_equal_copies_count_once() -> None:
    rng = np.random.default_rng(8)
    ids = [f"p{k}" for k in range(20)] * 2
    images = draw_thumbnails(rng, np.zeros(40, np.int64), ["train"] * 40, ids)
    doubled = replace(
        images,
        thumbnails=np.concatenate([images.thumbnails[:20]] * 2),
        digests=images.digests[:20] * 2,
    )
    assert patient_similarities(doubled, 0) == ()
    assert len(patient_similarities(images, 0)) == 1


def test_an_image_of_one_grey_is_similar_to_nothing() -> None:
    flat = standardised(np.full((3, 16), 0.4, np.float32))
    assert np.abs(flat).max() == 0
