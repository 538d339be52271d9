"""Reading of `.keras` and HDF5 weight files without Keras and without trusting them.

A `.keras` file is a ZIP archive of `config.json` (layers and connections), `model.weights.h5`
(arrays) and `metadata.json`. `read_network` checks the sizes before anything is unpacked, accepts
only layers that `layers.py` supports, and executes no part of the description.

`open_weight_file` opens the arrays: an HDF5 file of the old layout (`.h5`, with or without a model
around the weights) or of Keras 3 (`.weights.h5`), or the one inside a `.keras` archive. It ignores
the model description. It rejects links to other files, and arrays that would exhaust memory, before
it reads any data.

Another process reads an unknown file first (`reading.vet`); the model that ships needs no check.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError, InputError
from pneumoscope.graph.bundle_files import (
    HIDDEN_LAYER,
    OUTPUT_LAYER,
    POOL_LAYER,
    Architecture,
    default_folder,
)
from pneumoscope.graph.layers import unknown_layers
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.plan import Plan, read_plan
from pneumoscope.reading import ARCHIVE_ERRORS, member_bytes, open_regular, parse_json, vet

if TYPE_CHECKING:
    import h5py

_READ = """\
from pneumoscope.errors import InputError
from pneumoscope.graph.archive import read_all
try:
    read_all(path)
except InputError:
    pass  # reported with all its words when the file is read in earnest
"""

MAX_BYTES = 1 << 30
"""Limit on the bytes of a file, and of all its unpacked arrays. DenseNet121 has 33 MB."""

WEIGHTS_MEMBER = "model.weights.h5"
"""The HDF5 file inside a `.keras` archive."""

_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_CHECKSUM_BYTES = 4
_MAX_OBJECTS = 50_000
_MAX_DEPTH = 32
_MAX_ATTRIBUTE_BYTES = 16 << 20
_WAY_OUT = "Give a file that Keras saved for the same backbone, or choose --weights none."
CONFIG_MEMBER = "config.json"
METADATA_MEMBER = "metadata.json"
_MAX_CONFIG_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class StoredLayers:
    """The weights in an open file.

    Attributes:
        by_name: arrays of each layer in Keras' order (a convolution's kernel; gamma, beta, moving
            mean and moving variance of batch normalisation).
        in_order: whether the layers keep the model's order, as only the old layout does.
    """

    by_name: Mapping[str, tuple[h5py.Dataset, ...]]
    in_order: bool

    def assign(self, names: Collection[str]) -> dict[str, tuple[h5py.Dataset, ...]]:
        """The arrays of the layers `names`, as far as the file has them.

        Layers are matched by name. If names differ and a file of the old layout has as many layers,
        they are matched by position, as Keras does.
        """
        found = {name: self.by_name[name] for name in names if name in self.by_name}
        if len(found) < len(names) == len(self.by_name) and self.in_order:
            return dict(zip(names, self.by_name.values(), strict=True))
        return found


@contextmanager
def open_weight_file(path: Path, names: Collection[str] = ()) -> Iterator[StoredLayers]:
    """Open `path` and list its layers.

    Args:
        path: the file.
        names: names of the wanted layers. They identify layers whose names a file writes with
            slashes (`conv1/conv`) or inside another model (`densenet121/conv1_conv`).

    Raises:
        InputError: the file is neither HDF5 nor `.keras`, is damaged, links to other files, or is
            too large when unpacked.
    """
    try:
        with open_regular(path) as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error}. {_WAY_OUT}") from error
    if not magic.startswith((_MAGIC, _ZIP_MAGIC)):
        raise InputError(f"{path} is not an HDF5 file: it begins with {magic!r}. {_WAY_OUT}")
    if not path.resolve().is_relative_to(default_folder().resolve()):
        vet(path, _READ)
    with _opened(path, zipped=magic.startswith(_ZIP_MAGIC), names=names) as layers:
        yield layers


def read_all(path: str) -> None:
    """Read every array of a file, as `vet` wants it done in a process of its own.

    Raises:
        InputError: as `open_weight_file` does.
    """
    with _opened(Path(path), zipped=zipfile.is_zipfile(path)) as layers:
        for datasets in layers.by_name.values():
            for each in datasets:
                each[()]


@contextmanager
def _opened(path: Path, *, zipped: bool, names: Collection[str] = ()) -> Iterator[StoredLayers]:
    import h5py

    source: Path | io.BytesIO = path
    if zipped:
        source = io.BytesIO(read_member(path, WEIGHTS_MEMBER, MAX_BYTES))
    _check_size(path, path.stat().st_size)
    try:
        with h5py.File(source, "r") as file:
            _check_objects(path, file)
            yield _layers_of(path, file, names)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. {_WAY_OUT}") from error


def read_member(path: Path, name: str, most: int) -> bytes:
    """Read one file of a `.keras` archive.

    Args:
        path: the archive.
        name: name of the file in it.
        most: largest allowed size when unpacked, bytes.

    Raises:
        InputError: it is not an archive, lacks the file, is damaged, or the file is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return member_bytes(archive, archive.getinfo(name), most)
    except KeyError as error:
        raise InputError(f"{path}: holds no {name}; wanted a file saved by Keras.") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"{path} is neither an HDF5 file nor an archive written by Keras: {error}."
        ) from error
    except ARCHIVE_ERRORS as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def read_array(path: Path, layer: str, dataset: h5py.Dataset) -> NDArray[np.float32]:
    """Read one stored array as float32.

    Raises:
        InputError: it is not floating point, or holds non-finite numbers.
    """
    counter = dataset.dtype.kind in "iu" and dataset.shape == ()  # a layer's sample counter
    if dataset.dtype.kind != "f" and not counter:
        raise InputError(f"{path}: layer {layer!r} holds {dataset.dtype}; wanted floating point")
    array: NDArray[np.float32] = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: layer {layer!r} holds non-finite numbers. {_WAY_OUT}")
    return array


