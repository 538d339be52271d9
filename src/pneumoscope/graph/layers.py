"""What each type of Keras layer computes, written as operations for any engine.

`write_plan` walks through a `Plan` and writes the operations of each layer to a `Writer`. They
compute the same numbers as the Keras model at inference. Map sizes are tracked, so every padding is
a number.

Four rewrites make the graph smaller without changing its results. Batch normalisation behind a
convolution is folded into its kernel. Zero padding moves into the convolution that reads it (or
into a max pooling of non-negative values). Average pooling moves before a 1×1 convolution, which
then has fewer positions to compute. Layers that are inactive at inference are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import numpy as np

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import BundleError
from pneumoscope.graph.plan import Layer, Plan, depthwise_kernel, fitted, pair, scale_and_shift
from pneumoscope.graph.writer import NO_EDGES, Edges, Node, Writer

AGAIN = "Copy the bundle again or train again."
"""End of a message about layers: the way out if they are those of a bundle."""

Arrays = Mapping[str, tuple[Float32Array, ...]]
"""The arrays of every layer that has any, in Keras' order and layout."""

_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "hard_sigmoid",
    "silu": "silu",
    "swish": "silu",
    "hard_silu": "hard_silu",
    "hard_swish": "hard_silu",
    "tanh": "tanh",
    "softplus": "softplus",
}

_NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hard_sigmoid", "softplus"})

_MERGES = {"Add": "add", "Multiply": "multiply", "Subtract": "subtract", "Maximum": "maximum"}

