"""What an audit found, as frozen records that a page can draw and JSON can hold.

Comes in: numbers and names from `audit`. Goes out: `Audit`, and `Audit.to_dict()` free of NaN.
Knows nothing of how the numbers were measured, and imports no NumPy.

Splits are named `train`, `val`, `test`, or `none` where the data set gives none; classes by their
names; paths are relative to `Audit.root` where they lie below it.

What an audit found by statistics over all films, as frozen records for a page and JSON.

Comes in: numbers from `likeness`, `telling` and `doubtful`. Goes out: records free of NaN, parts of
`Audit`. Knows nothing of how the numbers were measured, and imports no NumPy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Property = Literal[
    "width", "height", "aspect", "file_bytes", "mean", "deviation", "border", "centre"
]
"""The quantities of `audit_record`, and the brightness of a film's border and of its centre."""

LEVEL = 0.95
"""Confidence level of every interval here."""


@dataclass(frozen=True, slots=True)
class PatientSimilarity:
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
    def exceeds_neighbours(self) -> bool:
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
class LabelCandidate:
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
    doubts: tuple[LabelCandidate, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All three; empty where the data are too few to tell."""

    likeness: tuple[PatientSimilarity, ...] = ()
    split_tests: tuple[SplitTest, ...] = ()
    labels: LabelReview | None = None


Severity = Literal["problem", "warning", "note"]
"""`problem`: results would be wrong; `warning`: look into it; `note`: good to know."""

Quantity = Literal["width", "height", "aspect", "file_bytes", "mean", "deviation"]


@dataclass(frozen=True, slots=True)
class Group:
    """One cell of the table of splits by classes.

    Attributes:
        split: name of the split.
        label: name of the class.
        images: how many, the unreadable ones included.
        patients: how many different ones.
        unreadable: images of these that have no pixels.
        subtypes: (subtype, images) by name, where file names tell one.
        formats: (format, images) of the readable ones, by name: a class with a format of its own
            can be told by it.
    """

    split: str
    label: str
    images: int
    patients: int
    unreadable: int
    subtypes: tuple[tuple[str, int], ...]
    formats: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image without pixels: `reason` is a code of `errors.Reason`, `detail` is in words."""

    path: str
    split: str
    label: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a group of duplicates."""

    path: str
    split: str
    label: str
    patient: str


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images that show the same picture.

    Attributes:
        kind: `identical` (same bytes) or `near` (same to the eye, other bytes).
        members: two or more, in the data set's order.
        distance: most differing bits (of 64) of two joined perceptual hashes; 0 if identical.
        correlation: least Pearson's r of two joined 32×32 thumbnails; 1 if identical.
        across_splits: the members are in more than one split.
        across_patients: they bear more than one patient id.
        label_conflict: they bear both classes.
    """

    kind: Literal["identical", "near"]
    members: tuple[Member, ...]
    distance: int
    correlation: float
    across_splits: bool
    across_patients: bool
    label_conflict: bool


@dataclass(frozen=True, slots=True)
class SharedPatient:
    """A patient in more than one split, with (split, images) for each."""

    patient: str
    images: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How one quantity is spread over the readable images of one split and class.

    Attributes:
        quantity: `width` and `height` in pixels; `aspect`, width over height; `file_bytes`; `mean`
            and `deviation` of intensity on [0, 1].
        split: name of the split.
        label: name of the class.
        n: readable images.
        mean: arithmetic mean.
        quantiles: at the levels `Audit.quantile_levels`.
        counts: images per bin between `Audit.edges_of(quantity)`; all images fall into a bin.
    """

    quantity: Quantity
    split: str
    label: str
    n: int
    mean: float
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Edges:
    """The common bin edges of one quantity's histograms, ascending, one more than bins."""

    quantity: Quantity
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Separation:
    """How well one quantity alone tells two groups of images apart.

    Attributes:
        quantity: as in `Distribution`.
        first: the one group, such as `NORMAL in train`.
        second: the other, such as `PNEUMONIA in train` or `NORMAL in test`.
        between: `classes` (of one split) or `splits` (of one class).
        auc: area under the ROC curve of the quantity, folded to [0.5, 1]; 0.5 is none.
    """

    quantity: Quantity
    first: str
    second: str
    between: Literal["classes", "splits"]
    auc: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on what was found; `code` is stable, for scripts."""

    severity: Severity
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that an audit found.

    Attributes:
        root: the data set's folder.
        images: how many, the unreadable ones included.
        patients: how many different ones.
        findings: what to know, problems first.
        groups: one per split and class.
        unreadable: images without pixels, in the data set's order.
        identical: groups of byte-equal files.
        near: groups of near duplicates; byte-equal copies are left out of them.
        near_search_stopped: the search for near duplicates met its limit, so `near` is incomplete.
        shared_patients: patients in more than one split.
        images_per_patient: (images, patients with that many), ascending.
        quantile_levels: the levels of every `Distribution.quantiles`.
        edges: bin edges, one entry per quantity.
        distributions: one per quantity, split and class with readable images.
        separations: one per quantity and pair of groups that was compared.
        evidence: likeness of patients, tests of splits, doubtful labels.

    Example:
        >>> found = audit(index(xrays))
        >>> found.findings[0].severity
        '...'
    """

    root: str
    images: int
    patients: int
    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]
    unreadable: tuple[Unreadable, ...]
    identical: tuple[DuplicateGroup, ...]
    near: tuple[DuplicateGroup, ...]
    near_search_stopped: bool
    shared_patients: tuple[SharedPatient, ...]
    images_per_patient: tuple[tuple[int, int], ...]
    quantile_levels: tuple[float, ...]
    edges: tuple[Edges, ...]
    distributions: tuple[Distribution, ...]
    separations: tuple[Separation, ...]
    evidence: Evidence = field(default_factory=Evidence)

    def edges_of(self, quantity: Quantity) -> tuple[float, ...]:
        """The bin edges of a quantity's histograms; empty if no image was readable."""
        return next((e.edges for e in self.edges if e.quantity == quantity), ())

    def with_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity, in order."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, lists, strings and finite numbers, for JSON."""
        return dataclasses.asdict(self)
