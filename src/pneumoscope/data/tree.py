"""List the images in a folder of splits or classes; report what is left out, and what is no X-ray.

Listing decodes no image. Files that are not images by name and content (`notes.txt`) are left out
and counted. A broken file with an image's name stays, so that the image reader can refuse it.

Images with two grey values (masks, drawings) or nearly one (blank) lie below class folders in many
public data sets. Without a warning they are trained on and get a probability like any other image.
`notes_on_flat_images` detects and reports them, but does not remove them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.patients import is_mask_folder, parse_split, split_words
from pneumoscope.errors import DataError, ImageRefusedError, UsageError
from pneumoscope.images.read import detect_format, read_small
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import open_regular
from pneumoscope.records import CLASS_NAMES, SPLITS, ImageRecord, Split

SHAPES = (
    "a folder with train/, val/ or test/ that hold NORMAL/ and PNEUMONIA/; "
    "a folder that holds NORMAL/ and PNEUMONIA/ itself; or a CSV with the columns path,label"
)
CLASS_WORDS: Mapping[str, int] = {name.lower(): label for label, name in enumerate(CLASS_NAMES)}
"""Names of classes, in lower case, and their labels."""

_SKIPPED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_NAMED_AT_MOST = 5
_IMAGE_SUFFIXES = re.compile(
    r"jpe?g?|jpg|jfif|png|tiff?|bmp|dib|webp|dcm|dicom|dic|ima|img", re.IGNORECASE
)
_SUFFIX = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")
_HEAD_BYTES = 8192
_LIKELY = (re.compile(r"normal|healthy|no[ _-]?finding|negative|clear"),
           re.compile(r"pneumon|bacter|vir(us|al)|positive"))  # fmt: skip

_THREADS = 2
_SIDE = 192
_CONSTANT = 0.03
_NEAR = 0.06
_TWO_VALUED = 0.95


def class_words(pneumonia: str = "", normal: str = "") -> dict[str, int]:
    """Names of classes with their labels: the two defaults and those of a user.

    Args:
        pneumonia: names that mean PNEUMONIA, separated by commas.
        normal: names that mean NORMAL.

    Raises:
        UsageError: a name would mean both.
    """
    words = dict(CLASS_WORDS)
    for label, text in enumerate((normal, pneumonia)):
        for word in (part.strip().lower() for part in text.split(",")):
            if word and words.setdefault(word, label) != label:
                raise UsageError(
                    f"--{CLASS_NAMES[label].lower()}: found {word!r}, which already means "
                    f"{CLASS_NAMES[words[word]]}; wanted each word for one class. Leave it out "
                    "of --pneumonia or --normal; names of classes keep their meaning."
                )
    return words


def records_of_folder(
    root: Path, notes: list[str], classes: Mapping[str, int] = CLASS_WORDS
) -> list[ImageRecord]:
    """List the images below a folder of splits or of classes.

    Args:
        root: the folder.
        notes: a sentence is appended for everything that is left out.
        classes: names of class folders, in lower case, and their labels.

    Raises:
        DataError: the folder has neither form, contains no image, can't be listed, or one of the
            two classes is missing while folders of other classes exist.
    """
    folders = [entry for entry in _visible(root) if path_exists(Path(entry.path), "dir")]
    splits: dict[Split, list[str]] = {name: [] for name in SPLITS}
    for entry in folders:
        if (split := parse_split(entry.name)) is not None:
            splits[split].append(entry.name)
    found_classes = [entry.name for entry in folders if entry.name.lower() in classes]
    if any(splits.values()) and found_classes:
        raise DataError(
            f"{root}: found both splits and the classes {', '.join(found_classes)} side by side, "
            f"so it is unclear which images to use. Wanted {SHAPES}. Move one of the two away."
        )
    reader = _Reader(root, notes, classes)
    records: list[ImageRecord] = []
    if any(splits.values()):
        for split, names in splits.items():
            if len(names) > 1:
                notes.append(f"{root}: {' and '.join(names)} are both used as {split}.")
            for name in names:
                records += reader.of_classes(root / name, split)
        rest = [entry.name for entry in folders if parse_split(entry.name) is None]
        reader.refuse_unknown_splits(rest)
        _note_ignored(root, rest, notes, "neither a split nor a class")
    elif found_classes:
        records += reader.of_classes(root, None)
    else:
        raise DataError(f"{root}: {_found_instead(root, folders, classes)}. Wanted {SHAPES}.")
    reader.refuse_one_class_of_many(records)
    reader.report()
    if not records:
        raise DataError(
            f"{root}: the class folders contain no file that could be an X-ray. Wanted images "
            "below NORMAL/ and PNEUMONIA/. Check that the download or copy was complete."
        )
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(records, key=lambda r: (order.get(r.split or "train", 0), r.label, str(r.path)))


def path_exists(path: Path, what: str) -> bool:
    """Whether a path is a folder (`dir`) or a file; `False` if it can't be accessed."""
    try:
        return path.is_dir() if what == "dir" else path.is_file()
    except (OSError, ValueError):  # a name that the file system does not support
        return False