def _check_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(
            f"{path} needs {size:,} bytes of memory; {MAX_BYTES:,} are allowed. {_WAY_OUT}"
        )


def _check_objects(path: Path, file: h5py.File) -> None:
    """Check every group and array once, without reading any data."""
    import h5py

    seen = {int(h5py.h5o.get_info(file.id).addr)}
    total = 0
    waiting = [(file["/"], 0)]
    while waiting:
        group, depth = waiting.pop()
        if depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            raise InputError(f"{path} is nested too deeply or holds too many objects. {_WAY_OUT}")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{path}: {name!r} is a link to another place. {_WAY_OUT}")
            item = group[name]
            address = int(h5py.h5o.get_info(item.id).addr)
            if address in seen:
                raise InputError(f"{path}: {name!r} occurs twice in the file. {_WAY_OUT}")
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                total += _unpacked_bytes(path, item)
                _check_size(path, total)


def _unpacked_bytes(path: Path, dataset: h5py.Dataset) -> int:
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{path}: {dataset.name} stores its data in another file. {_WAY_OUT}")
    # Reading one number unpacks a whole chunk, and a chunk may be larger than its array.
    chunk = math.prod(dataset.chunks or ()) * int(dataset.dtype.itemsize)
    total = max(math.prod(dataset.shape or ()) * int(dataset.dtype.itemsize), chunk)
    _check_size(path, total)
    _check_chunks(path, dataset, chunk)
    return total


