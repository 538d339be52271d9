"""Records that the stages exchange: small frozen dataclasses, and their tables for notebooks.

Importing them loads no NumPy. `make_frame` turns columns into a DataFrame, and `paths_of` finds the
paths in one. Polars is among the package's dependencies. Where it was left out, pandas is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import MissingError, Reason, Status, UsageError

PATH_COLUMN = "path"

CLASS_NAMES: tuple[str, str] = ("NORMAL", "PNEUMONIA")
"""Index 1, PNEUMONIA, is the positive class everywhere."""

UNCERTAIN = "uncertain"
"""The prediction where the model has a probability but abstains."""


def make_frame(columns: Mapping[str, Sequence[Any]], numbers: Collection[str] = ()) -> Any:
    """A DataFrame of the given columns: polars if it is installed, else pandas.

    Args:
        columns: values by the name of their column, all of one length; `None` where undefined.
        numbers: columns of numbers. All others hold text, so that a column of `None` has a type.

    Raises:
        MissingError: neither library is installed.

    Examples:
        >>> make_frame({"path": ["a.png"], "probability": [0.5]}, {"probability"}).shape
        (1, 2)
    """
    polars = _installed("polars")
    if polars is not None:
        kinds = {name: polars.Float64 if name in numbers else polars.String for name in columns}
        return polars.DataFrame(dict(columns), schema=kinds)
    pandas = _installed("pandas")
    if pandas is None:
        raise MissingError(
            "to_frame() needs polars or pandas, and neither is installed. Install one: "
            "pip install polars"
        )
    frame = pandas.DataFrame(dict(columns))
    return frame.astype({name: "float64" for name in columns if name in numbers})


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame, of polars or of pandas."""
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def paths_of(frame: Any) -> list[str]:
    """The column `path` of a DataFrame.

    Raises:
        UsageError: there is no such column, or a row without a path.

    Examples:
        >>> paths_of(make_frame({"path": ["a.png", "b.png"], "label": ["NORMAL", "PNEUMONIA"]}))
        ['a.png', 'b.png']
    """
    names = [str(name) for name in frame.columns]
    if PATH_COLUMN not in names:
        raise UsageError(
            f"DataFrame: found the columns {', '.join(names)}, wanted one named {PATH_COLUMN!r}. "
            "Rename the column of image files."
        )
    found = list(frame[PATH_COLUMN])
    for number, path in enumerate(found):
        if not hasattr(path, "__fspath__") and not isinstance(path, str):
            raise UsageError(
                f"DataFrame, row {number}: found the path {path!r}, wanted the name of a file. "
                "Remove the row."
            )
    return [str(path) for path in found]


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


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

    Examples:
        >>> record = load_dataset(xrays).records[0]
        >>> record.label, record.label_name, record.split, record.path.suffix
        (0, 'NORMAL', 'train', '.png')
    """

    path: Path
    label: int
    patient: str
    split: Split | None = None
    subtype: str = ""
    sha256: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def label_name(self) -> str:
        """`NORMAL` or `PNEUMONIA`: the truth in the words of `Result.label`, the prediction."""
        return CLASS_NAMES[self.label]


@dataclass(frozen=True, slots=True)
class Dataset:
    """An indexed data set: its labelled images in a stable order.

    `len` is the number of images; iterating gives their records.

    Attributes:
        root: the folder that it lies in.
        records: one for every image.
        warnings: what was odd about it, one sentence each.

    Examples:
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

    def __repr__(self) -> str:
        patients = len({record.patient for record in self.records})
        return f"<Dataset: {len(self)} images of {patients} patients in {self.root}>"

    def to_frame(self) -> Any:
        """A DataFrame with a row for every image: polars, else pandas.

        Its columns are those of a manifest, `path,label,patient,split`, then `subtype` and
        whatever further columns the manifest had.

        Raises:
            MissingError: neither library is installed.
        """
        columns: dict[str, list[str | None]] = {
            "path": [str(record.path) for record in self.records],
            "label": [record.label_name for record in self.records],
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


def evenly_spread(records: Sequence[ImageRecord], most: int) -> list[ImageRecord]:
    """At most `most` records, evenly spread over all: sorted by class, they keep its shares."""
    step = max(len(records) / most, 1.0)
    return [records[int(k * step)] for k in range(min(len(records), most))]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one input: a row of `predictions.csv`.

    Attributes:
        path: the input.
        status: `ok`, `refused` or `error`.
        reason: code of the rejection or error; `None` if the status is `ok`.
        probability: calibrated probability of pneumonia in [0, 1]; `None` unless `ok`.
        prediction: a class name or `uncertain`; `None` unless `ok`.
        threshold: decision threshold on the probability; `None` unless `ok`.
        input_score: score of the input check, ≥ 0; above 1 the input is rejected. It is the
            distance from the training images relative to its limit, or how much better the image
            would fit if rotated or inverted. Also given for rejected inputs; `None` if not
            computed.
        detail: explanation of the reason, and the way out if there is one; empty if `ok`.
        warnings: findings about the file, one sentence each, for any status.
        sha256: hex digest of the file's bytes where reading them was refused; no column.

    Examples:
        >>> predictor.predict_file("missing.png").prediction.detail
        'no such file. Check the path'
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
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval; undefined values are `None`, never NaN.

    Examples:
        >>> Estimate(0.9, 0.85, 0.94).low
        0.85
    """

    value: float | None
    low: float | None = None
    high: float | None = None
