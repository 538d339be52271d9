"""Find out whether reading a weight file comes to an end, before this process reads it.

HDF5 is a C library, so it can't be interrupted, and files can be made on which it loops for ever or
crashes. `vet` therefore has another process read a file first, with a time limit. A file that was
read once is remembered by its SHA-256 in the cache, so that only the first use of a file costs the
third of a second that such a process takes. Files that pneumoscope wrote itself are remembered when
they are written (`vouch`), and the model that ships needs no check.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pneumoscope.errors import InputError, MissingError
from pneumoscope.graph.bundle_files import default_folder
from pneumoscope.storage import cache_folder, claim_cache, sha256_of_file

MOST_SECONDS = 120.0
"""Time that reading a file may take. The largest allowed file, 1 GiB, takes about 2 s."""

_FOLDER = "read-before"
_KNOWN: set[str] = set()
"""SHA-256 of files that this process wrote, or had read before."""

_READ = """\
import sys
path, sys.path[:] = sys.argv[1], sys.argv[2:]
from pneumoscope.errors import InputError
from pneumoscope.graph.archive import read_all
try:
    read_all(path)
except InputError:
    pass  # reported with all its words when the file is read in earnest
"""


def vet(path: Path) -> None:
    """Return if reading `path` ends, whether or not the file is sound.

    Raises:
        InputError: reading it does not end within `MOST_SECONDS`, or ends the other process.
    """
    if path.resolve().is_relative_to(default_folder().resolve()):
        return
    digest = sha256_of_file(path)
    if digest in _KNOWN or _marker(digest).exists():
        return
    # -P: the working folder is not searched for modules.
    command = [sys.executable, "-P", "-c", _READ, str(path.absolute()), *sys.path]
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