def _check_chunks(path: Path, dataset: h5py.Dataset, chunk: int) -> None:
    """Check that every packed chunk unpacks to its size: HDF5 unpacks whatever is there."""
    import h5py

    packings = dataset.id.get_create_plist()
    used = [packings.get_filter(k)[0] for k in range(packings.get_nfilters())]
    if not used:
        return
    if {*used} - {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_DEFLATE}:
        raise InputError(f"{path}: {dataset.name} is not packed with gzip alone. {_WAY_OUT}")
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    most = math.prod(-(-side // part) for side, part in sides)
    largest = max((each.size for each in chunks), default=0)
    if (
        len(chunks) > most
        or largest > dataset.file.id.get_filesize()
        or used.count(h5py.h5z.FILTER_DEFLATE) > 1
    ):
        raise InputError(f"{path}: {dataset.name} has other chunks than it states. {_WAY_OUT}")
    if h5py.h5z.FILTER_DEFLATE not in used:
        return
    unpacked = 1 << used.index(h5py.h5z.FILTER_DEFLATE)
    for each in chunks:
        if each.filter_mask & unpacked:  # stored as it is, since packing did not shorten it
            continue
        _, packed = dataset.id.read_direct_chunk(each.chunk_offset)
        if _unpacks_to_more(packed, chunk + _CHECKSUM_BYTES):
            raise InputError(
                f"{path}: a chunk of {dataset.name} needs more than the {chunk:,} bytes of memory "
                f"that it states. {_WAY_OUT}"
            )


def _unpacks_to_more(packed: bytes, most: int) -> bool:
    try:
        return len(zlib.decompressobj().decompress(packed, most + 1)) > most
    except zlib.error:  # HDF5 reports it
        return False


def _layers_of(path: Path, file: h5py.File, names: Collection[str]) -> StoredLayers:
    root = file["/"]
    if _strings(path, root, "layer_names") == [] and "model_weights" in root:
        root = _group(root, "model_weights")
    if legacy := _strings(path, root, "layer_names"):
        return StoredLayers(_legacy_layers(path, root, legacy, frozenset(names)), in_order=True)
    return StoredLayers(_keras3_layers(path, root, frozenset(names)), in_order=False)


def _legacy_layers(
    path: Path, root: h5py.Group, layer_names: list[str], names: frozenset[str]
) -> dict[str, tuple[h5py.Dataset, ...]]:
    """Layers of the old layout: one group per layer, which lists its weights by name."""
    layers: dict[str, list[Any]] = {}
    for layer_name in layer_names:
        group = _group(root, layer_name)
        for weight_name in _strings(path, group, "weight_names"):
            owner = _owner_of(layer_name, weight_name, names)
            layers.setdefault(owner, []).append(_dataset(group, weight_name))
    return {name: tuple(datasets) for name, datasets in layers.items()}


def _owner_of(layer_name: str, weight_name: str, names: frozenset[str]) -> str:
    """The wanted layer that a weight belongs to; the file's own layer name if there is none.

    A weight's name begins with its layer's name, preceded by the names of nested models.
    """
    plain = layer_name.replace("/", "_")
    if plain in names:
        return plain
    parts = weight_name.split("/")[:-1]
    for start in range(len(parts)):
        if (candidate := "_".join(parts[start:])) in names:
            return candidate
    return plain


def _keras3_layers(
    path: Path, root: h5py.Group, names: frozenset[str]
) -> dict[str, tuple[h5py.Dataset, ...]]:
    """Layers of Keras 3: groups `vars` with arrays `0`, `1`, …; an attribute names the layer."""
    import h5py

    layers: dict[str, tuple[Any, ...]] = {}
    unnamed = 0
    waiting = [root]
    while waiting:
        group = waiting.pop()
        if "vars" in group:
            variables = _group(group, "vars")
            keys = sorted((key for key in variables if key.isdecimal()), key=int)
            name = variables.attrs.get("name")
            if keys and not isinstance(name, str):
                unnamed += 1
            elif keys and name in layers and name in names:
                raise InputError(f"{path} holds two layers named {name!r}. {_WAY_OUT}")
            elif keys:
                layers[str(name)] = tuple(_dataset(variables, key) for key in keys)
        waiting += [
            item for key, item in group.items() if key != "vars" and isinstance(item, h5py.Group)
        ]
    if unnamed and not layers:
        raise InputError(
            f"{path} does not name its layers, as early versions of Keras 3 did. Load it into its "
            "model with that version and save it with a current Keras."
        )
    return layers


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    import h5py

    item = group[name]
    if not isinstance(item, h5py.Dataset):
        raise TypeError(f"{item.name!r} is not an array")
    return item


def _group(group: h5py.Group, name: str) -> h5py.Group:
    import h5py

    item = group[name]
    if not isinstance(item, h5py.Group):
        raise TypeError(f"{item.name!r} is not a group")
    return item


def _strings(path: Path, group: h5py.Group, name: str) -> list[str]:
    """A list of strings in the attributes; long lists are stored in pieces, `name0`, `name1`."""
    import h5py

    numbered = (f"{name}{number}" for number in count())
    pieces = [name] if name in group.attrs else takewhile(lambda n: n in group.attrs, numbered)
    found: list[str] = []
    for piece in pieces:
        attribute = h5py.h5a.open(group.id, piece.encode())
        entries = attribute.get_space().get_simple_extent_npoints()
        if entries * attribute.get_type().get_size() > _MAX_ATTRIBUTE_BYTES:
            raise InputError(f"{path}: the list {piece!r} is too long. {_WAY_OUT}")
        for entry in group.attrs[piece]:
            found.append(entry.decode("utf-8") if isinstance(entry, bytes) else str(entry))
    return found


def read_network(path: Path, architecture: Architecture) -> NetworkArrays:
    """Read a network of a bundle.

    Args:
        path: a `.keras` file.
        architecture: the architecture it must have.

    Raises:
        BundleError: it is damaged, would exhaust memory, holds non-finite numbers, has unsupported
            layers, or has another architecture.
    """
    try:
        plan = read_description(path)
        names = [layer.name for layer in plan.layers]
        with open_weight_file(path, names) as stored:
            found = {name: stored.by_name[name] for name in names if name in stored.by_name}
            layers = {
                name: tuple(read_array(path, name, each) for each in datasets)
                for name, datasets in found.items()
            }
    except InputError as error:
        raise BundleError(f"{path}: does not fit {architecture}: {error}. Train again.") from error
    network = NetworkArrays(plan, layers)
    _check(path, network, architecture)
    return network


def read_description(path: Path) -> Plan:
    """Read the layers of a `.keras` file and their connections.

    Raises:
        InputError: it is not such a file, or is damaged.
        BundleError: it describes another kind of model, or has layers or classes that are not part
            of Keras.
    """
    content = read_member(path, CONFIG_MEMBER, _MAX_CONFIG_BYTES)
    modules: set[str] = set()

    def note_module(part: dict[str, Any]) -> None:
        """Collect every `module` that the description names, at any depth."""
        if part.get("module") is not None:
            modules.add(str(part["module"]))

    document = parse_json(content, f"{path}: {CONFIG_MEMBER}", note_module)
    foreign = sorted(each for each in modules if not _is_keras(each))
    if foreign:
        raise BundleError(
            f"{path}: names code of {foreign[0]!r}; wanted Keras' own layers and no other code. "
            "Train again with layers of Keras."
        )
    plan = read_plan(document)
    if unknown := unknown_layers(plan):
        raise BundleError(
            f"{path}: holds layers of type {', '.join(unknown)}, which this version can't run."
        )
    return plan


def _is_keras(module: str) -> bool:
    return module == "keras" or module.startswith("keras.")


def _check(path: Path, network: NetworkArrays, architecture: Architecture) -> None:
    """Check that the network has the expected architecture.

    Raises:
        BundleError: it has another one.
    """
    units, plan = architecture.hidden_units, network.plan
    shape = plan.layers[0].settings.get("batch_shape")
    size = architecture.size
    plan.layer(POOL_LAYER)
    hidden, output = ([a.shape for a in network.of(name)] for name in (HIDDEN_LAYER, OUTPUT_LAYER))
    wanted = [(network.width, units), (units,), (units, 1), (1,)]
    if hidden + output != wanted or shape != [None, size, size, 3]:
        raise BundleError(
            f"{path}: does not fit {architecture}: found images of {shape} and a head of "
            f"{hidden + output}, wanted {[None, size, size, 3]} and {wanted}. Train again."
        )
