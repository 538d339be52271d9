"""Find duplicate images, and measure how size and intensity differ between splits and classes.

`near_pairs` finds near duplicates by perceptual hashes and thumbnails; `connected_groups` joins
pairs to groups. `describe` and `separations` take a table of numbers, one row per image, NaN for
unreadable images; they return quantiles, histograms and areas under the ROC curve, as records of
`audit_record`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import Distribution, Edges, Quantity, Separation
from pneumoscope.records import CLASS_NAMES

_ROWS_PER_BLOCK = 256
_CANDIDATES_PER_BLOCK = 4096
_CANDIDATES_PER_PAIR = 50

QUANTITIES: tuple[Quantity, ...] = ("width", "height", "aspect", "file_bytes", "mean", "deviation")
"""The columns of the table, in this order."""

QUANTILE_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BINS = 30
_MIN_TO_COMPARE = 20
"""With fewer images in a group, areas far from 0.5 occur by chance."""


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of the graph on `range(count)` with the edges `pairs`, by union-find.

    Returns:
        Each component's members in ascending order; components by their first member. A member
        without an edge is a component by itself.
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
        first: index of the first image, below `second`.
        second: index of the second image.
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
    """Find pairs with similar hashes whose thumbnails confirm the match.

    Works in blocks of rows, so memory stays at tens of megabytes for 20,000 images.

    Args:
        hashes: (n,) uint64, one 64-bit perceptual hash per image.
        thumbnails: (n, pixels) uint8.
        max_distance: maximum number of differing bits, 0 to 64.
        min_correlation: minimum Pearson's r of the thumbnails, in [-1, 1].
        max_pairs: the search stops here, or at 50 times as many candidates by hash: a data set of
            similar images has n² of them.

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
    """Pearson's r of matching rows, (n,) float64; 0 for thumbnails of a single grey."""
    a = first.astype(np.float32)
    b = second.astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    r: npt.NDArray[np.float64] = (a * b).sum(axis=1).astype(np.float64) / np.maximum(scale, 1e-6)
    return r


@dataclass(frozen=True, slots=True)
class Spread:
    """The bin edges of every quantity, and the distributions counted in these bins."""

    edges: tuple[Edges, ...]
    distributions: tuple[Distribution, ...]


def describe(numbers: npt.NDArray[np.float64], cells: Sequence[tuple[str, str]]) -> Spread:
    """Compute quantiles and histogram counts per quantity, split and class.

    Args:
        numbers: (n, len(QUANTITIES)) float64; a row of NaN for an unreadable image.
        cells: n pairs (split, class).
    """
    rows_of = _rows_of_cells(numbers, cells)
    edges: list[Edges] = []
    distributions: list[Distribution] = []
    for column, quantity in enumerate(QUANTITIES):
        values = numbers[:, column]
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        borders = np.histogram_bin_edges(values, bins=_BINS)
        edges.append(Edges(quantity, tuple(borders.tolist())))
        for (split, label), rows in rows_of.items():
            own = numbers[rows, column]
            distributions.append(
                Distribution(
                    quantity=quantity,
                    split=split,
                    label=label,
                    n=len(own),
                    mean=float(own.mean()),
                    quantiles=tuple(np.quantile(own, QUANTILE_LEVELS).tolist()),
                    counts=tuple(np.histogram(own, bins=borders)[0].tolist()),
                )
            )
    return Spread(tuple(edges), tuple(distributions))


def separations(
    numbers: npt.NDArray[np.float64], cells: Sequence[tuple[str, str]]
) -> tuple[Separation, ...]:
    """How well each quantity alone separates the classes of a split, and the splits of a class.

    A high area between classes is a shortcut that a network may use instead of the lungs. A high
    area between splits means that they differ by more than chance. Groups below 20 images are left
    out.

    Args:
        numbers: (n, len(QUANTITIES)) float64; a row of NaN for an unreadable image.
        cells: n pairs (split, class).
    """
    rows_of = {
        cell: rows
        for cell, rows in _rows_of_cells(numbers, cells).items()
        if len(rows) >= _MIN_TO_COMPARE
    }
    found = []
    for one, other in itertools.combinations(rows_of, 2):
        between: Literal["classes", "splits"]
        if one[0] == other[0]:
            between = "classes"
        elif one[1] == other[1]:
            between = "splits"
        else:
            continue
        for column, quantity in enumerate(QUANTITIES):
            area = roc_area(numbers[rows_of[one], column], numbers[rows_of[other], column])
            found.append(
                Separation(
                    quantity,
                    f"{one[1]} in {one[0]}",
                    f"{other[1]} in {other[0]}",
                    between,
                    round(max(area, 1.0 - area), 4),
                )
            )
    return tuple(found)


def roc_area(negative: npt.NDArray[np.float64], positive: npt.NDArray[np.float64]) -> float:
    """The probability that a value of `positive` exceeds one of `negative`; ties count half.

    The Mann-Whitney statistic; Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.

    Args:
        negative: (n,) float64, n ≥ 1, finite.
        positive: (m,) float64, m ≥ 1, finite.
    """
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    up_to = np.searchsorted(ordered, positive, side="right")
    return float((below + up_to).mean() / (2 * len(negative)))


def _rows_of_cells(
    numbers: npt.NDArray[np.float64], cells: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[int]]:
    """The readable rows of each cell; splits in order of occurrence, NORMAL before PNEUMONIA."""
    readable: npt.NDArray[np.bool_] = np.all(np.isfinite(numbers), axis=1)
    splits = list(dict.fromkeys(split for split, _ in cells))
    rows: dict[tuple[str, str], list[int]] = {
        cell: [] for cell in itertools.product(splits, CLASS_NAMES)
    }
    for place, cell in enumerate(cells):
        if readable[place]:
            rows[cell].append(place)
    return {cell: places for cell, places in rows.items() if places}
