"""Writing files safely: an interruption, a full disk or a second process never leaves half a file.

A file is written under a temporary name and renamed when it is complete. The module also has locks
on folders, text escaping for CSV files and terminals, hashing, and the cache folder.
"""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import re
import shutil
import tempfile
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from pneumoscope.errors import MissingError, UsageError

_LOGGER = logging.getLogger(__name__)

Given = ParamSpec("Given")
Made = TypeVar("Made")

LOCK_FILE = ".lock"
"""Lock file in a folder that `alone_in` has locked."""

_CHUNK_BYTES = 1 << 20
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters but for tab and line feed."""
_NUMBER = re.compile(r"[-+]?[0-9.,]+([eE][-+]?[0-9]+)?%?")
_NAME_CHARACTERS = 40
"""Length of the final name that a temporary name keeps; file systems allow 255 bytes."""


def temporary_beside(path: Path) -> Path:
    """A free, hidden name in the folder of `path`, to be renamed to `path` when complete."""
    return path.parent / f".{path.name[:_NAME_CHARACTERS]}.{uuid.uuid4().hex}.tmp"


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`.

    Its permissions are those of any new file, as the user's umask allows.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, completely or not at all."""
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write `document` as JSON. NaN is not allowed: undefined values must be `None`.

    Indented by one space, because the thousands of points of the curves in a manifest have a line
    each.
    """
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class LineFile:
    """A file that lines are appended to, each of them whole or not at all.

    A line that a kill or a full disk cut short is ended when the file is opened, so that the next
    one starts on its own. `reading.json_lines` recognises it.

    Args:
        path: created if it does not exist.
        mode: permissions of a new file, before the umask.

    Raises:
        OSError: the file can't be opened or written.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode)
        try:
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                self.append(b"\n")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, line: bytes, *, sync: bool = False) -> None:
        """Append a line; with `sync` it is on disk when this returns.

        Raises:
            OSError: the disk takes none or only a part of it; the file is as it was before.
        """
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):  # a nearly full disk takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            if sync:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def check_replaceable(folder: Path, marker: str, what: str) -> None:
    """Reject a folder that `folder_writer` would not replace; call it before long work.

    Args:
        folder: new, empty, or one to replace.
        marker: a file that only folders of that kind hold.
        what: their kind, with an article.

    Raises:
        UsageError: it is a file, or a folder with other content.
    """
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file()
    ):
        raise UsageError(
            f"{folder}: found content that is not {what}, wanted a new or empty folder, or {what} "
            "to replace. Give another one."
        )


