"""The layers of a Keras functional model and their connections, read without Keras.

A model's description (`model.to_json()`, or `config.json` in a `.keras` file) lists its layers with
their settings and inputs. `read_plan` turns it into a `Plan`; `layers.py` defines what each type of
layer computes. The description is data, and nothing in it is executed.

Further functions compute the padding of windows and convert Keras' arrays to those of the engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import BundleError
from pneumoscope.graph.writer import Edges, Pair

_MODELS = ("Functional", "Sequential", "Model")
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")
_STRIDED = (*CONVOLUTIONS, "MaxPooling2D", "AveragePooling2D")
_GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")

Input = str | float
"""Input of a layer: the name of another layer, or a number."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        name: unique in its model.
        kind: Keras' class name (`Conv2D`).
        settings: its configuration.
        inputs: its inputs, in order.
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
    """Layers with one input and one output, each listed after the layers that it reads.

    Attributes:
        layers: all layers; the first one is the input.
        output: name of the output layer.
    """

    layers: tuple[Layer, ...]
    output: str

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            BundleError: it does not exist.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise BundleError(f"the network has no layer {name!r}. Copy the bundle again.")

    def has(self, name: str) -> bool:
        """Whether a layer of that name exists."""
        return any(layer.name == name for layer in self.layers)

    def until(self, name: str) -> Plan:
        """The part that `name` depends on, ending with `name`."""
        needed = {self.layer(name).name}
        for layer in reversed(self.layers):
            if layer.name in needed:
                needed.update(layer.sources)
        return Plan(tuple(layer for layer in self.layers if layer.name in needed), name)

    def readers(self) -> dict[str, list[Layer]]:
        """The readers of each layer, listed once per use."""
        found: dict[str, list[Layer]] = {layer.name: [] for layer in self.layers}
        for layer in self.layers:
            for source in layer.sources:
                found[source].append(layer)
        return found

    def strides(self) -> dict[str, int]:
        """Stride of each layer's map: distance of neighbouring positions in pixels of the image.

        A layer behind global pooling (a squeeze-and-excitation gate) has the stride of the pooled
        map.
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
        """Layers that every path from input to output passes, in order.

        The network can be cut in two at such a layer, because everything behind depends on it
        alone.
        """
        place = {layer.name: k for k, layer in enumerate(self.layers)}
        last_read = {
            name: max((place[r.name] for r in readers), default=place[name])
            for name, readers in self.readers().items()
        }
        found, reach = [], 0
        for k, layer in enumerate(self.layers):
            # `reach`: position of the last layer that reads a layer before this one.
            if reach <= k and layer.kind not in _GLOBAL:
                found.append(layer.name)
            reach = max(reach, last_read[layer.name])
        return tuple(found)


_DESCRIPTION_ERRORS = (
    *(KeyError, TypeError, IndexError, ValueError, AttributeError),
    RecursionError,  # models or arguments nested a thousand times
)


def read_plan(document: Any) -> Plan:
    """Read the plan of a functional model from its parsed JSON description.

    Nested models are replaced by their layers.

    Raises:
        BundleError: it is not a functional model with one input and one output.
    """
    try:
        layers: list[Layer] = []
        output = _expanded(document, None, layers)
    except _DESCRIPTION_ERRORS as error:
        raise BundleError(
            f"the network's description can't be read ({type(error).__name__}: {error}); wanted a "
            "Keras functional model with one input and one output."
        ) from error
    names = Counter(layer.name for layer in layers)
    twice = next((name for name, uses in names.items() if uses > 1), None)
    if twice is not None:
        raise BundleError(f"the network has two layers named {twice!r}; wanted unique names.")
    return Plan(tuple(layers), output).until(output)


def _expanded(document: Any, source: str | None, into: list[Layer]) -> str:
    """Append a model's layers to a list; returns the name of its output.

    Args:
        document: description of the model.
        source: name of the layer that a nested model reads; `None` for the outermost model.
        into: list that receives the layers.
    """
    if document["class_name"] not in _MODELS:
        raise ValueError(f"found {document['class_name']!r}")
    config = document["config"]
    actual: dict[str, str] = {}
    last = source
    for entry in config["layers"]:
        name, kind = str(entry.get("name") or entry["config"]["name"]), str(entry["class_name"])
        nodes = entry.get("inbound_nodes")
        if nodes is None:  # a sequential model: each layer reads the previous one
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
    """One number for both axes, or one for each."""
    if isinstance(value, Sequence):
        first, second = value
        return int(first), int(second)
    return int(value), int(value)


def scale_and_shift(
    arrays: Sequence[NDArray[Any]], settings: Mapping[str, Any]
) -> tuple[Float32Array, Float32Array]:
    """Batch normalisation with moving statistics as x × scale + shift, each (channels,)."""
    rest = [array.astype(np.float64) for array in arrays]
    gamma = rest.pop(0) if settings.get("scale", True) else np.ones(1)
    beta = rest.pop(0) if settings.get("center", True) else np.zeros(1)
    mean, variance = rest
    scale = gamma / np.sqrt(variance + float(settings["epsilon"]))
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def fitted(
    given: Edges, size: Pair, reach: Sequence[int], strides: Pair, padding: str
) -> tuple[Edges, Pair]:
    """Padding that a window needs, and the size of its output.

    Args:
        given: padding that the map gets anyway.
        size: height and width of the map without padding.
        reach: height and width of the window.
        strides: strides of the window.
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


def depthwise_kernel(kernel: Float32Array) -> Float32Array:
    """Depthwise kernel (h, w, channels, multiplier) → (channels × multiplier, 1, h, w)."""
    height, width, channels, times = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * times, 1, height, width)
