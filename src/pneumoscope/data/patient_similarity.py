"""Test whether images with one patient id are more similar than images of different patients.

If they are, the id identifies a person, and a patient in two splits is a real leak. The input is a
`ThumbnailSet`; the output is `PatientSimilarity` records for ids inside a split, ids in two splits,
and numbers that occur in two series of ids.

Similarity is the correlation of 16×16 thumbnails minus the mean image of their class and split.
There are two permutation tests (Good 2005, Permutation, Parametric and Bootstrap Tests of
Hypotheses). Inside a split, images are permuted among the ids. Between two groups, whole ids of one
group are permuted among those of the other, so that several images of one person count as one.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.arrays import Float32Array, Int64Array
from pneumoscope.data.audit_record import LEVEL, PatientSimilarity
from pneumoscope.data.patients import ID_SERIES, id_series, natural_key, number_of
from pneumoscope.data.thumbnails import ThumbnailSet, residuals_from_mean
from pneumoscope.records import CLASS_NAMES, SPLITS

_MIN_IDS = 5
"""Five ids have 120 orders; with fewer ids no p-value could be small."""

_PERMUTATIONS = 499
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class _Group:
    """Images of one class and split or series: standardised rows, and the key of each."""

    rows: Float32Array
    keys: npt.NDArray[np.str_]


def patient_similarities(images: ThumbnailSet, seed: int) -> tuple[PatientSimilarity, ...]:
    """Make every comparison for which there are at least five ids.

    Args:
        images: readable images; of byte-equal files of one patient and split the first counts.
        seed: of permutations and resamples.
    """
    kept = _without_copies(images)
    rng = np.random.default_rng(seed)
    small = images.small
    found = [
        *_inside_splits(images, small, kept, rng),
        *_across_splits(images, small, kept, rng),
        *_across_series(images, small, kept, rng),
    ]
    return tuple(found)


def _without_copies(images: ThumbnailSet) -> Int64Array:
    """Positions of the images without byte-equal copies of the same patient and split."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for place, digest in enumerate(images.digests):
        key = (digest, str(images.splits[place]), str(images.patients[place]))
        if key not in seen:
            seen.add(key)
            kept.append(place)
    return np.array(kept, np.int64)


def _cell(images: ThumbnailSet, kept: Int64Array, label: int, split: str) -> Int64Array:
    own: Int64Array = kept[(images.labels[kept] == label) & (images.splits[kept] == split)]
    return own


def _named(split: str) -> str:
    return "" if split == "none" else f" in {split}"


