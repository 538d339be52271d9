"""Write the images of Parquet shards into class folders.

`export_parquet` writes one file per image, in folders by split and class. The shards have the
columns `image` (a struct with `bytes`) and `label` (0 or 1), as in Hugging Face image data sets,
and the split in each shard's name. The files `SPLIT/CLASS/SPLIT-SHARD-ROW.SUFFIX` contain the bytes
of the table unchanged. The table has no file names, so patients are unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.data.archive import HEAD_BYTES, image_suffix
from pneumoscope.errors import DataError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, Split

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
        note: Any = json.loads(metadata.get("huggingface", "{}"))
        names = note["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
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
