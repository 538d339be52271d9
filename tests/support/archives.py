"""`.keras` files taken apart and put together again, for tests."""

from __future__ import annotations

import io
import zipfile
import zlib
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


def lying_archive(path: Path, name: str, content: bytes, *, zeros: int, packing: int) -> Path:
    """A ZIP file whose only member is `zeros` bytes longer than its header states."""
    with zipfile.ZipFile(path, "w", packing) as archive, archive.open(name, "w") as stream:
        stream.write(content)
        stream.write(bytes(zeros))
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\1\2") + 24
    raw[place : place + 4] = len(content).to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def bomb_weights(path: Path, zeros: int) -> Path:
    """An HDF5 weight file whose packed chunk of 16 KB unpacks to `zeros` bytes."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "dense"
        stored = group.create_dataset("0", (4096,), "f4", chunks=(4096,), compression="gzip")
        stored.id.write_direct_chunk((0,), zlib.compress(bytes(zeros)))
    return path
