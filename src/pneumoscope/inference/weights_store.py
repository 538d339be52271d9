"""Storage of networks as `.keras` files, in full or half precision, and of array tables.

`save_network` writes a file that plain Keras opens. The same network gives the same bytes, however
many layers this process built before and whenever it is saved: groups without arrays and time
stamps are left out. `save_table` and `read_table` handle the `.npz` files of a bundle, such as the
statistics of the input check.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError
from pneumoscope.graph.archive import CONFIG_MEMBER, METADATA_MEMBER, WEIGHTS_MEMBER
from pneumoscope.reading import ARCHIVE_ERRORS, member_bytes, open_regular, vouch
from pneumoscope.storage import write_bytes

if TYPE_CHECKING:
    import h5py

Precision = Literal["float32", "float16"]

MOST_ROUNDED = 1e-3
"""Largest relative error, by norm, of an array in half precision. Rounding within the range of
float16 gives 3e-4; numbers above 65,504 overflow, and those below 6e-5 lose digits."""

TABLE_SUFFIX = ".npz"
_MOST_BYTES = 64 << 20
_NUMBERS = "biuf"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def save_network(network: Any, path: Path, store: Precision) -> None:
    """Write `network` to `path` (`….keras`), completely or not at all.

    Args:
        network: a Keras model of Keras' own layers.
        path: the file.
        store: with `float16`, kernels (two or more axes) are rounded to half precision. Biases and
            batch normalisation stay in float32: they are small, and moving variances may have any
            positive value. A kernel whose rounding error exceeds `MOST_ROUNDED` stays in float32
            too. Keras reads both into float32.

    Raises:
        OSError: the disk is full or the folder can't be written.
    """
    content = io.BytesIO()
    about = {"keras_version": metadata.version("keras")}
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in (
            (METADATA_MEMBER, json.dumps(about)),
            (CONFIG_MEMBER, network.to_json()),
        ):
            archive.writestr(_member(name), text, zipfile.ZIP_DEFLATED)
        archive.writestr(_member(WEIGHTS_MEMBER), _packed(network, path, store))
    write_bytes(path, content.getvalue())
    vouch(path)


def _member(name: str) -> zipfile.ZipInfo:
    """An archive entry with a fixed time stamp."""
    return zipfile.ZipInfo(name)


def _packed(network: Any, path: Path, store: Precision) -> bytes:
    """The weights as an HDF5 file."""
    import h5py

    whole = path.with_name(f"whole.{path.stem}.weights.h5")
    packed = io.BytesIO()
    try:
        network.save_weights(whole)
        with h5py.File(whole, "r") as source, h5py.File(packed, "w") as target:
            _copy(source, target, store)
    finally:
        whole.unlink(missing_ok=True)
    return packed.getvalue()


def _copy(source: h5py.Group, target: h5py.Group, store: Precision) -> None:
    """Copy the arrays of a group, and its subgroups that hold any."""
    import h5py

    target.attrs.update(source.attrs)
    for name, item in source.items():
        if isinstance(item, h5py.Dataset):
            array = np.asarray(item[()])
            copied = target.create_dataset(
                name, data=_rounded(array) if store != "float32" else array
            )
            copied.attrs.update(item.attrs)
        elif _holds_arrays(item):
            _copy(item, target.create_group(name), store)


def _holds_arrays(group: h5py.Group) -> bool:
    import h5py

    return any(isinstance(item, h5py.Dataset) or _holds_arrays(item) for item in group.values())


def _rounded(array: NDArray[Any]) -> NDArray[Any]:
    """The array in half precision if the error is small enough, else unchanged."""
    if array.dtype != np.float32 or array.ndim < 2:
        return array
    exact = array.astype(np.float64).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        half = array.astype(np.float16)
        error = np.linalg.norm(half.ravel() - exact)
        near = bool(error <= MOST_ROUNDED * np.linalg.norm(exact))  # False if one is not finite
    return half if near else array


Table = Mapping[str, NDArray[Any]]


def save_table(path: Path, table: Table) -> None:
    """Write arrays of numbers by name; the same arrays give the same bytes."""
    with path.open("xb") as stream:
        np.savez_compressed(stream, **table)  # type: ignore[arg-type]  # its stub wants a bool


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file of `save_table`.

    Raises:
        BundleError: it is not such a file, is damaged, holds objects instead of numbers, or would
            exhaust memory.
    """
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            table, left = {}, _MOST_BYTES
            for member in archive.infolist():
                content = member_bytes(archive, member, left)
                left -= len(content)
                table[member.filename.removesuffix(".npy")] = _array_of(content)
            return table
    except ARCHIVE_ERRORS as error:
        raise BundleError(
            f"{path}: can't be read ({error}); wanted arrays of numbers. Copy the bundle again."
        ) from error


def _array_of(content: bytes) -> NDArray[Any]:
    """The array of a `.npy` file.

    Raises:
        ValueError: it is none, or states another size than it has.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"found version {version} of the .npy format, wanted 1.0 or 2.0")
    shape, _, kind = _HEADERS[version](stream)
    stated, found = math.prod(shape) * kind.itemsize, len(content) - stream.tell()
    if kind.kind not in _NUMBERS or stated != found:
        raise ValueError(f"found {found} bytes for {kind} {shape}")
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array
