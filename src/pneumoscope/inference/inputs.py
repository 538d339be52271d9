"""Input lists: the files that PATH arguments refer to, in a stable order.

`expand` yields file names one by one, and `FileList` holds them in a temporary file. Memory holds
the names of one folder at a time, never those of a whole archive.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

from pneumoscope.errors import ManifestError
from pneumoscope.storage import full_path, path_text, plain_cell

_SNIFFED_BYTES = 4096
_IN_MEMORY_BYTES = 1 << 20
_LENGTH_BYTES = 4


class FileList:
    """The files that paths refer to at the time of creation; later files are not included.

    The names are kept in an anonymous temporary file, so memory does not grow with their number.

    Args:
        names: from `expand`; consumed completely.
        without: files to leave out wherever they occur.
        folders: folders to leave out, with everything in them.

    Attributes:
        digest: SHA-256, hex, of the names in their order.
        in_folders: number of files that were left out because of `folders`.

    Raises:
        OSError: the temporary folder is full.
    """

    def __init__(
        self,
        names: Iterable[str],
        without: Collection[Path] = (),
        folders: Collection[Path] = (),
    ) -> None:
        self._names = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - __exit__
        self._count = 0
        self.in_folders = 0
        try:
            self.digest = self._filled(names, without, folders)
        except BaseException:
            self._names.close()
            raise

    def _filled(
        self, names: Iterable[str], without: Collection[Path], folders: Collection[Path]
    ) -> str:
        digest = hashlib.sha256()
        left_out = set(map(full_path, without))
        below = tuple(f"{full_path(folder).rstrip(os.sep)}{os.sep}" for folder in folders)
        for name in names:
            full = full_path(name) if left_out or below else name
            if full in left_out:
                continue
            if below and full.startswith(below):
                self.in_folders += 1
                continue
            content = name.encode("utf-8", "surrogatepass")
            self._names.write(len(content).to_bytes(_LENGTH_BYTES) + content)
            digest.update(path_text(name).encode() + b"\0")
            self._count += 1
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of files."""
        return self._count

    def __iter__(self) -> Iterator[str]:
        """Every name, in order; only one iteration at a time."""
        return self.after(0)

    def after(self, count: int) -> Iterator[str]:
        """The names without the first `count`; only one iteration at a time."""
        self._names.seek(0)
        for number in range(self._count):
            name = self._names.read(int.from_bytes(self._names.read(_LENGTH_BYTES)))
            if number >= count:
                yield name.decode("utf-8", "surrogatepass")

    def __enter__(self) -> FileList:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._names.close()


def expand(paths: Iterable[Path]) -> Iterator[str]:
    """List the files that paths refer to: files, folders, CSV tables and patterns.

    A folder is searched recursively in sorted order, without hidden files; links are followed, and
    each real folder is read once. A CSV stands for its column `path`. A pattern (`*`, `?`, `[…]`;
    `**` for any number of folders) stands for the files and folders that match it, in sorted order;
    with `**` for files only. A path that does not exist, a pattern without matches and a folder
    that can't be listed are returned themselves, so that they get a row with a reason.

    Raises:
        ManifestError: a CSV can't be read, has no `path` column, or has a row without a path.
    """
    for path in paths:
        if _is(path, "dir"):
            yield from map(str, _files_below(path))
        elif path.suffix.lower() == ".csv" and _is_text(path):
            yield from _listed_in(path)
        elif _is_pattern(path):
            yield from map(str, _fitting(path))
        else:
            yield str(path)


def _is(path: Path, what: Literal["dir", "file"]) -> bool:
    try:
        return path.is_dir() if what == "dir" else path.is_file()
    except (OSError, ValueError):  # no permission, or a name that no file system allows
        return False


def _is_pattern(path: Path) -> bool:
    """Whether a PATH is a pattern; an existing file with brackets in its name is not."""
    text = str(path)
    return glob.has_magic(text) and "\0" not in text and not os.path.lexists(path)


def _is_text(path: Path) -> bool:
    """Whether a file contains text; an image named .csv does not."""
    if not _is(path, "file"):
        return False
    try:
        with path.open("rb") as stream:
            return b"\0" not in stream.read(_SNIFFED_BYTES)
    except OSError:
        return False


def _files_below(top: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    waiting = [iter((top,))]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            continue
        if not _is(path, "dir"):
            yield path
            continue
        try:
            status = path.stat()
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))  # noqa: PTH208 - a tenth of the memory
        except OSError:
            yield path
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            waiting.append(map(path.joinpath, names))


def _fitting(pattern: Path) -> Iterator[Path]:
    found = False
    if "**" in pattern.parts:
        top = Path(*_plain_parts(pattern))
        parts = pattern.parts[len(top.parts) :]
        matches = (p for p in _files_below(top) if _fits(parts, p.relative_to(top).parts))
    else:
        matches = (
            file
            for name in sorted(glob.iglob(str(pattern)))  # noqa: PTH207 - Path's takes no absolute one
            for file in (_files_below(Path(name)) if _is(Path(name), "dir") else (Path(name),))
        )
    for path in matches:
        found = True
        yield path
    if not found:
        yield pattern


def _plain_parts(pattern: Path) -> Iterator[str]:
    for part in pattern.parts:
        if glob.has_magic(part):
            return
        yield part


def _fits(parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether the folders and the name of a file match the parts of a pattern."""
    if not parts or not names:
        return not parts and not names
    if parts == ("**",):
        return True
    if parts[0] == "**":
        return any(_fits(parts[1:], names[k:]) for k in range(len(names)))
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(parts[1:], names[1:])


def _listed_in(table: Path) -> Iterator[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            for name in listed(stream, str(table)):
                yield name if is_url(name) else str(_beside(table, plain_cell(name)))
    except OSError as error:
        raise ManifestError(
            f"{table}: can't be read ({error.strerror}). Give a CSV that you may read."
        ) from error


def _beside(table: Path, name: str) -> Path:
    """A file named in a table; backslashes separate folders unless a file has that name."""
    path = table.parent / name
    if "\\" in name and not os.path.lexists(path):
        path = table.parent / name.replace("\\", "/")
    return path


def is_url(name: str) -> bool:
    """Whether a name refers to remote storage (`s3://…`) and not to this machine."""
    return "://" in name


def listed(stream: Iterable[str], table: str) -> Iterator[str]:
    """The `path` column of a CSV, as written there; empty lines are skipped.

    Raises:
        ManifestError: it is not a CSV, has no such column, or has a row without a path.
    """
    place = None
    try:
        for number, line in enumerate(csv.reader(stream, strict=True), 1):
            if not any(map(str.strip, line)):
                continue
            if place is None:
                place = _column(table, line)
            elif len(line) <= place or not line[place].strip():
                raise ManifestError(
                    f"{table}, row {number}: found no path, wanted one in each row. Remove the "
                    "row, or add the path of its image."
                )
            else:
                yield line[place].strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{table}: is not a CSV in UTF-8: {error}. Save it as such.") from error


def _column(table: str, header: list[str]) -> int:
    columns = [name.strip().lower() for name in header]
    if "path" not in columns:
        raise ManifestError(
            f"{table}: found the columns {', '.join(columns)}, wanted one named 'path'. "
            "Name the column of image files 'path'."
        )
    return columns.index("path")
