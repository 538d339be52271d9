"""Compiled graphs on disk that are what this user's programs have put there.

A compiled graph holds the weights, and the engine takes it as it is: a few changed bytes change
every result, and nothing else tells. So each file has a digest beside it, made with a key that this
user alone has (HMAC, RFC 2104). A file without the right one is removed, and the graph is compiled
again. The folder belongs to the user alone; one that others can write is not used.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pneumoscope.storage import sha256_of_file, write_bytes

_KEY_FILE = "key"
_KEY_BYTES = 32
_SUFFIX = ".blob"
_DIGEST_SUFFIX = ".hmac"


class SharedFolderError(Exception):
    """Others than this user can write into the folder."""


class KeptGraphs:
    """A folder of compiled graphs.

    Args:
        folder: is there, and is made this user's alone.

    Raises:
        SharedFolderError: it belongs to somebody else.
        OSError: it can't be read or written.
    """

    def __init__(self, folder: Path) -> None:
        _make_private(folder)
        self._folder = folder
        self._key = _key(folder / _KEY_FILE)
        for path in folder.glob(f"*{_SUFFIX}"):  # of a version that kept no digests
            path.unlink(missing_ok=True)

    def place(self, settings: Mapping[str, object]) -> Path:
        """The folder for graphs of these settings, so that few have to be looked through."""
        name = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
        place = self._folder / name
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def remove_strange(self, place: Path) -> list[Path]:
        """Remove the graphs that have no digest, or a wrong one; returns which."""
        strange = []
        for path in sorted(place.glob(f"*{_SUFFIX}")):
            try:
                stated = _digest_file(path).read_bytes()
                same = hmac.compare_digest(stated, self._digest(path))
            except OSError:
                same = False
            if not same:
                strange.append(path)
                with suppress(OSError):
                    path.unlink()
                    _digest_file(path).unlink(missing_ok=True)
        return strange

    def sign(self, place: Path) -> None:
        """Put a digest beside each graph that has none."""
        for path in place.glob(f"*{_SUFFIX}"):
            if not _digest_file(path).exists():
                with suppress(OSError):  # another process looked it through at this moment
                    write_bytes(_digest_file(path), self._digest(path))

    def _digest(self, path: Path) -> bytes:
        text = f"{path.name} {sha256_of_file(path)}"
        return hmac.new(self._key, text.encode(), "sha256").digest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(_DIGEST_SUFFIX)


def _make_private(folder: Path) -> None:
    if not hasattr(os, "getuid"):  # Windows keeps a user's folders private
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise SharedFolderError(f"{folder} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _key(path: Path) -> bytes:
    """This user's key; made if it is not there, or others could have read or made it."""
    for _ in range(2):
        with suppress(OSError):
            found = path.stat()
            alone = not hasattr(os, "getuid") or (
                found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
            )
            key = path.read_bytes()
            if alone and len(key) == _KEY_BYTES:
                return key
            path.unlink()
        with suppress(FileExistsError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "wb") as stream:
                stream.write(secrets.token_bytes(_KEY_BYTES))
    return path.read_bytes()
