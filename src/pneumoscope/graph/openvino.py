"""The graph as an OpenVINO model.

Comes in: what `network.py` writes. Goes out: an `openvino.Model`, or one that is compiled.
OpenVINO is imported when it is needed, never before.

Compiled graphs on disk that are what this user's programs have put there.

A compiled graph holds the weights, and the engine takes it as it is: a few changed bytes change
every result, and nothing else tells. So each file has a digest beside it, made with a key that this
user alone has (HMAC, RFC 2104). A file without the right one is removed, and the graph is compiled
again. The folder belongs to the user alone; one that others can write is not used.
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

from pneumoscope.graph.network import NetworkArrays, write_average, write_feature_map
from pneumoscope.graph.precision import INT8_LEVELS, Device, Floats, Ranges, largest_per_output
from pneumoscope.graph.writer import NO_EDGES, Edges, FloatArray, Pair
from pneumoscope.storage import sha256_of_file, write_bytes

_KEY_FILE = "key"
_KEY_BYTES = 32
_SUFFIX = ".blob"
_DIGEST_SUFFIX = ".hmac"


class SharedFolderError(Exception):
    """Others than this user can write into the folder."""


class GraphCache:
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

    def remove_unsigned(self, place: Path) -> list[Path]:
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


_LOGGER = logging.getLogger(__name__)

_CONVERTER = "openvino.tools.ovc"

OUTPUTS = ("logit", "cam", "embedding")

_CONVOLUTION = "convolution-"

_FUNCTIONS = {"silu": "swish", "hard_silu": "hswish", "hard_sigmoid": "hsigmoid"}
"""What OpenVINO calls them."""


def build_model(
    networks: Sequence[NetworkArrays],
    size: int,
    batch: int,
    *,
    flip: bool = False,
    ranges: Ranges | None = None,
) -> Any:
    """Networks as one model: `images`, float32 (n, size, size, 3), to `OUTPUTS`.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        batch: images per pass.
        flip: as in the bundle.
        ranges: of the convolutions' inputs, for an answer in int8; `None` leaves all in float.

    Raises:
        BundleError: a layer is missing from the arrays, or `ranges` are of another network.
    """
    to = OpenVinoWriter(ranges)
    images = to.parameter((batch, size, size, 3), np.float32, "images")
    channels_first = to.operations.transpose(images, np.array([0, 3, 1, 2]))
    answers = write_average(to, networks, channels_first, size, flip=flip)
    to.check_ranges()
    nodes = answers.logit, answers.cam, answers.embedding
    return to.model(images, dict(zip(OUTPUTS, nodes, strict=True)))


def build_frozen_part(
    network: NetworkArrays,
    size: int,
    batch: int,
    boundary: str | None,
    ranges: Ranges | None = None,
) -> Any:
    """The frozen part of a network: `images`, float32 (n, size, size, 3), to `rows`.

    Args:
        network: the backbone's arrays.
        size: side of the images, pixels.
        batch: images per pass.
        boundary: the layer at which it ends, giving maps (n, h, w, c); `None` gives pooled
            features (n, c).
        ranges: of its convolutions' inputs, for int8; `None` leaves all in float.

    Raises:
        BundleError: `ranges` are of another network.
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
    """The model (or the path of one), ready to run.

    Args:
        model: of this module; one that was built with ranges has its convolutions in int8.
        floats: what it computes in otherwise.
        cache: folder where compiled graphs are kept; `None` keeps none.
        requests: how many are asked at the same time, at most: threads are dealt to them. A fifth
            is gained over all threads on one, since none waits for another after each node.
        device: the processor, or graphics that OpenVINO runs on.
    """
    settings: dict[str, Any] = {
        # Always said: without it OpenVINO takes bfloat16 wherever the processor has it.
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
        _LOGGER.info("compiled graphs are not kept, every start takes longer: %s", error)
        kept = place = None
    if kept is None or place is None:
        return core.compile_model(model, device, settings)
    for path in kept.remove_unsigned(place):
        _LOGGER.info("%s: is not as it was put there, so the graph is compiled again", path)
    compiled = core.compile_model(model, device, {**settings, "CACHE_DIR": str(place)})
    kept.sign(place)
    return compiled


def has_graphics() -> bool:
    """Whether OpenVINO finds graphics that it runs on."""
    return any(name.startswith("GPU") for name in load_openvino().Core().available_devices)


def capabilities() -> frozenset[str]:
    """`BF16`, `INT8`, …: what OpenVINO says that the processor can compute in."""
    return frozenset(load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def processor() -> str:
    """Its name, as OpenVINO has it."""
    return str(load_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def version() -> str:
    """OpenVINO's, for cache keys."""
    return str(load_openvino().__version__)


def load_openvino() -> Any:
    """OpenVINO, without its converter of other programs' models.

    That is not used here, takes a quarter of a start, and brings a module that reports usage over
    the network. Where OpenVINO was imported before, it stays as it is.
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
    """The convolutions of a model of this module, in the order they were written."""
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
        ranges: of the inputs of the convolutions that are to come, which are written so that the
            engine computes them in int8; `None` leaves all in float.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.openvino = load_openvino()
        self.operations = importlib.import_module("openvino.opset13")
        self._ranges = ranges
        self._convolutions = 0

    def parameter(self, shape: Sequence[int], kind: Any, name: str) -> Any:
        """An input of the graph; -1 where the length is open."""
        node = self.operations.parameter(list(shape), kind, name=name)
        node.output(0).set_names({name})
        return node

    def model(self, given: Any, outputs: Mapping[str, Any]) -> Any:
        """The finished model, from its input to its outputs by name."""
        results = []
        for name, node in outputs.items():
            # A node may have several outputs, of which an output stands for itself.
            output = node.output(0) if hasattr(node, "output") else node
            output.set_names({name})
            results.append(self.operations.result(output))
        return self.openvino.Model(results, [given], "pneumoscope")

    def constant(self, value: NDArray[np.generic]) -> Any:
        """An array that is part of the graph."""
        return self.operations.constant(value)

    def convolution(
        self,
        x: Any,
        kernel: FloatArray,
        strides: Pair = (1, 1),
        edges: Edges = NO_EDGES,
        groups: int = 1,
        dilation: Pair = (1, 1),
    ) -> Any:
        """Kernel (out, in / groups, h, w) over (n, in, h, w), zeros in the added edges."""
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

    def _rounded(self, x: Any, low: FloatArray, high: FloatArray, levels: int) -> Any:
        """The values cut to a range and rounded to so many even steps in it."""
        ends = [self.constant(end) for end in (low, high)]
        return self.operations.fake_quantize(x, *ends, *ends, levels)

    def check_ranges(self) -> None:
        """See that there was a range for each convolution written, and none more.

        Raises:
            BundleError: the ranges are of another network.
        """
        if self._ranges is not None:
            self._ranges.check(self._convolutions)

    def pool(self, x: Any, kind: str, size: Pair, strides: Pair, edges: Edges = NO_EDGES) -> Any:
        """The `max` or the `mean` of rectangles; added edges count for nothing."""
        first, last = list(edges[:2]), list(edges[2:])
        if kind == "mean":
            return self.operations.avg_pool(x, list(strides), first, last, list(size), True)
        return self.operations.max_pool(x, list(strides), [1, 1], first, last, list(size)).output(0)

    def pad(self, x: Any, edges: Edges) -> Any:
        """Zeros around a map."""
        first, last = (np.array([0, 0, *each]) for each in (edges[:2], edges[2:]))
        return self.operations.pad(x, first, last, "constant", np.float32(0))

    def concatenate(self, nodes: Sequence[Any], axis: int) -> Any:
        """Nodes in a row along an axis."""
        return self.operations.concat(list(nodes), axis)

    def combine(self, kind: str, a: Any, b: Any) -> Any:
        """Element by element."""
        return getattr(self.operations, kind)(a, b)

    def apply(self, kind: str, x: Any) -> Any:
        """Element by element."""
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
        """`mean`, `sum` or `max` over axes."""
        return getattr(self.operations, f"reduce_{kind}")(x, np.array(axes), keep)

    def as_float(self, x: Any) -> Any:
        """Numbers of any type as float32."""
        return self.operations.convert(x, np.float32)

    def length(self, x: Any, axis: int) -> Any:
        """The length of an axis, float32 ()."""
        shape = self.operations.shape_of(x)
        return self.as_float(self.operations.gather(shape, np.int64(axis), np.int64(0)))

    def counted(self, length: Any) -> Any:
        """0, 1, … below `length`, float32 (length,)."""
        return self.operations.range(np.float32(0), length, np.float32(1), "f32")

    def halves(self, x: Any) -> tuple[Any, Any]:
        """The first axis in two."""
        parts = self.operations.split(x, 0, 2)
        return parts.output(0), parts.output(1)

    def mirror(self, x: Any) -> Any:
        """The last axis turned round."""
        one = np.array([-1])
        return self.operations.slice(x, one, np.array([np.iinfo(np.int32).min]), one, one)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """Another shape; 0 keeps an axis, one -1 takes what is left."""
        return self.operations.reshape(x, np.array(shape), True)
