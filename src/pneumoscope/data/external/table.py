"""Owners' tables, row by row, and their image files, by name.

Comes in: a folder as its owner distributes it. Goes out: rows as dicts; paths.
Knows nothing of any single data set.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pneumoscope.errors import DataError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp")
_MOST_INFLATED = 1 << 30
_FIELD_LIMIT = 1 << 20
"""Reports in a table can be long; a field of over a megabyte is no report."""


def table_in(folder: Path, *names: str) -> Path:
    """The first of the tables `names` that lies in `folder`.

    Raises:
        DataError: none does; names what was found.
    """
    found = optional_table(folder, *names)
    if found is None:
        there = sorted(p.name for p in folder.glob("*.csv*")) if folder.is_dir() else []
        raise DataError(
            f"{folder}: found {', '.join(there[:5]) or 'no table'}, wanted {' or '.join(names)}. "
            "Give the folder that holds the tables as their owner distributes them."
        )
    return found


def optional_table(folder: Path, *names: str) -> Path | None:
    """As `table_in`, `None` if there is none."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def rows_of(table: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV (`.gz` too) as dicts of stripped text.

    Args:
        table: UTF-8, with or without a byte order mark.
        wanted: columns that must be there; alternatives are parted by `|`.

    Raises:
        DataError: it can't be read, or lacks a wanted column.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    try:
        with _opened(table) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(text, restval="")
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in wanted if not set(name.split("|")) & set(header)]
            if missing:
                raise DataError(
                    f"{table}, line 1: found the columns {', '.join(header[:12])}; wanted also "
                    f"{missing[0].replace('|', ' or ')}. Give the table as its owner made it."
                )
            for row in reader:
                yield {name: (value or "").strip() for name, value in row.items() if name}
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise DataError(
            f"{table}: can't be read as CSV in UTF-8 ({error}). Download it again."
        ) from error


def _opened(table: Path) -> IO[bytes]:
    stream = table.open("rb")
    if table.suffix != ".gz":
        return stream
    with stream:
        return io.BytesIO(_inflated(stream, table))


def _inflated(stream: IO[bytes], table: Path) -> bytes:
    """The content of a gzip file, no more of it than a table of films can hold."""
    with gzip.GzipFile(fileobj=stream) as inflating:
        content = inflating.read(_MOST_INFLATED + 1)
    if len(content) > _MOST_INFLATED:
        raise DataError(
            f"{table}: unpacks to more than {_MOST_INFLATED >> 20} MB, wanted a table of films. "
            "Unpack it and look at it."
        )
    return content


def images_below(folder: Path) -> dict[str, Path]:
    """Every image file below `folder` by its name; of equal names the first in order of paths."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(_IMAGE_SUFFIXES):
                found.setdefault(name, Path(parent) / name)
    return found
