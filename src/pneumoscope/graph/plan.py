"""The layers of a Keras functional model and how they are wired, read without Keras.

A model's own description (`model.to_json()`, or `config.json` inside a `.keras` file) lists its
layers with their settings and inputs. `read_plan` turns it into a `Plan`; `layers.py` knows what
each kind of layer computes. Nothing in the description is run: it is data.

How windows lie on maps, and how Keras' arrays become those of engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError
from pneumoscope.graph.writer import Edges, FloatArray, Pair

_MODELS = ("Functional", "Sequential", "Model")
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")
_STRIDED = (*CONVOLUTIONS, "MaxPooling2D", "AveragePooling2D")
_GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")

Input = str | float
"""What a layer reads: the name of another layer, or a number."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        name: unique in its model.
        kind: Keras' class name (`Conv2D`).
        settings: its configuration.
        inputs: what it reads, in order.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[Input, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The layers among its inputs."""
        return tuple(each for each in self.inputs if isinstance(each, str))


@dataclass(frozen=True, slots=True)
class Plan:
    """Layers of one input and one output, each after those it reads.

    Attributes:
        layers: all of them; the first one is the input.
        output: name of the layer that the model ends with.
    """

    layers: tuple[Layer, ...]
    output: str

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            BundleError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise BundleError(f"the network has no layer {name!r}. Copy the bundle again.")

    def has(self, name: str) -> bool:
        """Whether there is a layer of that name."""
        return any(layer.name == name for layer in self.layers)

    def until(self, name: str) -> Plan:
        """The part that `name` depends on, ending with it."""
        needed = {self.layer(name).name}
        for layer in reversed(self.layers):
            if layer.name in needed:
                needed.update(layer.sources)
        return Plan(tuple(layer for layer in self.layers if layer.name in needed), name)

    def readers(self) -> dict[str, list[Layer]]:
        """For each layer those that read it, once for each time."""
        found: dict[str, list[Layer]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for source in layer.sources:
                found[source].append(layer)
        return found

    def strides(self) -> dict[str, int]:
        """For each layer how many pixels of the image lie between two neighbours of its map.

        A layer behind global pooling (a gate of squeeze and excitation) has the stride of the map
        that it was pooled from.
        """
        found: dict[str, int] = {}
        for layer in self.layers:
            before = max((found[source] for source in layer.sources), default=1)
            if layer.kind in _STRIDED:
                steps = layer.settings.get("strides") or layer.settings.get("pool_size") or 1
                before *= int(steps[0] if isinstance(steps, Sequence) else steps)
            found[layer.name] = before
        return found

    def cuts(self) -> tuple[str, ...]:
        """Layers that every path from input to output goes through, in order.

        At such a layer the network can be cut in two: what lies behind depends on it alone.
        """
        place = {layer.name: k for k, layer in enumerate(self.layers)}
        last_read = {
            name: max((place[r.name] for r in readers), default=place[name])
            for name, readers in self.readers().items()
        }
        found, reach = [], 0
        for k, layer in enumerate(self.layers):
            # `reach`: how far layers before this one are still read.
            if reach <= k and layer.kind not in _GLOBAL:
                found.append(layer.name)
            reach = max(reach, last_read[layer.name])
        return tuple(found)


def read_plan(document: Any) -> Plan:
    """The plan of a functional model, from its description as JSON has it.

    Models within the model are taken apart: their layers stand in their place.

    Raises:
        BundleError: it describes no functional model of one input and one output.
    """
    try:
        layers: list[Layer] = []
        output = _expanded(document, None, layers)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise BundleError(
            f"the network's description can't be read ({type(error).__name__}: {error}); wanted a "
            "Keras functional model of one input and one output."
        ) from error
    names = [layer.name for layer in layers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BundleError(f"the network has two layers named {twice!r}; wanted a name for each.")
    return Plan(tuple(layers), output).until(output)


def _expanded(document: Any, source: str | None, into: list[Layer]) -> str:
    """Append a model's layers; returns the name of its output.

    Args:
        document: the model.
        source: what a model within a model reads; `None` for the outermost.
        into: where the layers go.
    """
    if document["class_name"] not in _MODELS:
        raise ValueError(f"found {document['class_name']!r}")
    config = document["config"]
    actual: dict[str, str] = {}
    last = source
    for entry in config["layers"]:
        name, kind = str(entry.get("name") or entry["config"]["name"]), str(entry["class_name"])
        nodes = entry.get("inbound_nodes")
        if nodes is None:  # a sequential model: each reads the one before it
            inputs: tuple[Input, ...] = () if last is None else (last,)
        elif len(nodes) > 1:
            raise ValueError(f"layer {name!r} is used {len(nodes)} times")
        else:
            inputs = tuple(
                actual[each] if isinstance(each, str) else each
                for node in nodes
                for each in _inputs((node["args"], node["kwargs"]))
            )
        if kind == "InputLayer" and source is not None:
            actual[name] = last = source
        elif kind in _MODELS:
            (inner,) = inputs
            actual[name] = last = _expanded(entry, str(inner), into)
        else:
            into.append(Layer(name, kind, entry["config"], inputs))
            actual[name] = last = name
    ends = config.get("output_layers")
    if ends is None:
        return str(last)
    while isinstance(ends[0], list) and len(ends) == 1:
        ends = ends[0]
    if not isinstance(ends[0], str):
        raise ValueError(f"found the outputs {ends}")
    return actual[ends[0]]


def _inputs(value: Any) -> Iterator[Input]:
    """The tensors and numbers among the arguments of a call, in order."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            name, node, tensor = value["config"]["keras_history"]
            if node or tensor:
                raise ValueError(f"layer {name!r} is used more than once")
            yield str(name)
        else:
            for key, each in value.items():
                if key not in ("training", "mask"):
                    yield from _inputs(each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _inputs(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def pair(value: Any) -> Pair:
    """A number for both directions, or one for each."""
    if isinstance(value, Sequence):
        first, second = value
        return int(first), int(second)
    return int(value), int(value)


def scale_and_shift(
    arrays: Sequence[NDArray[Any]], settings: Mapping[str, Any]
) -> tuple[FloatArray, FloatArray]:
    """Batch normalisation with its moving statistics as x × scale + shift, each (channels,)."""
    rest = [array.astype(np.float64) for array in arrays]
    gamma = rest.pop(0) if settings.get("scale", True) else np.ones(1)
    beta = rest.pop(0) if settings.get("center", True) else np.zeros(1)
    mean, variance = rest
    scale = gamma / np.sqrt(variance + float(settings["epsilon"]))
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def fitted(
    given: Edges, size: Pair, reach: Sequence[int], strides: Pair, padding: str
) -> tuple[Edges, Pair]:
    """The edges that a window needs, and the size of what it makes.

    Args:
        given: edges that the map has to get anyway.
        size: height and width of the map without them.
        reach: of the window, along height and width.
        strides: of the window.
        padding: Keras' `valid` or `same`.
    """
    top, left, bottom, right = given
    sides = size[0] + top + bottom, size[1] + left + right
    if padding == "valid":
        made = [(s - r) // step + 1 for s, r, step in zip(sides, reach, strides, strict=True)]
        if min(made) < 1:
            raise ValueError(f"found a map of {sides}, wanted {tuple(reach)} or more")
        return given, (made[0], made[1])
    if padding != "same":
        raise ValueError(f"found the padding {padding!r}, wanted valid or same")
    made = [-(-s // step) for s, step in zip(sides, strides, strict=True)]
    more = [
        max((m - 1) * step + r - s, 0)
        for m, step, r, s in zip(made, strides, reach, sides, strict=True)
    ]
    before = [m // 2 for m in more]
    edges = (
        top + before[0],
        left + before[1],
        bottom + more[0] - before[0],
        right + more[1] - before[1],
    )
    return edges, (made[0], made[1])


def depthwise_kernel(kernel: FloatArray) -> FloatArray:
    """(h, w, channels, times) → (channels × times, 1, h, w)."""
    height, width, channels, times = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * times, 1, height, width)
