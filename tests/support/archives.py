"""`.keras` files taken apart and put together again, for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from pneumoscope.graph.archive import WEIGHTS_MEMBER


@contextmanager
def stored_weights(path: Path) -> Iterator[Any]:
    """The HDF5 file inside a `.keras` file, to read."""
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read(WEIGHTS_MEMBER))
    with h5py.File(content, "r") as file:
        yield file


@contextmanager
def changed_weights(path: Path) -> Iterator[Any]:
    """The HDF5 file inside a `.keras` file, to change."""
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read(WEIGHTS_MEMBER))
    with h5py.File(content, "r+") as file:
        yield file
    put_member(path, WEIGHTS_MEMBER, content.getvalue())


def put_member(path: Path, name: str, content: bytes) -> None:
    """Exchange a file of the archive, or add one."""
    members = {}
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
