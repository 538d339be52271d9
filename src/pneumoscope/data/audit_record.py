"""The results of an audit, as frozen records for pages and JSON.

Splits are named `train`, `val`, `test`, or `none` if the data set has no splits; classes have their
names. Paths are relative to `Audit.root` if they lie below it. The records contain no NaN, and this
module does not import NumPy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Property = Literal[
    "width", "height", "aspect", "file_bytes", "mean", "deviation", "border", "centre"
]
"""The quantities of `Distribution`, and the brightness of an image's border and of its centre."""

LEVEL = 0.95
"""Confidence level of every interval here."""


@dataclass(frozen=True, slots=True)
class PatientSimilarity:
    """Whether images that share a patient id are more similar than images of different patients.

    Similarity is Pearson's r of two thumbnails minus the mean image of their class and split: about
    0 for different patients, 1 for an image and its copy.

    Attributes:
        kind: `patient`, one id inside a split; `across`, one id in two splits; `number`, one
            number in two series of ids (Kermany's `bacteria-12` and `virus-12`).
        where: the images in words, such as `PNEUMONIA in train and test`.
        patients: ids with at least two images to compare.
        pairs: pairs of images that share an id.
        same: mean similarity of such pairs; each id counts once.
        strangers: mean similarity of comparable pairs that share no id.
        low: lower end of the 95 % interval of `same - strangers` (bootstrap of ids).
        high: its upper end.
        p_value: one-sided permutation test of the hypothesis that ids are arbitrary.
        neighbours: mean similarity of different patients with consecutive ids, since images taken
            one after the other are similar too; `None` if ids have no order.
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
        """How much more similar images of one id are than images of different patients."""
        return self.same - self.strangers

    @property
    def exceeds_neighbours(self) -> bool:
        """Whether the similarity exceeds that of images taken one after the other."""
        return self.neighbours is None or self.low > self.neighbours - self.strangers


@dataclass(frozen=True, slots=True)
class Driver:
    """One property by which two splits differ.

    Attributes:
        name: name of the property.
        auc: area under the ROC curve of this property alone, folded to [0.5, 1].
        first: its median in the first split, in the units of `Distribution`.
        second: its median in the second split.
    """

    name: Property
    auc: float
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class SplitTest:
    """How well a classifier separates two splits by their images of one class.

    Attributes:
        label: name of the class.
        first: name of the first split.
        second: name of the second split.
        images: images of both splits.
        patients: patients of both splits.
        auc: cross-validated area under the ROC curve from thumbnails and properties; 0.5 if the
            splits can't be separated.
        low: lower end of its 95 % interval (bootstrap of patients, with fixed classifiers).
        high: its upper end.
        shape_auc: the same from thumbnails without their brightness and contrast.
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
    """An image whose label may be wrong.

    Attributes:
        path: as in `Member`.
        split: name of the split.
        label: name of the given label.
        patient: its patient.
        probability: probability of the given label, from classifiers that were not trained on this
            patient or from the given predictions.
        margin: probability of the other class minus that of the given label, in (0, 1]; the rank.
    """

    path: str
    split: str
    label: str
    patient: str
    probability: float
    margin: float


@dataclass(frozen=True, slots=True)
class LabelReview:
    """The images whose labels to check first, and the expected number of wrong labels.

    Attributes:
        source: `thumbnails` (cross-validated by patient) or `predictions` (of a model).
        judged: number of images that were scored.
        auc: area under the ROC curve of the scores against the labels; at a low value few errors
            can be found.
        expected: expected number of wrong labels per class name, by the calibrated confident joint;
            empty if the scores separate the classes too poorly.
        doubts: the candidates, most doubtful first.
    """

    source: Literal["thumbnails", "predictions"]
    judged: int
    auc: float
    expected: tuple[tuple[str, float], ...]
    doubts: tuple[LabelCandidate, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The three analyses; empty where the data set is too small."""

    likeness: tuple[PatientSimilarity, ...] = ()
    split_tests: tuple[SplitTest, ...] = ()
    labels: LabelReview | None = None


Severity = Literal["problem", "warning", "note"]
"""`problem`: results would be wrong; `warning`: check it; `note`: information."""

Quantity = Literal["width", "height", "aspect", "file_bytes", "mean", "deviation"]


@dataclass(frozen=True, slots=True)
class Group:
    """One cell of the table of splits by classes.

    Attributes:
        split: name of the split.
        label: name of the class.
        images: number of images, including unreadable ones.
        patients: number of different patients.
        unreadable: number of images without readable pixels.
        subtypes: (subtype, images) by name, if file names state a subtype.
        formats: (format, images) of the readable images, by name; a format that occurs in one class
            only gives the class away.
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
    """An image without readable pixels: `reason` is a code of `errors.Reason`, `detail` a text."""

    path: str
    split: str
    label: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Member:
    """One image in a group of duplicates."""

    path: str
    split: str
    label: str
    patient: str


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images that show the same picture.

    Attributes:
        kind: `identical` (same bytes) or `near` (visually the same, other bytes).
        members: two or more, in the order of the data set.
        distance: largest number of differing bits (of 64) among joined pairs; 0 if identical.
        correlation: smallest Pearson's r of 32×32 thumbnails among joined pairs; 1 if identical.
        across_splits: the members are in more than one split.
        across_patients: the members have more than one patient id.
        label_conflict: the members have both labels.
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
    """The distribution of one quantity over the readable images of one split and class.

    Attributes:
        quantity: `width` and `height` in pixels; `aspect`, width over height; `file_bytes`; `mean`
            and `deviation` (standard deviation) of intensity on [0, 1].
        split: name of the split.
        label: name of the class.
        n: readable images.
        mean: arithmetic mean.
        quantiles: at the levels `Audit.quantile_levels`.
        counts: images per bin between the `Edges` of the quantity; every image falls into a bin.
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
    """The common bin edges of one quantity's histograms, ascending; (number of bins + 1)."""

    quantity: Quantity
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Separation:
    """How well one quantity alone separates two groups of images.

    Attributes:
        quantity: as in `Distribution`.
        first: the first group, such as `NORMAL in train`.
        second: the second group, such as `PNEUMONIA in train` or `NORMAL in test`.
        between: `classes` (of one split) or `splits` (of one class).
        auc: area under the ROC curve of the quantity, folded to [0.5, 1]; 0.5 is no separation.
    """

    quantity: Quantity
    first: str
    second: str
    between: Literal["classes", "splits"]
    auc: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about the data set; `code` is stable, for scripts."""

    severity: Severity
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Audit:
    """All results of an audit.

    Attributes:
        root: the data set's folder.
        images: number of images, including unreadable ones.
        patients: number of different patients.
        findings: in words, problems first.
        groups: one per split and class.
        unreadable: images without readable pixels, in the order of the data set.
        identical: groups of byte-equal files.
        near: groups of near duplicates, without byte-equal copies.
        near_search_stopped: the search for near duplicates reached its limit; `near` is incomplete.
        shared_patients: patients in more than one split.
        images_per_patient: (images, patients with that many), ascending.
        quantile_levels: the levels of every `Distribution.quantiles`.
        edges: bin edges, one entry per quantity.
        distributions: one per quantity, split and class with readable images.
        separations: one per quantity and compared pair of groups.
        evidence: patient similarity, split shift, label-noise candidates.

    Examples:
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

    def with_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity, in order."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts, lists, strings and finite numbers, for JSON."""
        return dataclasses.asdict(self)
