"""How size and intensity are spread per split and class, and how well each tells groups apart.

Comes in: a table of numbers, one row per image, NaN where an image was unreadable. Goes out:
quantiles, histograms and areas under the ROC curve, as records of `audit_record`.
Knows nothing of files or patients.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import Distribution, Edges, Quantity, Separation
from pneumoscope.records import CLASS_NAMES

QUANTITIES: tuple[Quantity, ...] = ("width", "height", "aspect", "file_bytes", "mean", "deviation")
"""The columns of the table, in this order."""

QUANTILE_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

_BINS = 30
_FEWEST_TO_COMPARE = 20
"""Below so many images in a group, chance alone gives areas far from 0.5."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The bin edges of every quantity and the distributions counted in them."""

    edges: tuple[Edges, ...]
    distributions: tuple[Distribution, ...]


def describe(numbers: npt.NDArray[np.float64], cells: Sequence[tuple[str, str]]) -> Spread:
    """Quantiles and histogram counts per quantity, split and class.

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
    """How well each quantity alone tells the classes of a split, and the splits of a class, apart.

    A high area between classes is a shortcut that a network may take in place of the lungs; one
    between splits says that they differ in more than chance. Groups of under 20 are left out.

    Args:
        numbers: (n, len(QUANTITIES)) float64; a row of NaN for an unreadable image.
        cells: n pairs (split, class).
    """
    rows_of = {
        cell: rows
        for cell, rows in _rows_of_cells(numbers, cells).items()
        if len(rows) >= _FEWEST_TO_COMPARE
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
    """The chance that a value of `positive` is above one of `negative`, ties counting half.

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
    """The readable rows of each cell; splits in the order they occur, NORMAL before PNEUMONIA."""
    readable: npt.NDArray[np.bool_] = np.all(np.isfinite(numbers), axis=1)
    splits = list(dict.fromkeys(split for split, _ in cells))
    rows: dict[tuple[str, str], list[int]] = {
        cell: [] for cell in itertools.product(splits, CLASS_NAMES)
    }
    for place, cell in enumerate(cells):
        if readable[place]:
            rows[cell].append(place)
    return {cell: places for cell, places in rows.items() if places}
