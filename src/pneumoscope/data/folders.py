"""Arrange downloaded images as `SPLIT/CLASS/…` and publish them completely or not at all.

The input is any tree of folders, or a set of Parquet shards, and an empty folder beside the final
one. The output is a DATA folder (docs/researcher/data.md) under its final name, flushed to the
disk.

Parquet shards have the columns `image` (a struct with `bytes`) and `label` (0 or 1), as in Hugging
Face image data sets, and the split in each shard's name. The files
`SPLIT/CLASS/SPLIT-SHARD-ROW.SUFFIX` contain the bytes of the table unchanged. The table has no file
names, so patients are unknown.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.data.archive import HEAD_BYTES, image_suffix
from pneumoscope.data.patients import is_mask_folder, parse_split, split_words
from pneumoscope.errors import DataError, InputError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import parse_json
from pneumoscope.records import CLASS_NAMES, SPLITS, Split

BATCH_ROWS = 64
"""Rows held in memory at a time."""

_SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    split: Split
    number: int
    rows: int
    class_names: tuple[str, ...]


def split_of_shard(shard: Path) -> Split:
    """The split in a shard's name, else in its folder's (`train-00000-of-00007.parquet`).

    Raises:
        DataError: neither names a split.
    """
    for text in (shard.stem, shard.parent.name):
        for word in _WORD.findall(text):
            if split := _SPLIT_NAMES.get(word.casefold()):
                return split
    raise DataError(
        f"{shard}: neither the file's name nor its folder's names a split; "
        "wanted one of train, validation, test"
    )


def export_parquet(shards: Sequence[Path], out: Path, progress: Progress = SILENT) -> int:
    """Write every image of `shards` to a file below `out`.

    Shards are numbered from 0 per split in the order of their names. The class is the name that
    the table's feature description gives to a label (Hugging Face `ClassLabel`); without it, 0 is
    NORMAL and 1 is PNEUMONIA.

    Args:
        shards: Parquet files.
        out: a folder without these files.
        progress: reports images.

    Returns:
        The number of bytes written.

    Raises:
        DataError: a file is not Parquet, lacks a column, or has a row without an image or with
            a label other than 0 and 1.
    """
    known = _inspect(shards)
    written = 0
    with progress.task("writing images", sum(shard.rows for shard in known), "images") as task:
        for shard in known:
            for row, content, label in _rows_of(shard):
                suffix = image_suffix(content[:HEAD_BYTES])
                if suffix is None:
                    raise DataError(f"{shard.path}, row {row}: the bytes are not an image")
                folder = out / shard.split / shard.class_names[label]
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{shard.split}-{shard.number:05d}-{row:05d}{suffix}"
                (folder / name).write_bytes(content)
                written += len(content)
                task.advance()
    return written


def _inspect(shards: Sequence[Path]) -> list[_Shard]:
    """Read each shard's header: its columns, its length, the names of its labels."""
    import polars as pl

    known: list[_Shard] = []
    numbers: dict[Split, int] = {}
    for path in sorted(shards):
        split = split_of_shard(path)
        try:
            schema = pl.read_parquet_schema(path)
            rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
            metadata = pl.read_parquet_metadata(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
        image = schema.get("image")
        fields = {field.name for field in image.fields} if isinstance(image, pl.Struct) else set()
        if "bytes" not in fields or "label" not in schema:
            raise DataError(
                f"{path} has the columns {', '.join(schema) or 'none'}; "
                "wanted image (a struct with bytes) and label"
            )
        number = numbers.get(split, 0)
        numbers[split] = number + 1
        known.append(_Shard(path, split, number, rows, _class_names(path, metadata)))
    return known


def _class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names of label 0 and label 1, from the `huggingface` note in the file's footer."""
    try:
        note: Any = parse_json(metadata.get("huggingface", "{}"), f"{path}: its footer")
        names = note["info"]["features"]["label"]["names"]
    except (InputError, KeyError, TypeError):
        return CLASS_NAMES
    found = tuple(str(name).upper() for name in names) if isinstance(names, list) else ()
    if sorted(found) != sorted(CLASS_NAMES):
        raise DataError(f"{path} names its labels {names}; wanted {', '.join(CLASS_NAMES)}")
    return found


def _rows_of(shard: _Shard) -> Iterator[tuple[int, bytes, int]]:
    """Row number, image bytes and label of each row; one batch is in memory at a time."""
    import polars as pl

    columns = (
        pl.col("image").struct.field("bytes").alias("content"),
        pl.col("label"),
    )
    table = pl.scan_parquet(shard.path).select(columns)
    for start in range(0, shard.rows, BATCH_ROWS):
        try:
            batch = table.slice(start, BATCH_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{shard.path}, from row {start}: the table is damaged ({error}). "
                "Remove the file and download again."
            ) from error
        for row, (content, label) in enumerate(batch.iter_rows(), start):
            if not isinstance(content, bytes) or label not in (0, 1):
                found = f"label {label!r}" if isinstance(content, bytes) else "no image"
                raise DataError(f"{shard.path}, row {row}: {found}; wanted an image, label 0 or 1")
            yield row, content, int(label)


@dataclass(frozen=True, slots=True)
class SplitCount:
    """The number of images of one split; `split` is `None` if the data set has no splits."""

    split: Split | None
    normal: int
    pneumonia: int


def find_data_folder(tree: Path) -> Path:
    """The shallowest DATA folder in `tree`, or `tree` itself.

    A DATA folder contains `NORMAL/` and `PNEUMONIA/`, or a `train/`, `val/` or `test/` that does,
    in any letter case. `__MACOSX` and links are skipped.

    Raises:
        DataError: there is none, or there are several at the same depth.
    """
    level = [tree]
    while level:
        found = [folder for folder in level if _class_roots(folder)]
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(tree)) for folder in found)
            raise DataError(f"found several data sets beside each other: {names}. Give one of them")
        if found:
            return found[0]
        level = [child for folder in level for child in _subfolders(folder)]
    raise DataError(
        "found no folder with images under both NORMAL/ and PNEUMONIA/, nor train/, val/ or test/ "
        "with these. Is it another data set? If its folders have other names for the two classes, "
        "unpack it and say which: pneumoscope data split FOLDER --pneumonia NAMES --normal NAMES "
        "--out split.csv"
    )