class _Reader:
    """Walks class folders and records what it leaves out."""

    def __init__(self, root: Path, notes: list[str], classes: Mapping[str, int]) -> None:
        self._root, self._notes, self._classes = root, notes, classes
        self._others: dict[str, Path] = {}
        self._masks: Counter[Path] = Counter()
        self._no_images: list[Path] = []

    def of_classes(self, folder: Path, split: Split | None) -> Iterator[ImageRecord]:
        """The images of one split's class folders."""
        other: list[str] = []
        for entry in _visible(folder):
            label = self._classes.get(entry.name.lower())
            if not path_exists(Path(entry.path), "dir"):
                continue
            if label is None:
                other.append(entry.name)
                if any(_files_below(Path(entry.path))):
                    self._others.setdefault(entry.name, Path(entry.path))
                continue
            for path in self._images_below(Path(entry.path)):
                yield ImageRecord(path, label, patient="", split=split)
        _note_ignored(folder, other, self._notes, "neither a split nor a class")

    def _images_below(self, folder: Path) -> Iterator[Path]:
        for path in _files_below(folder):
            inner = path.relative_to(folder).parts[:-1]
            mask = next((k for k, part in enumerate(inner) if is_mask_folder(part)), None)
            if mask is not None:
                self._masks[folder.joinpath(*inner[: mask + 1])] += 1
            elif is_certainly_not_image(path):
                self._no_images.append(path)
            else:
                yield path

    def refuse_unknown_splits(self, names: Sequence[str]) -> None:
        """Reject a folder of classes beside train/ and test/ that is not a split."""
        for name in names:
            inner = [entry.name.lower() for entry in _visible(self._root / name)]
            if any(each in self._classes for each in inner):
                raise DataError(
                    f"{self._root}: found {name}/ with class folders beside the splits; it is not "
                    f"the name of a split. Wanted one of {split_words()}. Rename {name}/, or move "
                    "it away."
                )

    def refuse_one_class_of_many(self, records: Sequence[ImageRecord]) -> None:
        """Reject data without one of the classes if other folders contain images."""
        missing = {0, 1} - {record.label for record in records}
        if self._others and missing:
            raise DataError(
                f"{self._root}: found the folders {', '.join(sorted(self._others))} beside "
                f"{CLASS_NAMES[1 - min(missing)] if len(missing) == 1 else 'empty classes'}; "
                f"wanted NORMAL and PNEUMONIA. {_way_out(self._root, self._others, min(missing))}"
            )

    def report(self) -> None:
        """Add what was left out to the notes."""
        for folder, count in sorted(self._masks.items()):
            self._notes.append(
                f"{folder}: {count} files left out: the name suggests masks or drawings, not "
                "X-rays."
            )
        if self._no_images:
            shown = ", ".join(path.name for path in self._no_images[:_NAMED_AT_MOST])
            more = ", …" if len(self._no_images) > _NAMED_AT_MOST else ""
            self._notes.append(
                f"{self._root}: {len(self._no_images)} files left out that are not images by name "
                f"and content: {shown}{more}."
            )


def is_certainly_not_image(path: Path) -> bool:
    """Whether neither the name (`notes.txt`) nor the content is that of an image.

    Files without a usual suffix (`IM0001`, `1.2.840.1`) may be DICOM, and are kept.
    """
    suffix = path.suffix.removeprefix(".")
    if not _SUFFIX.fullmatch(suffix) or _IMAGE_SUFFIXES.fullmatch(suffix):
        return False
    try:
        with open_regular(path) as stream:
            return detect_format(stream.read(_HEAD_BYTES)) is None
    except OSError:  # the image reader reports why
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without those of file managers and archivers."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if e.name[0] != "." and e.name.lower() not in _SKIPPED]
    except OSError as error:
        raise DataError(
            f"{folder}: can't be listed ({error.strerror}). Give a folder that you may read."
        ) from error
    return sorted(kept, key=lambda entry: entry.name)


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
            if path_exists(path, "dir"):
                waiting.append(path)
            elif path_exists(path, "file"):
                yield path


