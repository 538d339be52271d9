"""Which images are the same picture: groups of equal things, and near-equal thumbnails.

Comes in: pairs of indices; or perceptual hashes with thumbnails. Goes out: groups; or pairs.
Knows nothing of files, labels or splits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROWS_PER_BLOCK = 256
_CANDIDATES_PER_BLOCK = 4096
_CANDIDATES_PER_PAIR = 50


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Components of the graph on `range(count)` with the edges `pairs`, by union and find.

    Returns:
        Each component's members in ascending order; components by their first member. A member
        without an edge is a component of its own.
    """
    parent = list(range(count))

    def root_of(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        low, high = sorted((root_of(first), root_of(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for item in range(count):
        groups.setdefault(root_of(item), []).append(item)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two images that look the same.

    Attributes:
        first: index of the one, below `second`.
        second: index of the other.
        distance: differing bits of the two perceptual hashes, of 64.
        correlation: Pearson's r of the two thumbnails.
    """

    first: int
    second: int
    distance: int
    correlation: float


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
    max_distance: int,
    min_correlation: float,
    max_pairs: int,
) -> tuple[list[NearPair], bool]:
    """Pairs whose hashes are close and whose thumbnails confirm it.

    Works by blocks of rows, so memory stays in the tens of megabytes for 20,000 images.

    Args:
        hashes: (n,) uint64, one 64-bit perceptual hash per image.
        thumbnails: (n, pixels) uint8.
        max_distance: most differing bits, 0 to 64.
        min_correlation: least Pearson's r of the thumbnails, in [-1, 1].
        max_pairs: the search stops here, or at 50 times as many candidates that the hashes alone
            put forward: a data set of look-alikes has n² of them.

    Returns:
        The pairs, by first and second index; and whether the search stopped early.
    """
    pairs: list[NearPair] = []
    candidates_left = max_pairs * _CANDIDATES_PER_PAIR
    for start in range(0, len(hashes), _ROWS_PER_BLOCK):
        block = hashes[start : start + _ROWS_PER_BLOCK]
        rest = hashes[start:]
        distances = np.bitwise_count(block[:, None] ^ rest[None, :])
        rows, columns = np.nonzero(distances <= max_distance)
        ahead = columns > rows
        rows, columns = rows[ahead][:candidates_left], columns[ahead][:candidates_left]
        for begin in range(0, len(rows), _CANDIDATES_PER_BLOCK):
            row, column = (part[begin : begin + _CANDIDATES_PER_BLOCK] for part in (rows, columns))
            r = _correlations(thumbnails[start + row], thumbnails[start + column])
            for place in np.flatnonzero(r >= min_correlation):
                first, second = int(row[place]), int(column[place])
                if len(pairs) == max_pairs:
                    return pairs, True
                pairs.append(
                    NearPair(
                        start + first,
                        start + second,
                        int(distances[first, second]),
                        float(r[place]),
                    )
                )
        candidates_left -= len(rows)
        if not candidates_left:
            return pairs, True
    return pairs, False


def _correlations(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """Pearson's r of matching rows, (n,) float64; 0 where a thumbnail is of one grey."""
    a = first.astype(np.float32)
    b = second.astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    r: npt.NDArray[np.float64] = (a * b).sum(axis=1).astype(np.float64) / np.maximum(scale, 1e-6)
    return r
