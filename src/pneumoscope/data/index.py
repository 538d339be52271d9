"""The table of a data set: which images there are, their labels, patients and given splits.

Comes in: `DATA`, a folder of splits, a folder of classes, or a CSV manifest. Goes out: a
`Dataset` in a stable order, with what was odd about it in words.
Knows nothing of pixels: a file that is no image stays in the table, and its reader refuses it.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pneumoscope import storage
from pneumoscope.data import manifest
from pneumoscope.data.deal import check_no_leak
from pneumoscope.data.patients import assign_patients
from pneumoscope.errors import DataError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, SPLITS, Dataset, ImageRecord, Split

_SKIPPED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_HASHING_THREADS = 2
_NAMED_AT_MOST = 5
_SHAPES = (
    "a folder with train/, val/ or test/ that hold NORMAL/ and PNEUMONIA/; "
    "a folder that holds NORMAL/ and PNEUMONIA/ itself; or a CSV with the columns path,label"
)


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """How many images and patients one split has (`split` is `None` where none was given)."""

    split: Split | None
    normal: int
    pneumonia: int
    patients: int

    @property
    def images(self) -> int:
        """Images of both classes."""
        return self.normal + self.pneumonia

    @property
    def rarer(self) -> int:
        """Images of the class that has fewer."""
        return min(self.normal, self.pneumonia)


def index(
    data: Path | str,
    hash_files: bool = True,
    progress: Progress = SILENT,
    *,
    refuse_leaks: bool = True,
) -> Dataset:
    """List the images of `data` with label, patient, split and content hash.

    Args:
        data: a folder of splits, a folder of classes or a CSV manifest (letter case of the folders'
            names does not matter; class folders are searched recursively; links are followed).
        hash_files: also compute the SHA-256 of each file; else `sha256` is `""`.
        progress: told of the hashing.
        refuse_leaks: raise if a patient is in two splits. `False` for commands that look for such
            patients or deal them anew.

    Returns:
        The data set. Records are sorted by split, class and path; those of a manifest keep its
        order. Paths are absolute.

    Raises:
        DataError: `data` is missing, unreadable, of none of the three forms, or holds no image.
        ManifestError: the CSV can't be understood.
        SplitLeakError: a patient is in two splits.
    """
    root = Path(os.path.normpath(Path(data).absolute()))
    notes: list[str] = []
    if _is(root, "dir"):
        found = tuple(_records_of_folder(root, notes))
    elif _is(root, "file"):
        found = manifest.read_manifest(root)
        root = root.parent
    else:
        raise DataError(f"{data}: there is no such file or folder. Wanted {_SHAPES}.")
    records, warnings = assign_patients(found, root)
    notes += warnings
    notes += _absent_classes(records)
    if refuse_leaks:
        check_no_leak(records, str(data))
    if hash_files:
        records = _hashed(records, progress, notes)
    return Dataset(root, records, tuple(notes))


def class_counts(dataset: Dataset) -> tuple[ClassCounts, ...]:
    """Images per class and patients, one entry per split that occurs (train, val, test, none)."""
    images = Counter((record.split, record.label) for record in dataset.records)
    patients = Counter(split for split, _ in {(r.split, r.patient) for r in dataset.records})
    return tuple(
        ClassCounts(split, images[split, 0], images[split, 1], patients[split])
        for split in (*SPLITS, None)
        if patients[split]
    )


def require_both_classes(records: Iterable[ImageRecord], where: str) -> None:
    """Make sure that both classes occur.

    Raises:
        DataError: there is no image, or all are of one class; names `where`.
    """
    counts = Counter(record.label for record in records)
    for label, name in enumerate(CLASS_NAMES):
        if not counts[label]:
            other = CLASS_NAMES[1 - label]
            raise DataError(
                f"{where}: found {counts[1 - label]} {other} and no {name} image; wanted both "
                f"classes. Add images of {name}, or choose other data."
            )


def _is(path: Path, what: str) -> bool:
    try:
        return path.is_dir() if what == "dir" else path.is_file()
    except (OSError, ValueError):  # a name that the file system can't hold
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without what file managers and archivers leave behind."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if e.name[0] != "." and e.name.lower() not in _SKIPPED]
    except OSError as error:
        raise DataError(
            f"{folder}: can't be listed ({error.strerror}). Give a folder that you may read."
        ) from error
    return sorted(kept, key=lambda entry: entry.name)


def _records_of_folder(root: Path, notes: list[str]) -> list[ImageRecord]:
    folders = [entry for entry in _visible(root) if _is(Path(entry.path), "dir")]
    splits = {name: [Path(e.path) for e in folders if e.name.lower() == name] for name in SPLITS}
    classes = [entry.name for entry in folders if _label(entry.name) is not None]
    if any(splits.values()) and classes:
        raise DataError(
            f"{root}: found both splits and the classes {', '.join(classes)} side by side, so it "
            f"is unclear which images are meant. Wanted {_SHAPES}. Move one of the two away."
        )
    records: list[ImageRecord] = []
    if any(splits.values()):
        for split in SPLITS:
            for folder in splits[split]:
                records += _records_of_classes(folder, split, notes)
        _note_ignored(root, [e.name for e in folders if e.name.lower() not in SPLITS], notes)
    elif classes:
        records += _records_of_classes(root, None, notes)
    else:
        raise DataError(f"{root}: {_found_instead(root, folders)}. Wanted {_SHAPES}.")
    if not records:
        raise DataError(
            f"{root}: the class folders hold no file. Wanted images below NORMAL/ and PNEUMONIA/. "
            "Check that the download or copy was complete."
        )
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(records, key=lambda r: (order.get(r.split or "train", 0), r.label, str(r.path)))


def _records_of_classes(
    folder: Path, split: Split | None, notes: list[str]
) -> Iterator[ImageRecord]:
    other: list[str] = []
    for entry in _visible(folder):
        label = _label(entry.name)
        if not _is(Path(entry.path), "dir"):
            continue
        if label is None:
            other.append(entry.name)
            continue
        for path in _files_below(Path(entry.path)):
            yield ImageRecord(path, label, patient="", split=split)
    _note_ignored(folder, other, notes)


def _label(name: str) -> int | None:
    names = [class_name.lower() for class_name in CLASS_NAMES]
    return names.index(name.lower()) if name.lower() in names else None


def _files_below(folder: Path) -> Iterator[Path]:
    """Every regular file below `folder`; links are followed, each real folder is read once."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _visible(current):
            path = Path(entry.path)
            if _is(path, "dir"):
                waiting.append(path)
            elif _is(path, "file"):
                yield path


def _note_ignored(folder: Path, names: Sequence[str], notes: list[str]) -> None:
    if names:
        shown = ", ".join(f"{name}/" for name in names[:_NAMED_AT_MOST])
        more = ", …" if len(names) > _NAMED_AT_MOST else ""
        notes.append(f"{folder}: ignored {shown}{more}: neither a split nor a class.")


def _found_instead(root: Path, folders: Sequence[os.DirEntry[str]]) -> str:
    for entry in folders:
        inner = [
            sub.name.lower() for sub in _visible(Path(entry.path)) if _is(Path(sub.path), "dir")
        ]
        if any(name in SPLITS or _label(name) is not None for name in inner):
            return f"found no images here, but below it: give {entry.path} instead"
    if not folders:
        return "found no folder in it"
    shown = ", ".join(f"{entry.name}/" for entry in folders[:_NAMED_AT_MOST])
    return f"found only {shown}{', …' if len(folders) > _NAMED_AT_MOST else ''}"


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
    except OSError:  # the file stays in the table; its reader refuses it with the reason
        return ""
