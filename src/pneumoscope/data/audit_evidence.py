"""What an audit found by statistics over all films, as frozen records for a page and JSON.

Comes in: numbers from `likeness`, `telling` and `doubtful`. Goes out: records free of NaN, parts of
`Audit`. Knows nothing of how the numbers were measured, and imports no NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Property = Literal[
    "width", "height", "aspect", "file_bytes", "mean", "deviation", "border", "centre"
]
"""The quantities of `audit_record`, and the brightness of a film's border and of its centre."""

LEVEL = 0.95
"""Confidence level of every interval here."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """Whether films that share an id look more alike than films of strangers.

    Likeness is Pearson's r of two thumbnails from which the mean film of their class and split
    was taken: strangers have about 0, a film and its copy 1.

    Attributes:
        kind: `patient`, one id inside a split; `across`, one id in two splits; `number`, one
            number in two series of ids (Kermany's `bacteria-12` and `virus-12`).
        where: the films in words, such as `PNEUMONIA in train and test`.
        patients: ids with at least two films to compare.
        pairs: pairs of films that share an id.
        same: mean likeness of such pairs, each id counting once.
        strangers: mean likeness of pairs that share none, of the same kind.
        low: lower end of the 95 % interval of `same - strangers` (bootstrap of ids).
        high: its upper end.
        p_value: of the permutation test that ids say nothing, one-sided.
        neighbours: mean likeness of strangers whose ids follow each other: films made one after
            the other are alike too. `None` where that has no meaning.
    """

    kind: Literal["patient", "across", "number"]
    where: str
    patients: int
    pairs: int
    same: float
    strangers: float
    low: float
    high: float
    p_value: float
    neighbours: float | None = None

    @property
    def difference(self) -> float:
        """How much more alike films of one id are than strangers."""
        return self.same - self.strangers

    @property
    def beats_neighbours(self) -> bool:
        """Whether it is more than what films made one after the other have in common."""
        return self.neighbours is None or self.low > self.neighbours - self.strangers


@dataclass(frozen=True, slots=True)
class Driver:
    """One property by which two splits differ.

    Attributes:
        name: of the property.
        auc: area under the ROC curve of it alone, folded to [0.5, 1].
        first: its median in the one split, in the units of `Distribution`.
        second: its median in the other.
    """

    name: Property
    auc: float
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class SplitTest:
    """How well a classifier tells from which split a film of one class comes.

    Attributes:
        label: name of the class.
        first: name of the one split.
        second: name of the other.
        images: films of both.
        patients: patients of both.
        auc: cross-validated area under the ROC curve, thumbnails and properties together; 0.5:
            the splits can't be told apart.
        low: lower end of its 95 % interval (bootstrap of patients, the classifiers as they are).
        high: its upper end.
        shape_auc: the same from thumbnails of which brightness and contrast were taken.
        property_auc: the same from the properties alone.
        drivers: the properties that differ most, strongest first.
    """

    label: str
    first: str
    second: str
    images: int
    patients: int
    auc: float
    low: float
    high: float
    shape_auc: float
    property_auc: float
    drivers: tuple[Driver, ...]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A film whose label may be wrong.

    Attributes:
        path: as in `Member`.
        split: name of the split.
        label: the label it bears.
        patient: its patient.
        probability: of the label it bears, by classifiers that never saw its patient (or by the
            predictions that were given).
        margin: probability of the other class less that of its own, in (0, 1]: the rank.
    """

    path: str
    split: str
    label: str
    patient: str
    probability: float
    margin: float


@dataclass(frozen=True, slots=True)
class LabelReview:
    """The films whose labels to look at first, and how many may be wrong on the whole.

    Attributes:
        source: `thumbnails` (cross-validated by patient) or `predictions` (a model's answers).
        judged: films that were judged.
        auc: of the judging probabilities against the labels: a poor judge finds little.
        expected: labels that may be wrong, per class name, by the calibrated confident joint; empty
            where the judge is too poor.
        doubts: the candidates, most doubtful first.
    """

    source: Literal["thumbnails", "predictions"]
    judged: int
    auc: float
    expected: tuple[tuple[str, float], ...]
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All three; empty where the data are too few to tell."""

    likeness: tuple[Likeness, ...] = ()
    split_tests: tuple[SplitTest, ...] = ()
    labels: LabelReview | None = None
