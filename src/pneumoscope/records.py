"""What the stages hand to each other: small frozen records. Importing them loads no NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import Reason, Status
from pneumoscope.frames import make_frame

CLASS_NAMES: tuple[str, str] = ("NORMAL", "PNEUMONIA")
"""Index 1, PNEUMONIA, is the positive class everywhere."""

UNCERTAIN = "uncertain"
"""The prediction where the model has a probability but was told to withhold an answer."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One labelled image of a data set.

    Attributes:
        path: the file, absolute.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        patient: identifies the child or adult; images of one patient never part.
        split: the split that the data set itself gives, `None` where it gives none.
        subtype: `bacteria`, `virus` or `""`; splits are stratified by it.
        sha256: hex digest of the file's bytes, `""` until hashed.
        extra: further manifest columns, for subgroups.

    Example:
        >>> record = load_dataset(xrays).records[0]
        >>> record.label, record.split, record.path.suffix
        (0, 'train', '.png')
    """

    path: Path
    label: int
    patient: str
    split: Split | None = None
    subtype: str = ""
    sha256: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """An indexed data set: its labelled images in a stable order.

    `len` is the number of images; iterating gives their records.

    Attributes:
        root: the folder that it lies in.
        records: one for every image.
        warnings: what was odd about it, one sentence each.

    Example:
        >>> dataset = load_dataset(xrays)
        >>> len(dataset) == len(list(dataset)) == len(dataset.to_frame())
        True
        >>> dataset.subset("test").records[0].label
        0
    """

    root: Path
    records: tuple[ImageRecord, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.records)

    def to_frame(self) -> Any:
        """A DataFrame with a row for every image: polars, else pandas.

        Its columns are those of a manifest, `path,label,patient,split`, then `subtype` and
        whatever further columns the manifest had.

        Raises:
            MissingError: neither library is installed.
        """
        columns: dict[str, list[str | None]] = {
            "path": [str(record.path) for record in self.records],
            "label": [CLASS_NAMES[record.label] for record in self.records],
            "patient": [record.patient for record in self.records],
            "split": [record.split for record in self.records],
            "subtype": [record.subtype for record in self.records],
        }
        for name in dict.fromkeys(name for record in self.records for name in record.extra):
            columns.setdefault(name, [record.extra.get(name) for record in self.records])
        return make_frame(columns)

    def subset(self, split: Split | Literal["all"]) -> Dataset:
        """The records of one split (or all), in the same order."""
        if split == "all":
            return self
        return Dataset(self.root, tuple(r for r in self.records if r.split == split), self.warnings)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one input: a row of `predictions.csv`.

    `probability` is the calibrated probability of pneumonia in [0, 1]; `prediction` is a class
    name or `uncertain`; with `threshold` they are `None` unless `status` is `ok`. `input_score` ≥ 0
    tells how unlike the training images the input is, or how much better it would fit turned or
    inverted: above 1 it is refused. It is given for refused inputs too, `None` where it was not
    measured. `detail` explains a reason in words. `warnings` are what was odd about the file, one
    sentence each, whatever the status.

    Example:
        >>> predictor.predict_file("missing.png").prediction.detail
        'no such file (...)'
    """

    path: str
    status: Status
    reason: Reason | None = None
    probability: float | None = None
    prediction: str | None = None
    threshold: float | None = None
    input_score: float | None = None
    detail: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; NaN-free: what is undefined is `None`.

    Example:
        >>> Estimate(0.9, 0.85, 0.94).low
        0.85
    """

    value: float | None
    low: float | None = None
    high: float | None = None
