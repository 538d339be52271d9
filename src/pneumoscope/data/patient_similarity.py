"""Do films that share a patient id look alike? Then the id means a person, and a leak is real.

Comes in: `ThumbnailSet`. Goes out: `PatientSimilarity` records, for ids inside a split, in two
splits, and for numbers that stand in two series of ids. Knows nothing of files, pages or models.

Likeness is the correlation of 16×16 thumbnails from which the mean film of their class and split
was taken. Two tests by permutation (Good 2005, Permutation, Parametric and Bootstrap Tests of
Hypotheses): inside a split, films are dealt anew to the ids; between two groups, whole ids of the
one are dealt anew to those of the other, so that several films of one person count as one.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import LEVEL, PatientSimilarity
from pneumoscope.data.patients import ID_SERIES, id_series, natural_key, number_of
from pneumoscope.data.thumbnails import Floats, ThumbnailSet, residuals_from_mean
from pneumoscope.records import CLASS_NAMES, SPLITS

_FEWEST_IDS = 5
"""Of five ids there are 120 orders: with fewer no p-value could be small."""

_PERMUTATIONS = 499
_RESAMPLES = 1000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Group:
    """Films of one class and split or series: standardised rows, and the key of each."""

    rows: Floats
    keys: npt.NDArray[np.str_]


def patient_similarities(films: ThumbnailSet, seed: int) -> tuple[PatientSimilarity, ...]:
    """Every comparison for which there are at least five ids.

    Args:
        films: readable films; of byte-equal files of one patient and split the first counts.
        seed: of permutations and resamples.
    """
    films_kept = _without_copies(films)
    rng = np.random.default_rng(seed)
    small = films.small
    found = [
        *_inside_splits(films, small, films_kept, rng),
        *_across_splits(films, small, films_kept, rng),
        *_across_series(films, small, films_kept, rng),
    ]
    return tuple(found)


def _without_copies(films: ThumbnailSet) -> Ints:
    """Places of the films, a byte-equal copy in the same split and of the same patient left out."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for place, digest in enumerate(films.digests):
        key = (digest, str(films.splits[place]), str(films.patients[place]))
        if key not in seen:
            seen.add(key)
            kept.append(place)
    return np.array(kept, np.int64)


def _cell(films: ThumbnailSet, kept: Ints, label: int, split: str) -> Ints:
    own: Ints = kept[(films.labels[kept] == label) & (films.splits[kept] == split)]
    return own


def _named(split: str) -> str:
    return "" if split == "none" else f" in {split}"


