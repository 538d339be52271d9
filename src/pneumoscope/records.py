"""Records that the stages exchange: small frozen dataclasses. Importing them loads no NumPy."""

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
"""The prediction where the model has a probability but abstains."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One labelled image of a data set.

    Attributes:
        path: the file, absolute.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        patient: identifies the patient; all images of a patient are in the same split.
        split: split given by the data set; `None` if it gives none.
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
    """The result for one input: a row of `predictions.csv`.

    Attributes:
        path: the input.
        status: `ok`, `refused` or `error`.
        reason: code of the refusal or error; `None` if the status is `ok`.
        probability: calibrated probability of pneumonia in [0, 1]; `None` unless `ok`.
        prediction: a class name or `uncertain`; `None` unless `ok`.
        threshold: decision threshold on the probability; `None` unless `ok`.
        input_score: score of the input check, ≥ 0; above 1 the input is refused. It is the distance
            from the training images relative to its limit, or how much better the image would fit
            if rotated or inverted. Also given for refused inputs; `None` if not computed.
        detail: explanation of the reason.
        warnings: findings about the file, one sentence each, for any status.

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
    """A number with its confidence interval; undefined values are `None`, never NaN.

    Example:
        >>> Estimate(0.9, 0.85, 0.94).low
        0.85
    """

    value: float | None
    low: float | None = None
    high: float | None = None
