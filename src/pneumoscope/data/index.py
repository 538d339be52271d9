"""List the images of a data set with their labels, patients and splits.

`index` reads `DATA`, which is a folder of splits, a folder of classes, or a CSV manifest, and
returns a `Dataset` in a stable order with warnings. No pixels are read: a file that is not an image
stays in the table, and the image reader refuses it later.

`fingerprint` identifies the data of a run, a bundle or an evaluation. It does not depend on paths,
so a copy of a data set has the same fingerprint. `sample_patients` draws whole patients from a
large data set, in the proportion of the classes. `load_dataset` is for notebooks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pneumoscope import storage
from pneumoscope.data import manifest
from pneumoscope.data.patients import assign_patients
from pneumoscope.data.splitting import check_no_leak
from pneumoscope.data.tree import CLASS_WORDS, SHAPES, path_exists, records_of_folder
from pneumoscope.errors import DataError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, SPLITS, Dataset, ImageRecord, Split

_HASHING_THREADS = 2


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Images and patients of one split (`split` is `None` if the data set has no splits).

    Examples:
        >>> counts = class_counts(load_dataset(xrays, "train"))[0]
        >>> counts.images == counts.normal + counts.pneumonia
        True
    """

    split: Split | None
    normal: int
    pneumonia: int
    patients: int

    @property
    def images(self) -> int:
        """Images of both classes."""
        return self.normal + self.pneumonia


def index(
    data: Path | str,
    hash_files: bool = True,
    progress: Progress = SILENT,
    *,
    refuse_leaks: bool = True,
    splits: bool = True,
    classes: Mapping[str, int] = CLASS_WORDS,
) -> Dataset:
    """List the images of `data` with label, patient, split and content hash.

    Args:
        data: a folder of splits, a folder of classes or a CSV manifest. Folder names match in any
            letter case, class folders are searched recursively, and links are followed.
        hash_files: also compute the SHA-256 of each file; else `sha256` is `""`.
        progress: reports the hashing.
        refuse_leaks: raise if a patient is in two splits. `False` for commands that search for such
            patients or make a new split.
        splits: `False` ignores the splits of `data`: every record has the split `None`.
        classes: names of classes, in lower case, and their labels (`tree.class_words`).

    Returns:
        The data set. Records are sorted by split, class and path; those of a manifest keep its
        order. Paths are absolute.

    Raises:
        DataError: `data` is missing, unreadable, has none of the three forms, or contains no image;
            or one file has both labels.
        ManifestError: the CSV is invalid.
        SplitLeakError: a patient is in two splits.

    Examples:
        >>> dataset = index(xrays)
        >>> len(dataset.records[0].sha256)
        64
    """
    root = Path(storage.full_path(data))
    notes: list[str] = []
    if path_exists(root, "dir"):
        found = tuple(records_of_folder(root, notes, classes))
    elif path_exists(root, "file"):
        found = manifest.read_manifest(root, classes)
        root = root.parent
    else:
        raise DataError(f"{data}: there is no such file or folder. Wanted {SHAPES}.")
    if not splits:
        found = tuple(dataclasses.replace(record, split=None) for record in found)
    same = _refuse_two_labels(found)
    if same and refuse_leaks:
        raise DataError(same)
    notes += [same] if same else []
    records, warnings = assign_patients(found, root)
    notes += warnings
    notes += _absent_classes(records)
    if refuse_leaks:
        check_no_leak(records, str(data))
    if hash_files:
        records = _hashed(records, progress, notes)
    return Dataset(root, records, tuple(notes))


def class_counts(dataset: Dataset) -> tuple[ClassCounts, ...]:
    """Images per class and patients, one entry per split that occurs (train, val, test, none).

    Examples:
        >>> [counts.split for counts in class_counts(load_dataset(xrays))]
        ['train', 'val', 'test']
    """
    images = Counter((record.split, record.label) for record in dataset.records)
    patients = Counter(split for split, _ in {(r.split, r.patient) for r in dataset.records})
    return tuple(
        ClassCounts(split, images[split, 0], images[split, 1], patients[split])
        for split in (*SPLITS, None)
        if patients[split]
    )


def require_both_classes(records: Iterable[ImageRecord], where: str) -> None:
    """Check that both classes occur.

    Raises:
        DataError: there is no image, or all have one class; the message names `where`.
    """
    counts = Counter(record.label for record in records)
    for label, name in enumerate(CLASS_NAMES):
        if not counts[label]:
            other = CLASS_NAMES[1 - label]
            raise DataError(
                f"{where}: found {counts[1 - label]} {other} and no {name} image; wanted both "
                f"classes. Add images of {name}, or choose other data."
            )