@contextmanager
def folder_writer(folder: Path, marker: str, what: str) -> Iterator[Path]:
    """Yield a new folder beside `folder`; on success flush its files and rename it to `folder`.

    An existing folder is removed only after the new one is in place, and only if
    `check_replaceable` accepts it.

    Raises:
        UsageError: the folder holds other content.
        OSError: the disk is full or the folder can't be written; the old folder is unchanged.
    """
    check_replaceable(folder, marker, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_beside(folder)
    made.mkdir()
    try:
        yield made
        for path in made.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        _swap(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, folder: Path) -> None:
    if not folder.exists():
        made.rename(folder)
        return
    aside = temporary_beside(folder)
    folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def full_path(path: Path | str) -> str:
    """The absolute path, without `..`; links stay, as the user named them."""
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`


def claim_folder(folder: Path) -> None:
    """Create `folder` if needed, and check that files can be created in it.

    Call it before long work, so that the results can be written at its end.

    Raises:
        UsageError: a file exists at the path of the folder or of one of its parents.
        OSError: the folder can't be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"{folder}: found a file at this path or at that of a parent folder, wanted a folder. "
            "Give another one."
        ) from error
    probe = temporary_beside(folder / "probe")
    probe.touch(exist_ok=False)
    probe.unlink()


def open_alone(path: Path) -> IO[bytes]:
    """Open a file for reading and writing with an exclusive lock; it is created if needed.

    The lock is that of the operating system (flock(2)): it ends with the process in any case. Where
    the system or the file system does not support such locks, the file is not locked.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file can't be created or opened.
    """
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            _lock(stream)
            if _is_open_in(stream, path):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()  # the previous owner removed the file meanwhile: open the new one


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create `folder` if needed and lock it against other processes until the block ends.

    For commands that write many files into a folder: two of them at once would mix their files. A
    folder that was created and is empty at the end is removed.

    Raises:
        UsageError: another process has locked it, or a file exists at its path.
        OSError: the folder can't be created or written.
    """
    made = not folder.exists()
    claim_folder(folder)
    path = folder / LOCK_FILE
    try:
        lock = open_alone(path)
    except BlockingIOError as error:
        raise UsageError(
            f"--out {folder}: another process is writing there. Wait until it has finished, or "
            "give another folder."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def writes_alone(work: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorate a function to run within `alone_in` the folder of its argument `out`."""
    signature = inspect.signature(work)

    @functools.wraps(work)
    def alone(*given: Given.args, **named: Given.kwargs) -> Made:
        with alone_in(Path(signature.bind(*given, **named).arguments["out"])):
            return work(*given, **named)

    return alone


def _is_open_in(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(stream: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


def leftovers(folder: Path) -> list[Path]:
    """Incomplete files of an interrupted process in `folder`, with names of `temporary_beside`."""
    return sorted(folder.glob(".*.tmp"))


def remove_leftovers(folder: Path) -> None:
    """Remove the `leftovers` of `folder`; no other process may be writing there."""
    for entry in leftovers(folder):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def path_text(path: Path | str) -> str:
    r"""A path as text for the files that pneumoscope writes.

    Bytes that are not valid UTF-8 are escaped (`\udce9`), and so is a carriage return (`\r`), which
    Python writes to a CSV without quotes.
    """
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8").replace("\r", r"\r")


def safe_path(text: str) -> str:
    """A relative path for a CSV; it gets the prefix `./` if a spreadsheet would read a formula.

    It still is the path of the same file.
    """
    return f"./{text}" if text[:1] in _FORMULA else text


def safe_cell(text: str) -> str:
    r"""A text for a CSV; it gets the prefix `'` if a spreadsheet would read a formula.

    Spreadsheets evaluate cells that begin with `=`, `+`, `-` or `@` (OWASP, CSV injection), and
    PatientIDs come from other systems. Numbers stay unchanged. `plain_cell` removes the prefix.
    Control characters are escaped (`\r`, `\x00`): Python writes some of them without quotes, so
    that the row would end there, or the file could not be read.
    """
    text = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
    if text[:1] not in _FORMULA or _NUMBER.fullmatch(text):
        return text
    return f"'{text}"


def plain_cell(text: str) -> str:
    """The original text of `safe_cell`."""
    return text[1:] if text[:1] == "'" and text[1:2] in _FORMULA and text[1:] else text


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table as CSV: text cells as `safe_cell` returns them, `None` empty, numbers unchanged."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return stream.getvalue()


def terminal_text(text: str) -> str:
    r"""Text for a terminal, with control, invisible and bidirectional characters escaped."""

    def shown(c: str) -> str:
        harmless = c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        return c if harmless else c.encode("unicode_escape").decode()

    return "".join(map(shown, path_text(text)))


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder for data that can be computed again; it may not exist yet.

    It is `$PNEUMOSCOPE_CACHE`, else `$XDG_CACHE_HOME/pneumoscope`, else `~/.cache/pneumoscope`. If
    the user has no home folder (a container without a passwd entry), or can't write to it, it is a
    folder of the user in the system's temporary folder.
    """
    if chosen := os.environ.get("PNEUMOSCOPE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "pneumoscope"
    home = home_folder()
    usual = None if home is None else home / ".cache" / "pneumoscope"
    if usual is not None and _may_be_made(usual):
        return usual
    return _temporary_cache(usual)


def home_folder() -> Path | None:
    """The user's home folder; `None` without `$HOME` and without an entry in the user database."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def claim_cache() -> Path:
    """Create `cache_folder` if needed and check that it can be written.

    Raises:
        MissingError: it can't be written; names what to do.
    """
    folder = cache_folder()
    try:
        claim_folder(folder)
    except (OSError, UsageError) as error:
        raise MissingError(
            f"{folder}: the cache can't be written ({error}). Choose another folder: "
            "PNEUMOSCOPE_CACHE=DIR pneumoscope …"
        ) from error
    return folder


@functools.cache
def _may_be_made(folder: Path) -> bool:
    """Whether a folder can be created: its nearest existing parent accepts new folders."""
    try:
        nearest = next(each for each in (folder, *folder.parents) if each.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            return False
        Path(tempfile.mkdtemp(dir=nearest, prefix=".pneumoscope.", suffix=".tmp")).rmdir()
    except OSError:
        return False
    return True


@functools.cache
def _temporary_cache(usual: Path | None) -> Path:
    """A temporary folder that no other user could have prepared, or one for this process alone."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"pneumoscope-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        mine = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        mine = False
    if not mine or folder.is_symlink():
        folder = Path(tempfile.mkdtemp(prefix="pneumoscope-"))
    found = "there is no home folder" if usual is None else f"{usual} can't be written"
    _LOGGER.warning(
        "the cache is in %s: %s. Choose a permanent folder: PNEUMOSCOPE_CACHE=DIR", folder, found
    )
    return folder
