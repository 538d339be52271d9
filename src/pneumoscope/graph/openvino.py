"""Graphs as OpenVINO models: building, compiling, and the cache of compiled graphs.

`build_model` and `build_frozen_part` write networks with `OpenVinoWriter`; `compile_model` makes
them ready to run. OpenVINO is imported on first use.

A compiled graph contains the weights, and the engine does not check it: a few changed bytes would
change every result unnoticed. So `GraphCache` keeps a digest beside each graph, made with a key
that only this user has (HMAC, RFC 2104). A graph without a valid digest is removed and compiled
again. The folder is private to the user; a folder that belongs to another user is not used.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import os
import secrets
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.graph.network import NetworkArrays, write_average, write_feature_map
from pneumoscope.graph.writer import (
    INT8_LEVELS,
    NO_EDGES,
    Device,
    Edges,
    Floats,
    Pair,
    Ranges,
    largest_per_output,
)
from pneumoscope.storage import sha256_of_file, write_bytes

_KEY_FILE = "key"
_KEY_BYTES = 32
_SUFFIX = ".blob"
_DIGEST_SUFFIX = ".hmac"

_LOGGER = logging.getLogger(__name__)
_CONVERTER = "openvino.tools.ovc"
OUTPUTS = ("logit", "cam", "embedding")
_CONVOLUTION = "convolution-"
_FUNCTIONS = {"silu": "swish", "hard_silu": "hswish", "hard_sigmoid": "hsigmoid"}
"""OpenVINO's names for them."""


class SharedFolderError(Exception):
    """The cache folder belongs to another user."""


class GraphCache:
    """A folder of compiled graphs with a digest for each.

    Args:
        folder: an existing folder; its permissions are restricted to this user.

    Raises:
        SharedFolderError: it belongs to another user.
        OSError: it can't be read or written.
    """

    def __init__(self, folder: Path) -> None:
        _make_private(folder)
        self._folder = folder
        self._key = _key(folder / _KEY_FILE)
        for path in folder.glob(f"*{_SUFFIX}"):  # written by a version without digests
            path.unlink(missing_ok=True)

    def place(self, settings: Mapping[str, object]) -> Path:
        """The subfolder for graphs with these settings, so that only few files are checked."""
        name = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]
        place = self._folder / name
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def remove_unsigned(self, place: Path) -> list[Path]:
        """Remove the graphs whose digest is missing or wrong; returns their paths."""
        unsigned = []
        for path in sorted(place.glob(f"*{_SUFFIX}")):
            try:
                stated = _digest_file(path).read_bytes()
                same = hmac.compare_digest(stated, self._digest(path))
            except OSError:
                same = False
            if not same:
                unsigned.append(path)
                with suppress(OSError):
                    path.unlink()
                    _digest_file(path).unlink(missing_ok=True)
        return unsigned

    def sign(self, place: Path) -> None:
        """Write a digest beside each graph that has none."""
        for path in place.glob(f"*{_SUFFIX}"):
            if not _digest_file(path).exists():
                with suppress(OSError):  # another process removed it at this moment
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
    """This user's key; created if it is missing, or others could have read or made it."""
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


def build_model(
    networks: Sequence[NetworkArrays],
    size: int,
    batch: int,
    *,
    flip: bool = False,
    ranges: Ranges | None = None,
) -> Any:
    """Build networks as one model: `images`, float32 (n, size, size, 3), to `OUTPUTS`.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        batch: images per pass.
        flip: also run mirror images, as the bundle states.
        ranges: activation ranges of the convolutions for int8; `None` for floating point.

    Raises:
        BundleError: a layer is missing from the arrays, or `ranges` belong to another network.
    """
    to = OpenVinoWriter(ranges)
    images = to.parameter((batch, size, size, 3), np.float32, "images")
    channels_first = to.operations.transpose(images, np.array([0, 3, 1, 2]))
    outputs = write_average(to, networks, channels_first, size, flip=flip)
    to.check_ranges()
    nodes = outputs.logit, outputs.cam, outputs.embedding
    return to.model(images, dict(zip(OUTPUTS, nodes, strict=True)))


