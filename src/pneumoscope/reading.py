"""Reading files from outside: sizes, numbers and time that a file states are limited first.

A file may be a named pipe, state more than it holds, unpack to a thousand times its size, or bring
a C library to loop or crash. The functions here are the only way to the content of JSON files, of
ZIP members and of files that another process reads first.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pneumoscope.errors import InputError, MissingError
from pneumoscope.storage import cache_folder, claim_cache, sha256_of_file

MOST_SECONDS = 120.0
"""Time that another process may take for a file. The largest weight file, 1 GiB, takes 2 s."""

MOST_MEMORY = 4 << 30
"""Bytes that such a process may allocate: twice the largest archive and its largest array."""

MOST_JSON_BYTES = 256 << 20
"""Limit of a JSON file; the metrics of 100,000 images have 20 MB."""

PIECE_BYTES = 1 << 16
"""Bytes of an archive's member that are unpacked at once."""

ARCHIVE_ERRORS = (
    *(OSError, ValueError, TypeError, EOFError, RuntimeError, SyntaxError, LookupError),
    *(NotImplementedError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What a damaged archive or member raises; an encrypted one raises `RuntimeError`."""

_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KNOWN: set[str] = set()
"""SHA-256 of files that this process wrote, or had read before."""

_FOLDER = "read-before"

_START = f"""\
import sys
path, sys.path[:] = sys.argv[1], sys.argv[2:]
from pneumoscope.reading import limit_memory
limit_memory({MOST_MEMORY})
"""


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, without blocking on a named pipe or a device.

    Raises:
        OSError: it can't be opened, or is not a regular file.
    """
    waitless = getattr(os, "O_NONBLOCK", 0)
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | waitless))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def read_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """The document of a JSON file.

    Raises:
        InputError: the file can't be read, has more than `most` bytes, or is not JSON as
            `parse_json` reads it.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise InputError(
            f"{path}: can't be read as JSON ({error}). Make or copy it anew"
        ) from error
    if len(content) > most:
        raise InputError(
            f"{path}: found more than {most:,} bytes, wanted at most so many. Make or copy it anew"
        )
    return parse_json(content, str(path))


def parse_json(
    content: bytes | str, source: str, note: Callable[[dict[str, Any]], None] | None = None
) -> Any:
    """A JSON document; RFC 8259, sections 4 and 6, more strictly than Python's parser.

    Args:
        content: the text.
        source: where it stands, for the error.
        note: called with every object, from the innermost.

    Raises:
        InputError: it is not JSON, is nested too deeply, repeats a key in one object, or holds a
            number that is not finite (`NaN`, `Infinity`, `1e999`) or has thousands of digits.
    """

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = _without_repeated_keys(pairs)
        if note is not None:
            note(found)
        return found

    try:
        return json.loads(
            content, object_pairs_hook=whole, parse_constant=_finite, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{source}: can't be read as JSON ({error}). Make or copy it anew"
        ) from error


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One JSON object as a dict; Python's parser silently keeps the last of repeated keys."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"found the key {key!r} more than once in one object")
        found[key] = value
    return found


def _finite(text: str) -> float:
    """A number of JSON with a fraction or an exponent, or a constant such as `NaN`."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found the number {text}, expected a finite one")
    return value


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Yield the document of each line of a file, and the offset in bytes at which the line ends.

    The document is `None` if the line is no JSON object with a line feed at its end, as an
    interruption may have left it.
    """
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            end += len(line)
            try:
                document = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                document = None
            yield document if isinstance(document, dict) else None, end


def member_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the unpacked bytes of a member, `PIECE_BYTES` at a time; the caller counts them.

    zipfile checks the CRC after the last one. It unpacks bzip2 and LZMA whole blocks at a time,
    which a file of some KB can make as large as it likes, so these are not read.

    Raises:
        Exception: one of `ARCHIVE_ERRORS`: the member is damaged, encrypted or packed otherwise.
    """
    if member.compress_type not in _PACKINGS:
        raise NotImplementedError(
            f"{member.filename!r} is packed by method {member.compress_type}, wanted 8, deflate"
        )
    with archive.open(member) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def member_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """The unpacked bytes of a member.

    Raises:
        ValueError: it needs more than `most` bytes, by its header or in truth.
        Exception: as `member_pieces`.
    """
    pieces: list[bytes] = []
    size, unpacked = member.file_size, 0
    for piece in member_pieces(archive, member) if size <= most else ():
        pieces.append(piece)
        unpacked += len(piece)
        if (size := max(size, unpacked)) > most:
            break
    if size > most:
        raise ValueError(f"{member.filename} needs {size:,} bytes of memory; {most:,} are allowed")
    return b"".join(pieces)


def vet(path: Path, script: str) -> None:
    """Return if a process that reads `path` ends, whether or not the file is sound.

    HDF5 is a C library, so it can't be interrupted, and files can be made on which it loops for
    ever or crashes. A file that was read once is remembered by its SHA-256 in the cache, so that
    only the first use of a file costs the third of a second that such a process takes. Files that
    pneumoscope wrote itself are remembered when they are written (`vouch`).

    Args:
        path: the file.
        script: Python code that reads the file `path`.

    Raises:
        InputError: reading it does not end within `MOST_SECONDS`, or ends the other process.
    """
    digest = sha256_of_file(path)
    if digest in _KNOWN or _marker(digest).exists():
        return
    # -P: the working folder is not searched for modules.
    command = [sys.executable, "-P", "-c", _START + script, str(path.absolute()), *sys.path]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{path} is damaged: reading it takes more than {MOST_SECONDS:g} s. Copy it again, or "
            "get it anew from its source."
        ) from error
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        words = last or f"signal {-ended.returncode}"
        raise InputError(
            f"{path} can't be read: a process that read it ended with {words}. Copy it again, or "
            "get it anew from its source."
        )
    _remember(digest)


def vouch(path: Path) -> None:
    """Remember that reading `path` ends, because this process wrote it."""
    _remember(sha256_of_file(path))


def _remember(digest: str) -> None:
    """Note a file in this process, and in the cache where that can be written."""
    _KNOWN.add(digest)
    try:
        claim_cache()
        marker = _marker(digest)
        marker.parent.mkdir(exist_ok=True)
        marker.touch()
    except (OSError, MissingError):
        return


def _marker(digest: str) -> Path:
    return cache_folder() / _FOLDER / digest


def limit_memory(most: int) -> None:
    """Limit what this process may allocate to `most` bytes more than now; on Linux alone."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + most
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