_IDENTITIES = frozenset(
    {
        *("Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
        *("StochasticDepth", "ActivityRegularization", "Identity"),
    }
)
"""Layers that are active in training only."""


@dataclass(frozen=True, slots=True)
class Value(Generic[Node]):
    """Output of a layer: a map (n, channels, height, width), or a row (n, channels).

    Attributes:
        node: node of the writer.
        channels, height, width: size of the map; a row has height and width 0.
        positive: whether all its numbers are ≥ 0.
        edges: zero padding that belongs around it and is not in the node yet.
    """

    node: Node
    channels: int
    height: int = 0
    width: int = 0
    positive: bool = False
    edges: Edges = NO_EDGES


def write_plan(
    to: Writer[Node], plan: Plan, arrays: Arrays, images: Node, size: int
) -> Value[Node]:
    """Write a plan for images (n, 3, size, size); returns its output.

    Raises:
        BundleError: a layer is not supported, or its arrays are missing or have wrong shapes.
    """
    return _Walk(to, plan, arrays).run(Value(images, 3, size, size))


def unknown_layers(plan: Plan) -> tuple[str, ...]:
    """The types of a plan's layers that are not supported."""
    known = {*_LAYERS, *_MERGES, *_IDENTITIES, "InputLayer"}
    return tuple(sorted({layer.kind for layer in plan.layers} - known))


@dataclass
class _Walk(Generic[Node]):
    """Writes a plan layer by layer, and holds the outputs of the layers so far."""

    to: Writer[Node]
    plan: Plan
    arrays: Arrays
    values: dict[str, Value[Node]] = field(default_factory=dict)

    def run(self, images: Value[Node]) -> Value[Node]:
        self.readers = self.plan.readers()
        for layer in self.plan.layers:
            if layer.name in self.values:  # already written together with an earlier layer
                continue
            try:
                self.values[layer.name] = self._written(layer, images)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise BundleError(
                    f"layer {layer.name!r} ({layer.kind}) does not fit its input or its weights: "
                    f"{error}. {AGAIN}"
                ) from error
        return self._whole(self.values[self.plan.output])

    def _written(self, layer: Layer, images: Value[Node]) -> Value[Node]:
        if layer.kind == "InputLayer":
            return images
        if layer.kind in _MERGES:
            return self._merged(layer, _MERGES[layer.kind])
        if layer.kind in _IDENTITIES:
            return self.values[layer.sources[0]]
        write = _LAYERS.get(layer.kind)
        if write is None:
            raise BundleError(
                f"layer {layer.name!r} is a {layer.kind}, which this version can't run; it "
                f"supports {', '.join(sorted({*_LAYERS, *_MERGES}))}."
            )
        return write(self, layer, self.values[layer.sources[0]])

    def of(self, layer: Layer) -> tuple[Float32Array, ...]:
        """The arrays of a layer.

        Raises:
            BundleError: it has none.
        """
        if layer.name not in self.arrays:
            raise BundleError(f"the weights have no layer {layer.name!r}. {AGAIN}")
        return self.arrays[layer.name]

    def next_alone(self, layer: Layer, kind: str) -> Layer | None:
        """The only reader of `layer`, if it has exactly one and that is of the given type."""
        readers = self.readers[layer.name]
        return readers[0] if len(readers) == 1 and readers[0].kind == kind else None

    def _whole(self, value: Value[Node]) -> Value[Node]:
        """The value with its padding written into the graph."""
        if value.edges == NO_EDGES:
            return value
        top, left, bottom, right = value.edges
        return replace(
            value,
            node=self.to.pad(value.node, value.edges),
            height=value.height + top + bottom,
            width=value.width + left + right,
            edges=NO_EDGES,
        )

    # --- merging -------------------------------------------------------------------------------

    def _merged(self, layer: Layer, kind: str) -> Value[Node]:
        values = [self._whole(self.values[s]) for s in layer.sources]
        shape = max(values, key=lambda v: (v.height * v.width, v.height, v.channels))
        if len({v.height > 0 for v in values}) > 1:
            raise ValueError("found a map and a row as inputs")
        nodes = [
            self._whole(self.values[each]).node
            if isinstance(each, str)
            else self.to.constant(np.full((1, 1, 1, 1) if shape.height else (1, 1), each, "f4"))
            for each in layer.inputs
        ]
        total = nodes[0]
        for node in nodes[1:]:
            total = self.to.combine(kind, total, node)
        positive = (
            kind != "subtract"
            and all(v.positive for v in values)
            and all(each >= 0 for each in layer.inputs if not isinstance(each, str))
        )
        return replace(shape, node=total, positive=positive)

    # --- elementwise functions -----------------------------------------------------------------

    def activated(self, value: Value[Node], name: Any) -> Value[Node]:
        """Apply a Keras activation to a value."""
        if name in (None, "linear"):
            return value
        whole, to = self._whole(value), self.to
        if name == "gelu":
            root = self.scaled(whole, np.float32(np.sqrt(0.5)))
            half = self.scaled(whole, np.float32(0.5))
            bent = to.combine("multiply", half.node, to.apply("erf", root.node))
            return replace(whole, node=to.combine("add", half.node, bent), positive=False)
        if name not in _ACTIVATIONS:
            raise ValueError(f"found the activation {name!r}, wanted one of {sorted(_ACTIVATIONS)}")
        kind = _ACTIVATIONS[name]
        positive = kind in _NEVER_NEGATIVE
        return replace(whole, node=to.apply(kind, whole.node), positive=positive)

    def per_channel(self, array: Any, value: Value[Node]) -> Node:
        """A constant, one number or one per channel, shaped to broadcast with a value."""
        flat = np.asarray(array, np.float32).reshape(-1)
        if len(flat) not in (1, value.channels):
            raise ValueError(f"found {len(flat)} numbers for {value.channels} channels")
        return self.to.constant(flat.reshape((1, -1, 1, 1) if value.height else (1, -1)))

    def scaled(self, value: Value[Node], scale: Any, shift: Any = None) -> Value[Node]:
        """The value times `scale` plus `shift`, both per channel."""
        whole = self._whole(value)
        node = whole.node
        if scale is not None:
            node = self.to.combine("multiply", node, self.per_channel(scale, whole))
        if shift is not None:
            node = self.to.combine("add", node, self.per_channel(shift, whole))
        return replace(whole, node=node, positive=False)

    # --- convolutions --------------------------------------------------------------------------

    def convolved(
        self,
        layer: Layer,
        value: Value[Node],
        kernel: Float32Array,
        bias: Float32Array | None,
        groups: int = 1,
    ) -> Value[Node]:
        """A convolution together with the batch normalisation or average pooling behind it.

        Args:
            layer: the last of the layers written here.
            value: its input.
            kernel: (out, in / groups, h, w).
            bias: (out,), or `None`.
            groups: as in the writer.
        """
        settings = layer.settings
        behind = None
        if settings.get("activation") in (None, "linear"):
            behind = self.next_alone(layer, "BatchNormalization")
            behind = behind or self._mean_behind(layer, kernel, value)
        if behind is not None and behind.kind == "AveragePooling2D":
            value = _pooled(self, behind, value, "mean")
        elif behind is not None:
            scale, shift = scale_and_shift(self.of(behind), behind.settings)
            kernel = kernel * scale.reshape(-1, 1, 1, 1)
            bias = shift if bias is None else shift + bias * scale
        result = self.convolution(value, kernel, settings, groups)
        if bias is not None:
            result = self.scaled(result, None, bias)
        result = self.activated(result, settings.get("activation"))
        if behind is not None:
            self.values[behind.name] = result
        return result

    def _mean_behind(self, layer: Layer, kernel: Float32Array, value: Value[Node]) -> Layer | None:
        """Average pooling behind a 1×1 convolution: both are linear, so pooling may go first."""
        pool = self.next_alone(layer, "AveragePooling2D")
        simple = kernel.shape[2:] == (1, 1) and pair(layer.settings["strides"]) == (1, 1)
        plain = pool is not None and pool.settings["padding"] == "valid"
        return pool if simple and plain and value.edges == NO_EDGES else None

    def convolution(
        self, value: Value[Node], kernel: Float32Array, settings: Mapping[str, Any], groups: int = 1
    ) -> Value[Node]:
        """Write a single convolution."""
        if kernel.shape[1] * groups != value.channels:
            raise ValueError(f"found {value.channels} channels, wanted {kernel.shape[1] * groups}")
        strides = pair(settings["strides"])
        dilation = pair(settings.get("dilation_rate", 1))
        reach = tuple((k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True))
        edges, (height, width) = fitted(
            value.edges, (value.height, value.width), reach, strides, settings["padding"]
        )
        node = self.to.convolution(
            value.node, np.ascontiguousarray(kernel), strides, edges, groups, dilation
        )
        return Value(node, kernel.shape[0], height, width)


Write = Callable[[_Walk[Any], Layer, Value[Any]], Value[Any]]


def _conv(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    kernel, *bias = walk.of(layer)
    groups = int(layer.settings.get("groups", 1))
    return walk.convolved(
        layer, value, kernel.transpose(3, 2, 0, 1), bias[0] if bias else None, groups
    )


def _depthwise(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    kernel, *bias = walk.of(layer)
    own = depthwise_kernel(kernel)
    return walk.convolved(layer, value, own, bias[0] if bias else None, kernel.shape[2])


def _separable(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    depthwise, pointwise, *bias = walk.of(layer)
    own = depthwise_kernel(depthwise)
    between = walk.convolution(value, own, layer.settings, depthwise.shape[2])
    settings = {**layer.settings, "strides": 1, "dilation_rate": 1, "padding": "valid"}
    behind = replace(layer, settings=settings)
    kernel = pointwise.transpose(3, 2, 0, 1)
    return walk.convolved(behind, between, kernel, bias[0] if bias else None)


def _dense(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    kernel, *bias = walk.of(layer)
    if value.height:  # applies to each position separately: a 1×1 convolution
        settings = {**layer.settings, "strides": 1, "padding": "valid"}
        own = kernel.T.reshape(*kernel.shape[::-1], 1, 1)
        return walk.convolved(
            replace(layer, settings=settings), value, own, bias[0] if bias else None
        )
    row = Value(walk.to.product(value.node, walk.to.constant(kernel)), kernel.shape[1])
    if bias:
        row = walk.scaled(row, None, bias[0])
    return walk.activated(row, layer.settings.get("activation"))


def _batch_norm(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return walk.scaled(value, *scale_and_shift(walk.of(layer), layer.settings))


def _layer_norm(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    """Normalise every position over its channels to mean 0 and variance 1, then scale and shift."""
    rest = list(walk.of(layer))
    gamma = rest.pop(0) if layer.settings.get("scale", True) else None
    beta = rest.pop(0) if layer.settings.get("center", True) else None
    to, whole = walk.to, walk._whole(value)
    centred = to.combine("subtract", whole.node, to.reduce("mean", whole.node, (1,), keep=True))
    squares = to.reduce("mean", to.combine("multiply", centred, centred), (1,), keep=True)
    least = to.constant(np.full(1, layer.settings["epsilon"], np.float32))
    deviation = to.apply("sqrt", to.combine("add", squares, least))
    node = to.combine("divide", centred, deviation)
    return walk.scaled(replace(whole, node=node), gamma, beta)


def _normalization(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    """Normalise by the mean and variance in the settings, or else in the weights."""
    settings = layer.settings
    stated = settings.get("mean") is not None
    mean, variance = (settings["mean"], settings["variance"]) if stated else walk.of(layer)[:2]
    deviation = np.maximum(np.sqrt(np.asarray(variance, np.float64)), 1e-7).reshape(-1)
    shift = -np.asarray(mean, np.float64).reshape(-1) / deviation
    return walk.scaled(value, 1.0 / deviation, shift)


def _rescaling(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return walk.scaled(value, layer.settings["scale"], layer.settings["offset"])


def _layer_scale(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return walk.scaled(value, walk.of(layer)[0])


def _activation(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return walk.activated(value, layer.settings["activation"])


def _relu(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    settings = layer.settings
    most = settings.get("max_value")
    if most not in (None, 6.0) or settings.get("negative_slope") or settings.get("threshold"):
        raise ValueError(f"found {dict(settings)}, wanted a plain ReLU or ReLU6")
    return walk.activated(value, "relu" if most is None else "relu6")


def _padding(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    (top, bottom), (left, right) = layer.settings["padding"]
    before = value.edges
    edges = before[0] + top, before[1] + left, before[2] + bottom, before[3] + right
    return replace(value, edges=edges)


def _pooled(walk: _Walk[Any], layer: Layer, value: Value[Any], kind: str) -> Value[Any]:
    settings = layer.settings
    size = pair(settings["pool_size"])
    strides = pair(settings["strides"] or settings["pool_size"])
    # Keras' zero padding takes part in pooling; the engine's does not. For the maximum of
    # non-negative values both give the same result.
    if not (kind == "max" and value.positive):
        value = walk._whole(value)
    edges, (height, width) = fitted(
        value.edges, (value.height, value.width), size, strides, settings["padding"]
    )
    node = walk.to.pool(value.node, kind, size, strides, edges)
    return Value(node, value.channels, height, width, value.positive)


def _max_pooling(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return _pooled(walk, layer, value, "max")


def _average_pooling(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    return _pooled(walk, layer, value, "mean")


def _global(kind: str) -> Write:
    def write(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
        whole = walk._whole(value)
        keep = bool(layer.settings.get("keepdims"))
        node = walk.to.reduce(kind, whole.node, (2, 3), keep=keep)
        return Value(node, whole.channels, int(keep), int(keep), whole.positive)

    return write


def _reshape(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    """Reshape a row to a map of one position, or such a map to a row."""
    shape = [int(n) for n in layer.settings["target_shape"]]
    shape = [value.channels if n == -1 else n for n in shape]
    whole = walk._whole(value)
    single = whole.height * whole.width <= 1
    if single and shape == [1, 1, whole.channels]:
        node = walk.to.reshape(whole.node, (0, whole.channels, 1, 1))
        return Value(node, whole.channels, 1, 1, whole.positive)
    if single and shape == [whole.channels]:
        node = walk.to.reshape(whole.node, (0, whole.channels))
        return Value(node, whole.channels, positive=whole.positive)
    raise ValueError(f"found the shape {shape}, wanted (1, 1, {whole.channels})")


def _concatenated(walk: _Walk[Any], layer: Layer, _: Value[Any]) -> Value[Any]:
    values = [walk._whole(walk.values[source]) for source in layer.sources]
    if layer.settings.get("axis", -1) not in (-1, 3 if values[0].height else 1):
        raise ValueError(f"found the axis {layer.settings['axis']}, wanted the channels")
    node = walk.to.concatenate([value.node for value in values], 1)
    channels = sum(value.channels for value in values)
    return replace(
        values[0], node=node, channels=channels, positive=all(v.positive for v in values)
    )


def _scaled_residual(walk: _Walk[Any], layer: Layer, value: Value[Any]) -> Value[Any]:
    other = walk.scaled(walk.values[layer.sources[1]], layer.settings["scale"])
    node = walk.to.combine("add", walk._whole(value).node, other.node)
    return replace(other, node=node)


_LAYERS: Mapping[str, Write] = {
    "Activation": _activation,
    "AveragePooling2D": _average_pooling,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenated,
    "Conv2D": _conv,
    "CustomScaleLayer": _scaled_residual,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "GlobalAveragePooling2D": _global("mean"),
    "GlobalMaxPooling2D": _global("max"),
    "LayerNormalization": _layer_norm,
    "LayerScale": _layer_scale,
    "MaxPooling2D": _max_pooling,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "ZeroPadding2D": _padding,
}