def _refuse_two_labels(records: Sequence[ImageRecord]) -> str:
    """Reject a file that has both labels under two names, by a link or a wrong label.

    Returns:
        A message if one file is in two splits; else `""`.

    Raises:
        DataError: names both places.
    """
    first: dict[tuple[int, int], ImageRecord] = {}
    across = ""
    for record in records:
        try:
            status = record.path.stat()
        except OSError:
            continue
        other = first.setdefault((status.st_dev, status.st_ino), record)
        if other.label != record.label:
            raise DataError(
                f"{record.path}: is the same file as {other.path}, and so is both "
                f"{CLASS_NAMES[other.label]} and {CLASS_NAMES[record.label]}; wanted one label per "
                "image. Remove the link (a link to a folder above makes such loops), or correct "
                "the label."
            )
        if other.split != record.split and not across:
            across = (
                f"{record.path}: is the same file as {other.path}, and so is in both {other.split} "
                f"and {record.split}; wanted each image in one split. Remove the link."
            )
    return across


def _absent_classes(records: Sequence[ImageRecord]) -> Iterator[str]:
    counts = Counter((record.split, record.label) for record in records)
    for split in sorted({record.split for record in records}, key=str):
        for label, name in enumerate(CLASS_NAMES):
            if not counts[split, label]:
                yield f"{split or 'the data set'} has no {name} image."


def _hashed(
    records: Sequence[ImageRecord], progress: Progress, notes: list[str]
) -> tuple[ImageRecord, ...]:
    hashed = []
    unreadable = []
    with (
        ThreadPoolExecutor(_HASHING_THREADS) as pool,
        progress.task("Hashing", len(records), "images") as task,
    ):
        for record, digest in zip(records, pool.map(_digest, records), strict=True):
            if not digest:
                unreadable.append(record.path)
            hashed.append(dataclasses.replace(record, sha256=digest))
            task.advance()
    if unreadable:
        notes.append(f"{len(unreadable)} files can't be read, the first is {unreadable[0]}.")
    return tuple(hashed)


def _digest(record: ImageRecord) -> str:
    try:
        return storage.sha256_of_file(record.path)
    except OSError:  # the file stays in the table; the image reader refuses it with the reason
        return ""


def fingerprint(records: Iterable[ImageRecord]) -> str:
    """SHA-256 over content, label and patient of every image, independent of their order."""
    lines = sorted(f"{r.sha256},{r.label},{r.patient}" for r in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sample_patients(
    records: Sequence[ImageRecord], limit: int, seed: int
) -> tuple[ImageRecord, ...]:
    """Draw at most `limit` records, by patients at random within each class.

    A class keeps its share of the images, at least one. Patients are drawn as a whole; only the
    last one of a class may lose images that exceed the limit. A patient with images of both classes
    may be drawn for either.

    Args:
        records: n labelled images.
        limit: 2 or more.
        seed: the same seed gives the same images, whatever the order of the records.
    """
    if len(records) <= limit:
        return tuple(records)
    places = sorted(range(len(records)), key=lambda k: (records[k].patient, str(records[k].path)))
    kept: list[int] = []
    positives = sum(record.label for record in records)
    of_positives = min(max(round(limit * positives / len(records)), 1), limit - 1)
    rng = np.random.default_rng(seed)
    for label, quota in ((0, limit - of_positives), (1, of_positives)):
        by_patient: dict[str, list[int]] = {}
        for place in places:
            if records[place].label == label:
                by_patient.setdefault(records[place].patient, []).append(place)
        patients = list(by_patient.values())
        drawn = [place for k in rng.permutation(len(patients)) for place in patients[k]]
        kept += drawn[:quota]
    return tuple(records[place] for place in sorted(kept))


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
        DataError: there is no such data set, or it holds no image of `split`.
        SplitLeakError: a patient is in two splits.

    Examples:
        >>> dataset = load_dataset(xrays)
        >>> len(dataset), dataset.warnings
        (40, ())
        >>> sorted({record.split for record in dataset})
        ['test', 'train', 'val']
        >>> dataset.to_frame().columns
        ['path', 'label', 'patient', 'split', 'subtype']
    """
    dataset = index(path, hash_files, progress)
    found = dataset.subset(split)
    if not found.records:
        counts = Counter(record.split or "no split" for record in dataset.records)
        there = ", ".join(f"{name} ({images})" for name, images in counts.items())
        raise DataError(
            f"{path}: found no image of the split {split!r}, only of {there}; wanted one of "
            f"{', '.join(map(repr, (*SPLITS, 'all')))} that the data have."
        )
    return found
