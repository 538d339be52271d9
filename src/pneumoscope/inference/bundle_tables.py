"""Arrays that a bundle holds besides its weights: what an input check or an engine measured.

Comes in: named arrays, a file. Goes out: a `.npz` of numbers only, or the arrays again. Knows
nothing of what they mean.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError

TABLE_SUFFIX = ".npz"

Table = Mapping[str, NDArray[Any]]

_MOST_BYTES = 64 << 20


def save_table(path: Path, table: Table) -> None:
    """Write arrays of numbers, by name; the same arrays make the same bytes."""
    with path.open("xb") as stream:
        np.savez_compressed(stream, **table)  # type: ignore[arg-type]  # its stub wants a bool


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file of `save_table`.

    Raises:
        BundleError: it is no such file, holds objects instead of numbers, or would fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"{size} bytes are more than any table of ours")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path}: can't be read ({error}), wanted arrays of numbers. Copy the bundle again."
        ) from error