def build_frozen_part(
    network: NetworkArrays,
    size: int,
    batch: int,
    boundary: str | None,
    ranges: Ranges | None = None,
) -> Any:
    """Build the frozen part of a network: `images`, float32 (n, size, size, 3), to `rows`.

    Args:
        network: the backbone's arrays.
        size: side of the images, pixels.
        batch: images per pass.
        boundary: the layer where it ends, giving maps (n, h, w, c); `None` gives pooled features
            (n, c).
        ranges: activation ranges of its convolutions for int8; `None` for floating point.

    Raises:
        BundleError: `ranges` belong to another network.
    """
    to = OpenVinoWriter(ranges)
    images = to.parameter((batch, size, size, 3), np.float32, "images")
    channels_first = to.operations.transpose(images, np.array([0, 3, 1, 2]))
    maps = write_feature_map(to, network, channels_first, size, boundary).node
    to.check_ranges()
    if boundary is None:
        return to.model(images, {"rows": to.reduce("mean", maps, (2, 3))})
    return to.model(images, {"rows": to.operations.transpose(maps, np.array([0, 2, 3, 1]))})


def compile_model(
    model: Any,
    floats: Floats,
    cache: Path | None = None,
    requests: int = 1,
    device: Device = "CPU",
) -> Any:
    """Compile a model, or the file of one.

    Args:
        model: made by this module; if built with ranges, its convolutions run in int8.
        floats: floating-point type of everything else.
        cache: folder of compiled graphs; `None` disables caching.
        requests: number of parallel requests; the threads are divided among them. It is a fifth
            faster than all threads on one request, which synchronise after every node.
        device: the processor, or a GPU that OpenVINO supports.
    """
    settings: dict[str, Any] = {
        # Always set, because by default OpenVINO uses bfloat16 wherever the processor supports it.
        "INFERENCE_PRECISION_HINT": floats,
        "PERFORMANCE_HINT": "THROUGHPUT" if requests > 1 else "LATENCY",
    }
    if requests > 1:
        settings["PERFORMANCE_HINT_NUM_REQUESTS"] = requests
    core = load_openvino().Core()
    try:
        kept = None if cache is None else GraphCache(cache)
        place = None if kept is None else kept.place(settings)
    except (OSError, SharedFolderError) as error:
        _LOGGER.info("compiled graphs are not cached, so every start takes longer: %s", error)
        kept = place = None
    if kept is None or place is None:
        return core.compile_model(model, device, settings)
    for path in kept.remove_unsigned(place):
        _LOGGER.info("%s: was changed after it was written; the graph is compiled again", path)
    compiled = core.compile_model(model, device, {**settings, "CACHE_DIR": str(place)})
    kept.sign(place)
    return compiled


def has_graphics() -> bool:
    """Whether OpenVINO detects a GPU that it supports."""
    return any(name.startswith("GPU") for name in load_openvino().Core().available_devices)


