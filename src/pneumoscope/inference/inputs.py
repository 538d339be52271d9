"""Many inputs: which files a PATH means.

Comes in: paths as users give them. Goes out: a list of files. Knows nothing of models or tables.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pneumoscope.errors import ManifestError

_SNIFFED_BYTES = 4096


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` mean: a file itself, a folder's files, the `path` column of a CSV.

    Folders are searched recursively in sorted order, hidden files left out; links are followed,
    and each real folder is read once. A path that is not there, and a folder that can't be listed,
    stay in the list, so that they get a row that says so.

    Raises:
        ManifestError: a CSV can't be read, has no `path` column, or a row without a path.
    """
    found: list[Path] = []
    for path in paths:
        if _is(path, "dir"):
            found += _files_below(path)
        elif path.suffix.lower() == ".csv" and _is_text(path):
            found += _listed_in(path)
        else:
            found.append(path)
    return found


def _is(path: Path, what: Literal["dir", "file"]) -> bool:
    try:
        return path.is_dir() if what == "dir" else path.is_file()
    except (OSError, ValueError):  # not allowed to look, or a name that no file system holds
        return False


def _is_text(path: Path) -> bool:
    """Whether a file is text by its content: an image that is named .csv is an image."""
    if not _is(path, "file"):
        return False
    try:
        with path.open("rb") as stream:
            return b"\0" not in stream.read(_SNIFFED_BYTES)
    except OSError:
        return False


def _files_below(top: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        path = waiting.pop()
        if not _is(path, "dir"):
            found.append(path)
            continue
        try:
            status = path.stat()
            inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        except OSError:
            found.append(path)
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(inside)
    return found


def _listed_in(table: Path) -> list[Path]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise ManifestError(
            f"{table}: can't be read ({error.strerror}). Give a CSV that you may read."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{table}: is no CSV in UTF-8: {error}. Save it as such.") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if any(map(str.strip, line))]
    if not rows:
        return []
    columns = [name.strip().lower() for name in rows[0][1]]
    if "path" not in columns:
        raise ManifestError(
            f"{table}: found the columns {', '.join(columns)}, wanted one named 'path'. "
            "Name the column of image files 'path'."
        )
    place = columns.index("path")
    for number, line in rows[1:]:
        if len(line) <= place or not line[place].strip():
            raise ManifestError(
                f"{table}, row {number}: found no path, wanted one in each row. Remove the row, or "
                "name its image."
            )
    return [table.parent / line[place].strip() for _, line in rows[1:]]
