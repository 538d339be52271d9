"""Compare the performance of a model between groups of patients.

Sensitivity and specificity have Wilson's interval at the effective number of images
(`proportions.clustered_interval`), the AUC has DeLong's. A gap is the value of a group minus that
of all other images, with an interval derived from the two (`proportions.difference`). None of these
intervals collapses if a small group has no errors. Groups with fewer than `FEWEST` patients of a
class are flagged as too small. Gaps are not corrected for multiple comparisons: about one in twenty
is significant by chance.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import DataError
from pneumoscope.evaluation.intervals import delong_interval
from pneumoscope.evaluation.proportions import Patients, clustered_interval, difference
from pneumoscope.evaluation.ranked_metrics import checked_scores
from pneumoscope.records import Estimate

FEWEST = 30
"""Patients of a class; with fewer, the lower limit of a rate is below 0.89 even without errors."""

MOST_GROUPS = 12
BANDS = 4
_WORDS = re.compile(r"[A-Za-z][a-z]*|[A-Z]+(?![a-z])")
_CODE = re.compile(
    r"sites?|hospitals?|clinics?|cent(er|re)s?|institutions?|institutes?|departments?|wards?|"
    r"rooms?|stations?|scanners?|devices?|machines?|detectors?|manufacturers?|vendors?|models?|"
    r"serials?|accessions?|study|studies|series|exams?|visits?|images?|patients?|subjects?|ids?|"
    r"uids?|mrn|codes?|no|nr|number|num|key|index|idx|zip|postcode|plz|batch|cohort|fold|reader|"
    r"radiologist|operator|technician|protocol|source|dataset|country|region|group|cluster|label"
)
_QUANTITY = re.compile(
    r"ages?|years?|months?|days?|weeks?|weight|height|bmi|kg|cm|mm|kvp|mas|dose|exposure|"
    r"temperature|saturation|spo|crp|leukocytes|wbc|rate|pressure|score|spacing|width|rows|columns"
)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_MOSTLY = 0.5

RATES = ("sensitivity", "specificity", "auc")


@dataclass(frozen=True, slots=True)
class Group:
    """Performance on one group of images; a rate is `None` if it is undefined.

    Attributes:
        name: the value of the column.
        images: number of images.
        patients: number of patients.
        positives: number of PNEUMONIA images.
        sensitivity: on the group's PNEUMONIA images.
        specificity: on the group's NORMAL images.
        auc: within the group.
        gaps: this group minus all other images of the column, per rate.
        too_few: the rates that rest on too few patients.
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
    """A column with its groups, ordered by value or by size (`by_group`).

    Attributes:
        name: of the column.
        groups: the groups; images without a value are in none. Empty if there is one value only, or
            too many.
        without: number of images without a value.
        note: how the values were grouped, or why not; `""` if they were used unchanged.
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
        """Read the document that `to_dict` wrote."""
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
    """Rates per group, for every column with at least one value.

    A column of quantities (age, weight) with more than `MOST_GROUPS` values is divided into
    quarters of the images. A column of texts or codes (site, accession) with more values has no
    groups, nor has a column with one value; these come last, with a note. Groups are in the order
    of their values if these contain numbers (9 before 10, `p2` before `p10`), otherwise the largest
    comes first.

    Args:
        labels: int, (n,), 0 or 1.
        probabilities: float64, (n,), in [0, 1].
        patients: (n,), patient ids.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        columns: values by column name, str, (n,); `""` is a missing value.
        level: confidence level of the intervals.

    Raises:
        DataError: a column has a different length; labels or probabilities are out of range.
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
        values, note, order = _grouped(name, np.char.strip(values))
        if not order and not note:
            continue
        groups = tuple(
            _group(value, values, truth, scores, ids, threshold, level) for value in order
        )
        without = int(np.count_nonzero(values == "")) if groups else 0
        found.append(GroupColumn(name, groups, without, note))
    return tuple(sorted(found, key=lambda column: not column.groups))


