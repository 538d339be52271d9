"""Whether a model serves one group of patients worse than another.

Comes in: labels (int, (n,)), probabilities (float64, (n,)), patients, a threshold, and columns of
texts, one per image. Goes out: frozen `GroupColumn`s. Does not know what the columns mean, nor of
models or files.

Sensitivity and specificity have Wilson's interval at the effective number of images (`shares`),
AUC DeLong's; a gap is a group minus all other images, with the interval that follows from the two
(`shares.difference`). None of them collapses where a small group is answered without error.
Rule: fewer than `FEWEST` patients of a class are too few to tell. Gaps are not corrected for how
many are looked at: of twenty one will stand out by chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals import delong_interval
from pneumoscope.evaluation.ranked import FloatArray, IntArray, checked_scores
from pneumoscope.evaluation.shares import (
    Patients,
    clustered_interval,
    difference,
)
from pneumoscope.records import Estimate

FEWEST = 30
"""Patients of a class: with fewer, even a flawless group's lower limit is below 0.89."""

MOST_GROUPS = 12
BANDS = 4
RATES = ("sensitivity", "specificity", "auc")


@dataclass(frozen=True, slots=True)
class Group:
    """One group of images.

    Attributes:
        name: the column's value.
        images: how many there are.
        patients: how many they are of.
        positives: PNEUMONIA images among them.
        sensitivity: `None` where the group has no PNEUMONIA image; and so on.
        specificity: of its NORMAL images.
        auc: within the group.
        gaps: this group minus all other images of the column, per rate.
        too_few: the rates that rest on too few patients to tell.
    """

    name: str
    images: int
    patients: int
    positives: int
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    gaps: Mapping[str, Estimate]
    too_few: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupColumn:
    """A column with its groups, largest first.

    Attributes:
        name: of the column.
        groups: with an answer; images without a value stand in none.
        without: images that have no value.
        note: what was done to the values, `""` if nothing.
    """

    name: str
    groups: tuple[Group, ...]
    without: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> GroupColumn:
        """What `to_dict` wrote."""
        groups = tuple(
            Group(
                str(group["name"]),
                int(group["images"]),
                int(group["patients"]),
                int(group["positives"]),
                Estimate(**group["sensitivity"]),
                Estimate(**group["specificity"]),
                Estimate(**group["auc"]),
                gaps={rate: Estimate(**gap) for rate, gap in group["gaps"].items()},
                too_few=tuple(group["too_few"]),
            )
            for group in document["groups"]
        )
        return cls(str(document["name"]), groups, int(document["without"]), str(document["note"]))


def by_group(
    labels: Any,
    probabilities: Any,
    patients: Patients,
    threshold: float,
    columns: Mapping[str, Sequence[str]],
    level: float,
) -> tuple[GroupColumn, ...]:
    """Rates per group of every column that makes groups.

    A column of numbers with more than `MOST_GROUPS` values is cut into quarters of the images. One
    of texts with more, or with fewer than two, makes no groups and is left out.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), ids.
        threshold: PNEUMONIA is the answer from here up.
        columns: per name the values, (n,) texts; `""` is none.
        level: of the intervals.

    Raises:
        DataError: a column has another length; labels or probabilities are wrong.
    """
    truth, scores = checked_scores(labels, probabilities)
    ids = np.asarray(patients)
    found = []
    for name, texts in columns.items():
        values = np.asarray(texts, dtype=np.str_)
        if values.shape != truth.shape:
            raise DataError(
                f"column {name!r}: found shape {values.shape}, wanted {truth.shape}, one per image."
            )
        values, note = _grouped(np.char.strip(values))
        counted = Counter(str(value) for value in values if value)
        if not 2 <= len(counted) <= MOST_GROUPS:
            continue
        order = sorted(counted, key=lambda value: (-counted[value], value))
        groups = tuple(
            _group(value, values, truth, scores, ids, threshold, level) for value in order
        )
        found.append(GroupColumn(name, groups, int(np.count_nonzero(values == "")), note))
    return tuple(found)


def _grouped(values: NDArray[np.str_]) -> tuple[NDArray[np.str_], str]:
    """The values themselves, or the quarter that each number of too many lies in."""
    there = values[values != ""]
    if np.unique(there).size <= MOST_GROUPS:
        return values, ""
    try:
        numbers = there.astype(np.float64)
    except ValueError:
        return values, ""
    if not np.isfinite(numbers).all():
        return values, ""
    bounds = np.unique(np.quantile(numbers, np.linspace(0, 1, BANDS + 1)[1:-1]))
    places = np.searchsorted(bounds, numbers, side="left")
    ends = ["", *(f"{bound:g}" for bound in bounds), ""]
    names = [
        f"up to {ends[k + 1]}" if not ends[k] else f"{ends[k]} to {ends[k + 1]}"
        for k in range(bounds.size)
    ]
    names.append(f"above {ends[-2]}")
    banded = values.astype(object)
    banded[values != ""] = [names[place] for place in places]
    return banded.astype(np.str_), "cut into quarters of the images"


def _group(
    name: str,
    values: NDArray[np.str_],
    truth: IntArray,
    scores: FloatArray,
    ids: NDArray[Any],
    threshold: float,
    level: float,
) -> Group:
    inside = values == name
    rest = (values != "") & ~inside
    mine = _rates(inside, truth, scores, ids, threshold, level)
    theirs = _rates(rest, truth, scores, ids, threshold, level)
    fewest = [np.unique(ids[inside & (truth == label)]).size for label in (0, 1)]
    needed = {"sensitivity": fewest[1], "specificity": fewest[0], "auc": min(fewest)}
    return Group(
        name=name,
        images=int(inside.sum()),
        patients=int(np.unique(ids[inside]).size),
        positives=int(truth[inside].sum()),
        sensitivity=mine["sensitivity"],
        specificity=mine["specificity"],
        auc=mine["auc"],
        gaps={rate: _clipped(difference(mine[rate], theirs[rate])) for rate in RATES},
        too_few=tuple(
            rate for rate in RATES if mine[rate].value is not None and needed[rate] < FEWEST
        ),
    )


def _rates(
    inside: NDArray[np.bool_],
    truth: IntArray,
    scores: FloatArray,
    ids: NDArray[Any],
    threshold: float,
    level: float,
) -> dict[str, Estimate]:
    ill, well = inside & (truth == 1), inside & (truth == 0)
    return {
        "sensitivity": clustered_interval(scores[ill] >= threshold, ids[ill], level),
        "specificity": clustered_interval(scores[well] < threshold, ids[well], level),
        "auc": delong_interval(truth[inside], scores[inside], level, ids[inside]),
    }


def _clipped(gap: Estimate) -> Estimate:
    """Rounding must not show -0.0, or a gap of nothing as one."""
    if gap.value is None or not math.isclose(gap.value, 0.0, abs_tol=1e-12):
        return gap
    return Estimate(0.0, gap.low, gap.high)