def _inside_splits(
    images: ThumbnailSet, small: Float32Array, kept: Int64Array, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    for split, label in itertools.product((*SPLITS, "none"), range(len(CLASS_NAMES))):
        places = _cell(images, kept, label, split)
        if len(places) < 2:
            continue
        group = _Group(residuals_from_mean(small[places]), images.patients[places])
        if found := inside(group.rows, group.keys, f"{CLASS_NAMES[label]}{_named(split)}", rng):
            yield found


def _across_splits(
    images: ThumbnailSet, small: Float32Array, kept: Int64Array, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    for (one, other), label in itertools.product(
        itertools.combinations(SPLITS, 2), range(len(CLASS_NAMES))
    ):
        first, second = (_cell(images, kept, label, split) for split in (one, other))
        where = f"{CLASS_NAMES[label]} in {one} and {other}"
        yield from _between(images, small, (first, second), "across", where, rng)


def _across_series(
    images: ThumbnailSet, small: Float32Array, kept: Int64Array, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    """Images whose ids have the same number in different series, such as bacteria-12 and virus-12.

    Only for ids that name a series: those of Kermany file names.
    """
    kinds = np.array([id_series(str(patient)) for patient in images.patients[kept]])
    for (one, other), label in itertools.product(
        itertools.combinations(ID_SERIES[:-1], 2), range(len(CLASS_NAMES))
    ):
        of_class = images.labels[kept] == label
        first, second = (kept[of_class & (kinds == kind)] for kind in (one, other))
        where = f"{CLASS_NAMES[label]}, {one} and {other}"
        yield from _between(images, small, (first, second), "number", where, rng)


def _between(
    images: ThumbnailSet,
    small: Float32Array,
    places: tuple[Int64Array, Int64Array],
    kind: Literal["across", "number"],
    where: str,
    rng: np.random.Generator,
) -> Iterator[PatientSimilarity]:
    groups = []
    for own in places:
        if not len(own):
            return
        names = [str(name) for name in images.patients[own]]
        keys = names if kind == "across" else [_number(name) for name in names]
        groups.append(_Group(residuals_from_mean(small[own]), np.array(keys)))
    if found := between(groups[0], groups[1], kind, where, rng):
        yield found


def _number(patient: str) -> str:
    number = number_of(patient)
    return patient if number is None else str(number)


def inside(
    rows: Float32Array, keys: npt.NDArray[np.str_], where: str, rng: np.random.Generator
) -> PatientSimilarity | None:
    """Test whether rows with one key are more similar than rows with two keys.

    Args:
        rows: (n, d) float32 of length 1.
        keys: (n,) str.
        where: name of the group in the record.
        rng: draws permutations and resamples.

    Returns:
        `None` if fewer than five keys have several rows.
    """
    order, starts, sizes = _runs(keys)
    several = sizes > 1
    if several.sum() < _MIN_IDS:
        return None
    first = np.concatenate([order[s : s + m] for s, m in zip(starts, sizes, strict=True) if m > 1])
    many = sizes[several]
    edges = np.concatenate([[0], np.cumsum(many)[:-1]])
    same = _mean_similarity(rows[first], edges, many)
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    strangers = _strangers_inside(sums, sizes)
    permuted = np.array(
        [
            _mean_similarity(rows[rng.permutation(len(rows))[: len(first)]], edges, many).mean()
            for _ in range(_PERMUTATIONS)
        ]
    )
    pairs = int((many * (many - 1) // 2).sum())
    found = _similarity("patient", where, pairs, same, strangers, permuted, rng)
    return replace(found, neighbours=_neighbours(rows, keys))


def _neighbours(rows: Float32Array, keys: npt.NDArray[np.str_]) -> float | None:
    """Mean product of rows with different, consecutive keys."""
    names = keys.tolist()
    order = sorted(range(len(names)), key=lambda place: natural_key(names[place]))
    one, other = np.array(order[:-1], np.int64), np.array(order[1:], np.int64)
    apart = keys[one] != keys[other]
    if not apart.any():
        return None
    products = (rows[one[apart]] * rows[other[apart]]).sum(axis=1, dtype=np.float64)
    return round(float(products.mean()), 4)


def _runs(keys: npt.NDArray[np.str_]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """An order that groups equal keys; the start of each key's run; its length."""
    _, codes, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return order.astype(np.int64), starts.astype(np.int64), sizes.astype(np.int64)


def _mean_similarity(
    rows: Float32Array, edges: Int64Array, sizes: Int64Array
) -> npt.NDArray[np.float64]:
    """Mean product of the pairs in each run: (|Σz|² - Σ|z|²) / (m(m - 1))."""
    sums = np.add.reduceat(rows, edges, axis=0)
    own = np.add.reduceat((rows * rows).sum(axis=1), edges)
    total = (sums * sums).sum(axis=1, dtype=np.float64) - own
    mean: npt.NDArray[np.float64] = total / (sizes * (sizes - 1))
    return mean


def _strangers_inside(sums: npt.NDArray[np.float64], sizes: Int64Array) -> float:
    """Mean product of all pairs with two keys."""
    everything = sums.sum(axis=0)
    total = float(everything @ everything - (sums * sums).sum())
    pairs = float(sizes.sum()) ** 2 - float((sizes.astype(np.float64) ** 2).sum())
    return total / pairs if pairs else 0.0


def between(
    first: _Group,
    second: _Group,
    kind: Literal["across", "number"],
    where: str,
    rng: np.random.Generator,
) -> PatientSimilarity | None:
    """Test whether rows of two groups are more similar with one key than with two keys.

    Returns:
        `None` if the groups share fewer than five keys.
    """
    shared = sorted(set(first.keys.tolist()) & set(second.keys.tolist()))
    if len(shared) < _MIN_IDS:
        return None
    one, images_of_one = _mean_rows(first, shared)
    other, images_of_other = _mean_rows(second, shared)
    products = one @ other.T
    same = np.diagonal(products).astype(np.float64)
    count = len(shared)
    strangers = float((products.sum(dtype=np.float64) - same.sum()) / (count * (count - 1)))
    ranks = np.arange(count)
    permuted = np.array(
        [products[rng.permutation(count), ranks].mean() for _ in range(_PERMUTATIONS)], np.float64
    )
    pairs = int((images_of_one * images_of_other).sum())
    return _similarity(kind, where, pairs, same, strangers, permuted, rng)


def _mean_rows(group: _Group, keys: Sequence[str]) -> tuple[Float32Array, Int64Array]:
    """The mean row of each key, and its number of images."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(group.keys.tolist()):
        places[key].append(place)
    rows: Float32Array = np.stack([group.rows[places[key]].mean(axis=0) for key in keys])
    return rows, np.array([len(places[key]) for key in keys], np.int64)


def _similarity(
    kind: Literal["patient", "across", "number"],
    where: str,
    pairs: int,
    same: npt.NDArray[np.float64],
    strangers: float,
    permuted: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> PatientSimilarity:
    observed = float(same.mean())
    means = same[rng.integers(0, len(same), (_RESAMPLES, len(same)))].mean(axis=1)
    low, high = np.quantile(means - strangers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p_value = (1 + int((permuted >= observed).sum())) / (1 + len(permuted))
    return PatientSimilarity(
        kind=kind,
        where=where,
        patients=len(same),
        pairs=pairs,
        same=round(observed, 4),
        strangers=round(strangers, 4),
        low=round(float(low), 4),
        high=round(float(high), 4),
        p_value=round(p_value, 4),
    )
