"""A data set for notebooks: its images with label, patient and split, as records or as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pneumoscope.data.index import index
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import Dataset, Split


def load_dataset(
    path: Path | str,
    split: Split | Literal["all"] = "all",
    *,
    hash_files: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """List the labelled images of a data set; no pixel is read.

    Args:
        path: a folder of `train/`, `val/`, `test/`; a folder of `NORMAL/` and `PNEUMONIA/`; or a
            CSV manifest with the columns `path,label`.
        split: only the images of this split.
        hash_files: compute each file's SHA-256 too, which `split` and `audit` use.
        progress: receives the number of files hashed.

    Returns:
        The data set. `len` is the number of images; iterating gives an `ImageRecord` for each;
        `to_frame()` gives a table.

    Raises:
        DataError: there is no such data set, or it holds no image.
        SplitLeakError: a patient is in two splits.

    Example:
        >>> dataset = load_dataset(xrays)
        >>> len(dataset), dataset.warnings
        (40, ())
        >>> sorted({record.split for record in dataset})
        ['test', 'train', 'val']
        >>> dataset.to_frame().columns
        ['path', 'label', 'patient', 'split', 'subtype']
    """
    return index(path, hash_files, progress).subset(split)