def take_images(folder: Path, data: Path, *, move: bool, progress: Progress = SILENT) -> int:
    """Copy or move the images of a data folder to `data`, with canonical folder names.

    Args:
        folder: result of `find_data_folder`.
        data: where `SPLIT/CLASS/…` (or `CLASS/…`) is created; subfolders of a class are kept.
        move: rename the files (both folders are on one disk) instead of copying them.
        progress: reports images.

    Returns:
        The number of images. Files with other content and hidden files are left out.

    Raises:
        DataError: folders that differ only in letter case contain files of the same name.
    """
    pairs = [
        (path, data.joinpath(*place, path.relative_to(root)))
        for root, place in _class_roots(folder)
        for path in files_in(root)
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    kept = 0
    with progress.task("copying images", len(pairs), "images") as task:
        for path, target in pairs:
            task.advance()
            if not _is_image(path) or any(map(is_mask_folder, path.relative_to(folder).parts[:-1])):
                continue
            if target.exists():
                twice = target.relative_to(data).as_posix()
                raise DataError(f"{twice} exists twice, in folders that differ only in letter case")
            target.parent.mkdir(parents=True, exist_ok=True)
            if move:
                path.rename(target)
            else:
                shutil.copyfile(path, target)
            kept += 1
    return kept


def count_images(data: Path) -> tuple[SplitCount, ...]:
    """Files per split and class of a folder filled by `take_images`, in the order of SPLITS."""

    def number(folder: Path) -> int:
        return sum(1 for _ in files_in(folder))

    places: list[tuple[Split | None, Path]] = [(split, data / split) for split in SPLITS]
    if not any(path.is_dir() for _, path in places):
        places = [(None, data)]
    normal, pneumonia = CLASS_NAMES
    return tuple(
        SplitCount(split, number(path / normal), number(path / pneumonia))
        for split, path in places
        if path.is_dir()
    )


def files_in(folder: Path) -> Iterator[Path]:
    """All files below `folder`; links are skipped, since they may lead anywhere."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, on the same disk, for renaming in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def publish(data: Path, out: Path) -> None:
    """Flush every file to the disk, then rename the folder to `out`."""
    for parent, _, names in os.walk(data):
        for name in names:
            with Path(parent, name).open("rb+") as stream:
                os.fsync(stream.fileno())
        _flush_folder(Path(parent))
    if out.is_dir():
        out.rmdir()
    data.rename(out)
    _flush_folder(out.parent)


def _is_image(path: Path) -> bool:
    with path.open("rb") as stream:
        return image_suffix(stream.read(HEAD_BYTES)) is not None


def _class_roots(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """The class folders of a data folder, each with its canonical place (`("train", "NORMAL")`).

    Empty unless both classes occur, since other data sets have a NORMAL folder too.
    """
    roots: list[tuple[Path, tuple[str, ...]]] = []
    unknown = []
    for child in _subfolders(folder):
        classes = _class_folders(child)
        if (split := parse_split(child.name)) is not None:
            roots += [(path, (split, name)) for path, name in classes]
        elif classes:
            unknown.append(child.name)
    if roots and unknown:
        raise DataError(
            f"found {', '.join(f'{name}/' for name in unknown)} with class folders beside the "
            f"splits; wanted names of splits: {split_words()}. Unpack it and rename the folder"
        )
    roots = roots or [(path, (name,)) for path, name in _class_folders(folder)]
    return roots if {place[-1] for _, place in roots} == set(CLASS_NAMES) else []


def _class_folders(folder: Path) -> list[tuple[Path, str]]:
    return [
        (path, path.name.upper())
        for path in _subfolders(folder)
        if path.name.upper() in CLASS_NAMES
    ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        child
        for child in folder.iterdir()
        if child.is_dir() and not child.is_symlink() and child.name != "__MACOSX"
    )


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder can't be opened and need not be flushed
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