def _inside_splits(
    films: ThumbnailSet, small: Floats, kept: Ints, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    for split, label in itertools.product((*SPLITS, "none"), range(len(CLASS_NAMES))):
        places = _cell(films, kept, label, split)
        if len(places) < 2:
            continue
        group = _Group(residuals_from_mean(small[places]), films.patients[places])
        if found := inside(group.rows, group.keys, f"{CLASS_NAMES[label]}{_named(split)}", rng):
            yield found


def _across_splits(
    films: ThumbnailSet, small: Floats, kept: Ints, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    for (one, other), label in itertools.product(
        itertools.combinations(SPLITS, 2), range(len(CLASS_NAMES))
    ):
        first, second = (_cell(films, kept, label, split) for split in (one, other))
        where = f"{CLASS_NAMES[label]} in {one} and {other}"
        yield from _between(films, small, (first, second), "across", where, rng)


def _across_series(
    films: ThumbnailSet, small: Floats, kept: Ints, rng: np.random.Generator
) -> Iterator[PatientSimilarity]:
    """Films whose ids have the same number in different series, such as bacteria-12 and virus-12.

    Only where ids name a series: those of Kermany file names.
    """
    kinds = np.array([id_series(str(patient)) for patient in films.patients[kept]])
    for (one, other), label in itertools.product(
        itertools.combinations(ID_SERIES[:-1], 2), range(len(CLASS_NAMES))
    ):
        of_class = films.labels[kept] == label
        first, second = (kept[of_class & (kinds == kind)] for kind in (one, other))
        where = f"{CLASS_NAMES[label]}, {one} and {other}"
        yield from _between(films, small, (first, second), "number", where, rng)


def _between(
    films: ThumbnailSet,
    small: Floats,
    places: tuple[Ints, Ints],
    kind: Literal["across", "number"],
    where: str,
    rng: np.random.Generator,
) -> Iterator[PatientSimilarity]:
    groups = []
    for own in places:
        if not len(own):
            return
        names = [str(name) for name in films.patients[own]]
        keys = names if kind == "across" else [_number(name) for name in names]
        groups.append(_Group(residuals_from_mean(small[own]), np.array(keys)))
    if found := between(groups[0], groups[1], kind, where, rng):
        yield found


def _number(patient: str) -> str:
    number = number_of(patient)
    return patient if number is None else str(number)


def inside(
    rows: Floats, keys: npt.NDArray[np.str_], where: str, rng: np.random.Generator
) -> PatientSimilarity | None:
    """Whether rows with one key are more alike than rows with two; `None` for too few keys.

    Args:
        rows: (n, d) float32 of length 1.
        keys: (n,) str.
        where: what to call them.
        rng: draws permutations and resamples.
    """
    order, starts, sizes = _runs(keys)
    several = sizes > 1
    if several.sum() < _FEWEST_IDS:
        return None
    first = np.concatenate([order[s : s + m] for s, m in zip(starts, sizes, strict=True) if m > 1])
    many = sizes[several]
    edges = np.concatenate([[0], np.cumsum(many)[:-1]])
    same = _mean_likeness(rows[first], edges, many)
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    strangers = _strangers_inside(sums, sizes)
    dealt = np.array(
        [
            _mean_likeness(rows[rng.permutation(len(rows))[: len(first)]], edges, many).mean()
            for _ in range(_PERMUTATIONS)
        ]
    )
    pairs = int((many * (many - 1) // 2).sum())
    found = _likeness("patient", where, pairs, same, strangers, dealt, rng)
    return replace(found, neighbours=_neighbours(rows, keys))


def _neighbours(rows: Floats, keys: npt.NDArray[np.str_]) -> float | None:
    """Mean product of rows that follow each other in the order of keys and have two keys."""
    names = keys.tolist()
    order = sorted(range(len(names)), key=lambda place: natural_key(names[place]))
    one, other = np.array(order[:-1], np.int64), np.array(order[1:], np.int64)
    apart = keys[one] != keys[other]
    if not apart.any():
        return None
    products = (rows[one[apart]] * rows[other[apart]]).sum(axis=1, dtype=np.float64)
    return round(float(products.mean()), 4)


def _runs(keys: npt.NDArray[np.str_]) -> tuple[Ints, Ints, Ints]:
    """An order that brings equal keys together; where each key's run begins; how long it is."""
    _, codes, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return order.astype(np.int64), starts.astype(np.int64), sizes.astype(np.int64)


def _mean_likeness(rows: Floats, edges: Ints, sizes: Ints) -> npt.NDArray[np.float64]:
    """Mean product of the pairs of each run: (|Σz|² - Σ|z|²) / (m(m - 1))."""
    sums = np.add.reduceat(rows, edges, axis=0)
    own = np.add.reduceat((rows * rows).sum(axis=1), edges)
    total = (sums * sums).sum(axis=1, dtype=np.float64) - own
    mean: npt.NDArray[np.float64] = total / (sizes * (sizes - 1))
    return mean


def _strangers_inside(sums: npt.NDArray[np.float64], sizes: Ints) -> float:
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
    """Whether rows of two groups with one key are more alike than those with two.

    `None` if the groups share fewer than five keys.
    """
    shared = sorted(set(first.keys.tolist()) & set(second.keys.tolist()))
    if len(shared) < _FEWEST_IDS:
        return None
    one, films_of_one = _mean_rows(first, shared)
    other, films_of_other = _mean_rows(second, shared)
    products = one @ other.T
    same = np.diagonal(products).astype(np.float64)
    count = len(shared)
    strangers = float((products.sum(dtype=np.float64) - same.sum()) / (count * (count - 1)))
    ranks = np.arange(count)
    dealt = np.array(
        [products[rng.permutation(count), ranks].mean() for _ in range(_PERMUTATIONS)], np.float64
    )
    pairs = int((films_of_one * films_of_other).sum())
    return _likeness(kind, where, pairs, same, strangers, dealt, rng)


def _mean_rows(group: _Group, keys: Sequence[str]) -> tuple[Floats, Ints]:
    """The mean row of each key, and its number of films."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(group.keys.tolist()):
        places[key].append(place)
    rows: Floats = np.stack([group.rows[places[key]].mean(axis=0) for key in keys])
    return rows, np.array([len(places[key]) for key in keys], np.int64)


def _likeness(
    kind: Literal["patient", "across", "number"],
    where: str,
    pairs: int,
    same: npt.NDArray[np.float64],
    strangers: float,
    dealt: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> PatientSimilarity:
    observed = float(same.mean())
    means = same[rng.integers(0, len(same), (_RESAMPLES, len(same)))].mean(axis=1)
    low, high = np.quantile(means - strangers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p_value = (1 + int((dealt >= observed).sum())) / (1 + len(dealt))
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