def capabilities() -> frozenset[str]:
    """Precisions that the processor supports according to OpenVINO: `BF16`, `INT8`, …."""
    return frozenset(load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def processor() -> str:
    """Name of the processor according to OpenVINO."""
    return str(load_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def version() -> str:
    """Version of OpenVINO, for cache keys."""
    return str(load_openvino().__version__)


def load_openvino() -> Any:
    """Import OpenVINO without its model converter.

    The converter is not used here, takes a quarter of the import time, and loads a module that
    reports usage over the network. If OpenVINO was imported before, it is not changed.
    """
    blocked = "openvino" not in sys.modules
    if blocked:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if blocked:
            del sys.modules[_CONVERTER]


def convolutions_of(model: Any) -> list[Any]:
    """The convolutions of a model of this module, in the order in which they were written."""
    found = {
        int(name.removeprefix(_CONVOLUTION)): node
        for node in model.get_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution")
        and (name := node.get_friendly_name()).startswith(_CONVOLUTION)
    }
    return [found[number] for number in sorted(found)]


class OpenVinoWriter:
    """Writes nodes of OpenVINO's operation set.

    Args:
        ranges: activation ranges of the convolutions to be written, which makes the engine compute
            them in int8; `None` for floating point.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.openvino = load_openvino()
        self.operations = importlib.import_module("openvino.opset13")
        self._ranges = ranges
        self._convolutions = 0

    def parameter(self, shape: Sequence[int], kind: Any, name: str) -> Any:
        """An input of the graph; -1 marks a dynamic dimension."""
        node = self.operations.parameter(list(shape), kind, name=name)
        node.output(0).set_names({name})
        return node

    def model(self, given: Any, outputs: Mapping[str, Any]) -> Any:
        """The finished model, from its input to its named outputs."""
        results = []
        for name, node in outputs.items():
            # A node may have several outputs; an output object is used as it is.
            output = node.output(0) if hasattr(node, "output") else node
            output.set_names({name})
            results.append(self.operations.result(output))
        return self.openvino.Model(results, [given], "pneumoscope")

    def constant(self, value: NDArray[np.generic]) -> Any:
        """A constant array in the graph."""
        return self.operations.constant(value)

    def convolution(
        self,
        x: Any,
        kernel: Float32Array,
        strides: Pair = (1, 1),
        edges: Edges = NO_EDGES,
        groups: int = 1,
        dilation: Pair = (1, 1),
    ) -> Any:
        """Convolve (n, in, h, w) with a kernel (out, in / groups, h, w); `edges` are zeros."""
        number = self._convolutions
        self._convolutions += 1
        weights = self.constant(kernel)
        if self._ranges is not None and self._ranges.has(number):
            x = self._rounded(x, *self._ranges.of(number), INT8_LEVELS)
            most = largest_per_output(kernel)
            weights = self._rounded(weights, -most, most, INT8_LEVELS - 1)
        convolution = self.operations.convolution
        if groups > 1:
            convolution = self.operations.group_convolution
            shape = (groups, kernel.shape[0] // groups, *kernel.shape[1:])
            weights = self.operations.reshape(weights, np.array(shape), False)
        node = convolution(
            x, weights, list(strides), list(edges[:2]), list(edges[2:]), list(dilation)
        )
        node.set_friendly_name(f"{_CONVOLUTION}{number}")
        return node

    def _rounded(self, x: Any, low: Float32Array, high: Float32Array, levels: int) -> Any:
        """Clip the values to a range and round them to `levels` equally spaced values in it."""
        ends = [self.constant(end) for end in (low, high)]
        return self.operations.fake_quantize(x, *ends, *ends, levels)

    def check_ranges(self) -> None:
        """Check that there was exactly one range for each convolution written.

        Raises:
            BundleError: the ranges belong to another network.
        """
        if self._ranges is not None:
            self._ranges.check(self._convolutions)

    def pool(self, x: Any, kind: str, size: Pair, strides: Pair, edges: Edges = NO_EDGES) -> Any:
        """The `max` or `mean` over windows; added edges are ignored."""
        first, last = list(edges[:2]), list(edges[2:])
        if kind == "mean":
            return self.operations.avg_pool(x, list(strides), first, last, list(size), True)
        return self.operations.max_pool(x, list(strides), [1, 1], first, last, list(size)).output(0)

    def pad(self, x: Any, edges: Edges) -> Any:
        """Add zeros around a map."""
        first, last = (np.array([0, 0, *each]) for each in (edges[:2], edges[2:]))
        return self.operations.pad(x, first, last, "constant", np.float32(0))

    def concatenate(self, nodes: Sequence[Any], axis: int) -> Any:
        """Concatenate nodes along an axis."""
        return self.operations.concat(list(nodes), axis)

    def combine(self, kind: str, a: Any, b: Any) -> Any:
        """Combine two nodes elementwise."""
        return getattr(self.operations, kind)(a, b)

    def apply(self, kind: str, x: Any) -> Any:
        """Apply a function elementwise."""
        if kind == "step":
            above = self.operations.greater(x, self.constant(np.zeros(1, np.float32)))
            return self.as_float(above)
        if kind == "round":
            return self.operations.round(x, "half_to_even")
        if kind == "relu6":
            return self.operations.clamp(x, 0.0, 6.0)
        return getattr(self.operations, _FUNCTIONS.get(kind, kind))(x)

    def product(self, a: Any, b: Any) -> Any:
        """Matrix product."""
        return self.operations.matmul(a, b, False, False)

    def reduce(self, kind: str, x: Any, axes: Sequence[int], *, keep: bool = False) -> Any:
        """Reduce axes by `mean`, `sum` or `max`."""
        return getattr(self.operations, f"reduce_{kind}")(x, np.array(axes), keep)

    def as_float(self, x: Any) -> Any:
        """Convert to float32."""
        return self.operations.convert(x, np.float32)

    def length(self, x: Any, axis: int) -> Any:
        """Length of an axis, float32 ()."""
        shape = self.operations.shape_of(x)
        return self.as_float(self.operations.gather(shape, np.int64(axis), np.int64(0)))

    def counted(self, length: Any) -> Any:
        """0, 1, … below `length`, float32 (length,)."""
        return self.operations.range(np.float32(0), length, np.float32(1), "f32")

    def halves(self, x: Any) -> tuple[Any, Any]:
        """Split the first axis into two halves."""
        parts = self.operations.split(x, 0, 2)
        return parts.output(0), parts.output(1)

    def mirror(self, x: Any) -> Any:
        """Reverse the last axis."""
        one = np.array([-1])
        return self.operations.slice(x, one, np.array([np.iinfo(np.int32).min]), one, one)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """Reshape; 0 keeps an axis, a single -1 is inferred."""
        return self.operations.reshape(x, np.array(shape), True)