def _grouped(name: str, values: NDArray[np.str_]) -> tuple[NDArray[np.str_], str, tuple[str, ...]]:
    """The group of each image, a note on the grouping, and the groups in order."""
    present = values[values != ""]
    counted = Counter(str(value) for value in present)
    in_order = any(_NUMBER.search(value) for value in counted)
    distinct = sorted(counted, key=_natural if in_order else lambda value: (-counted[value], value))
    if len(distinct) == 1:
        return values, f"only one value, {distinct[0]}", ()
    if len(distinct) <= MOST_GROUPS:
        return values, "", tuple(distinct)
    numbers = _quantities(name, present, len(distinct))
    if numbers is None:
        note = f"{len(distinct):,} different values, too many to compare (limit {MOST_GROUPS})"
        return values, note, ()
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
    found = tuple(names[k] for k in sorted(set(places.tolist())))
    return banded.astype(np.str_), "divided into quarters of the images", found


def _quantities(name: str, texts: NDArray[np.str_], distinct: int) -> Float64Array | None:
    """The values as float64, (n,); `None` if they are texts, or codes written as numbers.

    A column is treated as codes if its name indicates it (`site`, `accession_no`), if it has
    integers with leading zeros or more than six digits, or if it has integers of three or more
    digits of which most occur only once.
    """
    try:
        numbers = texts.astype(np.float64)
    except ValueError:
        return None
    if not np.isfinite(numbers).all():
        return None
    words = _WORDS.findall(name)
    if any(_CODE.fullmatch(word.lower()) for word in words):
        return None
    if any(_QUANTITY.fullmatch(word.lower()) for word in words):
        return numbers
    whole = bool((numbers == np.floor(numbers)).all())
    zeros = any(len(text) > 1 and text[0] == "0" and text.isdigit() for text in texts.tolist())
    largest = float(np.abs(numbers).max())
    once = distinct > _MOSTLY * texts.size and largest >= 100
    return None if whole and (zeros or largest >= 1e6 or once) else numbers


def _natural(text: str) -> tuple[Any, ...]:
    """A natural sort key: numbers before texts; numbers within texts are compared by value.

    `under 1` sorts before `1`, and `65 or older` sorts by its number.
    """
    try:
        return (0, float(text), "")
    except ValueError:
        pass
    number = _NUMBER.search(text)
    below = text.lower().startswith(("under", "below", "up to", "<"))
    if number and (below or text[0].isdigit() or text[0] in "<>="):
        return (0, float(number[0]) - (0.5 if below else 0.0), text)
    parts = re.split(r"([0-9]+)", text.lower())
    return (1, 0.0, [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts])


def _group(
    name: str,
    values: NDArray[np.str_],
    truth: Int64Array,
    scores: Float64Array,
    ids: NDArray[Any],
    threshold: float,
    level: float,
) -> Group:
    inside = values == name
    rest = (values != "") & ~inside
    own = _rates(inside, truth, scores, ids, threshold, level)
    others = _rates(rest, truth, scores, ids, threshold, level)
    fewest = [np.unique(ids[inside & (truth == label)]).size for label in (0, 1)]
    needed = {"sensitivity": fewest[1], "specificity": fewest[0], "auc": min(fewest)}
    return Group(
        name=name,
        images=int(inside.sum()),
        patients=int(np.unique(ids[inside]).size),
        positives=int(truth[inside].sum()),
        sensitivity=own["sensitivity"],
        specificity=own["specificity"],
        auc=own["auc"],
        gaps={rate: _zeroed(difference(own[rate], others[rate])) for rate in RATES},
        too_few=tuple(
            rate for rate in RATES if own[rate].value is not None and needed[rate] < FEWEST
        ),
    )


def _rates(
    inside: NDArray[np.bool_],
    truth: Int64Array,
    scores: Float64Array,
    ids: NDArray[Any],
    threshold: float,
    level: float,
) -> dict[str, Estimate]:
    positive, negative = inside & (truth == 1), inside & (truth == 0)
    return {
        "sensitivity": clustered_interval(scores[positive] >= threshold, ids[positive], level),
        "specificity": clustered_interval(scores[negative] < threshold, ids[negative], level),
        "auc": delong_interval(truth[inside], scores[inside], level, ids[inside]),
    }


def _zeroed(gap: Estimate) -> Estimate:
    """Set a gap that differs from 0 only by rounding to 0."""
    if gap.value is None or not math.isclose(gap.value, 0.0, abs_tol=1e-12):
        return gap
    return Estimate(0.0, gap.low, gap.high)