def _note_ignored(folder: Path, names: Sequence[str], notes: list[str], why: str) -> None:
    if names:
        shown = ", ".join(f"{name}/" for name in names[:_NAMED_AT_MOST])
        more = ", …" if len(names) > _NAMED_AT_MOST else ""
        notes.append(f"{folder}: ignored {shown}{more}: {why}.")


def _way_out(root: Path, others: Mapping[str, Path], missing: int) -> str:
    """How to state which folders count as which class."""
    likely = [name for name in sorted(others) if _LIKELY[missing].search(name.lower())]
    named = ",".join(likely or sorted(others))
    option = CLASS_NAMES[missing].lower()
    return (
        f"State which count as {CLASS_NAMES[missing]}, as in: pneumoscope data split {root} "
        f"--{option} {named!r} --out split.csv; then give split.csv as DATA."
    )


def _found_instead(
    root: Path, folders: Sequence[os.DirEntry[str]], classes: Mapping[str, int]
) -> str:
    for entry in folders:
        inner = [
            sub.name for sub in _visible(Path(entry.path)) if path_exists(Path(sub.path), "dir")
        ]
        if any(parse_split(name) or name.lower() in classes for name in inner):
            return f"found no images here, but in a folder below: give {entry.path} instead"
    if not folders:
        return "found no folder in it"
    shown = ", ".join(f"{entry.name}/" for entry in folders[:_NAMED_AT_MOST])
    found = f"found only {shown}{', …' if len(folders) > _NAMED_AT_MOST else ''}"
    others = {e.name: Path(e.path) for e in folders if any(_files_below(Path(e.path)))}
    if len(others) < 2:
        return found
    return f"{found}. {_way_out(root, others, 1).rstrip('.')} (--normal likewise)"


FlatKind = Literal["", "two_valued", "near_constant"]

FLAT_WORDS: dict[FlatKind, str] = {
    "two_valued": "have only two grey values, like masks and drawings",
    "near_constant": "have nearly a single grey value",
}


def flat_kind(grey: npt.NDArray[Any]) -> FlatKind:
    """Whether an image has only two grey values, or nearly one; `""` for X-rays.

    Two-valued: 95 % of the pixels lie within 6 % of the range from its darkest or its brightest
    value. Near-constant: the range of the central 99 % is below 3 % of the full range. X-rays are
    far from both: for 400 training images of the Kermany set the first share was at most 0.41.

    Args:
        grey: (h, w), of any integer type or floats in [0, 1].
    """
    step = max(1, min(grey.shape) // _SIDE)
    small = grey[::step, ::step].astype(np.float64)
    if np.issubdtype(grey.dtype, np.integer):
        small /= np.iinfo(grey.dtype).max
    low, high = np.quantile(small, [0.005, 0.995])
    if high - low < _CONSTANT:
        return "near_constant"
    near = _NEAR * (high - low)
    ends = np.count_nonzero(small <= low + near) + np.count_nonzero(small >= high - near)
    return "two_valued" if ends >= _TWO_VALUED * small.size else ""


def notes_on_flat_images(
    records: Sequence[ImageRecord], progress: Progress = SILENT
) -> tuple[str, ...]:
    """A sentence about the two-valued images of a data set, and one about near-constant images.

    JPEGs are decoded at an eighth of their size, which takes a few milliseconds each. Unreadable
    files are skipped here; the image reader reports them.
    """
    found: dict[FlatKind, list[Path]] = {kind: [] for kind in FLAT_WORDS}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress.task("Searching for masks", len(records), "images") as task,
    ):
        for record, kind in zip(records, pool.map(_kind_of, records), strict=True):
            if kind:
                found[kind].append(record.path)
            task.advance()
    return tuple(
        f"{len(paths)} of {len(records)} images {FLAT_WORDS[kind]}: they are not X-rays. The "
        f"first: {paths[0]}. Remove them."
        for kind, paths in found.items()
        if paths
    )


def _kind_of(record: ImageRecord) -> FlatKind:
    try:
        return flat_kind(read_small(record.path, _SIDE))
    except ImageRefusedError:
        return ""
