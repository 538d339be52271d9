"""The network: a backbone → GlobalAveragePooling2D → Dropout → Dense(ReLU) → Dense(1, sigmoid).

This module builds it and takes it apart, as Keras models on any Keras backend. It is the only
definition of the network: engines without Keras read the layers from the saved model
(`graph/plan.py`).

Where Keras runs on Torch, `with_native_layers` replaces the convolutional layers by native PyTorch
kernels. It rebuilds a model layer by layer, with the same names, weights and outputs. It trains
about twice as fast on a CPU with bfloat16 and up to a tenth faster on other CPUs
(`docs/experiments.md`, `benchmarks/RESULTS.md`). Keras' own layers copy every channels-last map to
channels-first and back around each convolution, and compute batch statistics in separate steps of
32-bit arithmetic.

Saved files are the same as those of the replaced layers. One difference: the moving variance uses
the unbiased batch variance, n/(n - 1) times that of Keras, where n is the number of pixels of a
batch's feature map.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER, Architecture
from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.training.backbones import (
    build_backbone,
    layer_at,
    leaves,
    plan_of,
    settle,
    stages_of,
)
from pneumoscope.training.runtime import load_keras


def with_native_layers(model: Any, prefix: str = "") -> Any:
    """The model with native layers if Keras runs on Torch; else the same, if there is a prefix.

    The weights are copied.

    Args:
        model: a functional model.
        prefix: what the names of all layers shall begin with. On Torch, Keras finds a model's
            weights by these names: of two weights of one name in a model, it clears the gradient
            of only one after a step, and the other's adds up from step to step.
    """
    keras = load_keras()
    native = keras.backend.backend() == "torch"
    if not native and not prefix:
        return model
    # Training allocates and frees the same buffers in every step. Each page returned to the system
    # is a page fault in the next step (10 to 15 % of a step on 2 cores).
    keep_freed_memory(largest=1 << 30, kept=(1 << 31) - 1)
    replacements = _layer_classes() if native else {}

    def replaced(layer: Any) -> Any:
        kind = type(layer)
        if isinstance(layer, keras.layers.Layer):  # operations share names with layers: `Add`
            kind = replacements.get(kind.__name__, kind)
        settings = layer.get_config()
        return kind.from_config({**settings, "name": prefix + settings["name"]})

    clone = keras.models.clone_model(model, clone_function=replaced)
    clone.set_weights(model.get_weights())
    settle(clone)
    return clone


class _Direct:
    """A layer that skips Keras' checks when it is built and its inputs have its compute dtype.

    Keras checks, casts and times every layer call, which for 427 layers takes a tenth of a training
    step.
    """

    built: bool
    call: Any
    compute_dtype: str
    _call_has_training_arg: bool

    def __call__(self, inputs: Any, *args: Any, **settings: Any) -> Any:
        listed = inputs if isinstance(inputs, list) else [inputs]
        wanted = f"torch.{self.compute_dtype}"
        if not (self.built and all(str(getattr(x, "dtype", "")) == wanted for x in listed)):
            return super().__call__(inputs, *args, **settings)  # type: ignore[misc]
        if self._call_has_training_arg:
            return self.call(inputs, training=settings.get("training"))
        return self.call(inputs)


def _first(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)  # a view: channels-last memory is kept


def _last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def _padded(
    x: Any, reach: Any, strides: Any, padding: str, value: float = 0.0
) -> tuple[Any, list[int]]:
    """The map, padded where both sides differ, and the symmetric padding that remains."""
    from torch.nn import functional

    if padding == "valid":
        return x, [0, 0]
    total = [
        max((-(-s // step) - 1) * step + r - s, 0)
        for s, r, step in zip(x.shape[2:], reach, strides, strict=True)
    ]
    if not any(t % 2 for t in total):
        return x, [t // 2 for t in total]
    edges = [e for t in reversed(total) for e in (t // 2, t - t // 2)]
    return functional.pad(x, edges, value=value), [0, 0]


def _convolved(layer: Any, x: Any, weights: Any, groups: int) -> Any:
    """The convolution of a Keras layer on channels-last maps; the result is channels-last."""
    from torch.nn import functional

    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    x, padding = _padded(x, reach, layer.strides, layer.padding)
    out = functional.conv2d(x, weights, None, layer.strides, padding, layer.dilation_rate, groups)
    return _last(out)


@functools.cache
def _layer_classes() -> dict[str, Any]:
    """Keras' class name → native class; made on first use because Keras is imported late."""
    classes = (*_convolutions(), *_pools(), *_elementwise())
    return {kind.__name__: kind for kind in classes}


def _convolutions() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class Conv2D(_Direct, keras.layers.Conv2D):  # type: ignore[misc,name-defined]
        def convolution_op(self, inputs: torch.Tensor, kernel: Any) -> torch.Tensor:
            weights = kernel.value.to(inputs.dtype).permute(3, 2, 0, 1)
            return _convolved(self, _first(inputs), weights, self.groups)

    class DepthwiseConv2D(_Direct, keras.layers.DepthwiseConv2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            height, width, channels, times = self.kernel.shape
            kernel = self.kernel.value.to(inputs.dtype).permute(2, 3, 0, 1)
            weights = kernel.reshape(channels * times, 1, height, width)
            out = _convolved(self, _first(inputs), weights, channels)
            if self.use_bias:
                out = out + self.bias.value.to(out.dtype)
            return out if self.activation is None else self.activation(out)

    class BatchNormalization(_Direct, keras.layers.BatchNormalization):  # type: ignore[misc,name-defined]
        def add_weight(self, *args: Any, **settings: Any) -> Any:
            return super().add_weight(*args, **{**settings, "autocast": False})

        def call(self, inputs: torch.Tensor, training: Any = None, mask: Any = None) -> Any:
            out = functional.batch_norm(
                _first(inputs),
                self.moving_mean.value,
                self.moving_variance.value,
                self.gamma.value if self.scale else None,
                self.beta.value if self.center else None,
                bool(training and self.trainable),
                1.0 - self.momentum,
                self.epsilon,
            )
            return _last(out)

    return Conv2D, DepthwiseConv2D, BatchNormalization


def _pools() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class MaxPooling2D(_Direct, keras.layers.MaxPooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            least = torch.finfo(inputs.dtype).min
            x, padding = _padded(_first(inputs), self.pool_size, self.strides, self.padding, least)
            return _last(functional.max_pool2d(x, self.pool_size, self.strides, padding))

    class AveragePooling2D(_Direct, keras.layers.AveragePooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> Any:
            if self.padding != "valid":
                return super().call(inputs)
            return _last(functional.avg_pool2d(_first(inputs), self.pool_size, self.strides))

    return MaxPooling2D, AveragePooling2D


def _elementwise() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class Activation(_Direct, keras.layers.Activation):  # type: ignore[misc,name-defined]
        pass

    class Concatenate(_Direct, keras.layers.Concatenate):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any) -> Any:
            return _last(torch.cat([_first(each) for each in inputs], 1))

    class ZeroPadding2D(_Direct, keras.layers.ZeroPadding2D):  # type: ignore[misc,name-defined]
        pass

    class ReLU(_Direct, keras.layers.ReLU):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.max_value == 6.0 and not (self.negative_slope or self.threshold):
                return functional.relu6(inputs)
            return super().call(inputs)

    class Add(_Direct, keras.layers.Add):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any) -> Any:
            return sum(inputs[1:], inputs[0])

    return Activation, Add, Concatenate, ReLU, ZeroPadding2D


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The trained head, float32: kernels (width, units), (units, 1), biases (units,), (1,)."""

    hidden_kernel: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output_kernel: NDArray[np.float32]
    output_bias: NDArray[np.float32]


def initialise_randomly(backbone: Any, seed: int) -> None:
    """Set every kernel to He-normal weights drawn from `seed`; normalisations stay the identity.

    He et al., "Delving Deep into Rectifiers", ICCV 2015. The weights are drawn by NumPy, so a seed
    gives the same weights on every Keras backend, and no global random state is changed.
    """
    generator = np.random.default_rng([seed, 0x0DE_45E])
    for layer in leaves(backbone):
        weights = layer.get_weights()
        kernels = [k for k, each in enumerate(weights) if each.ndim > 1]
        for k in kernels:
            shape = weights[k].shape
            # A depthwise kernel (h, w, channels, multiplier) reads a single channel.
            depthwise = "Depthwise" in type(layer).__name__ or (len(kernels) == 2 and k == 0)
            deviation = np.sqrt(2.0 / np.prod(shape[:2] if depthwise else shape[:-1]))
            kernel = generator.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
            weights[k] = kernel
        if kernels:
            layer.set_weights(weights)


def weights_digest(model: Any) -> str:
    """SHA-256 over all weights, in the model's order; identifies the weights behind a feature."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def build_feature_model(backbone: Any) -> Any:
    """Backbone and GlobalAveragePooling2D: (n, size, size, 3) → (n, channels)."""
    keras = load_keras()
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL_LAYER)(backbone.output)
    return keras.Model(backbone.input, pooled, name="features")


def build_trunk(backbone: Any, boundary: str) -> Any:
    """The backbone up to the layer `boundary`: (n, size, size, 3) → (n, h, w, c)."""
    keras = load_keras()
    return keras.Model(backbone.input, layer_at(backbone, boundary).output, name="trunk")


def build_tail(backbone: Any, boundary: str) -> Any:
    """The backbone behind the layer `boundary`, sharing its layers: (n, h, w, c) → last map."""
    keras = load_keras()
    return keras.Model(layer_at(backbone, boundary).output, backbone.output, name="tail")


def with_head(body: Any, architecture: Architecture, seed: int) -> Any:
    """Add pooling and a new head to `body`, which ends in a feature map: → logits (n, 1)."""
    keras = load_keras()
    # Pooling and the head run in float32: they are cheap, and the loss is exact.
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL_LAYER, dtype="float32")(body.output)
    head = build_head(architecture, seed, body.output.shape[-1])
    return keras.Model(body.input, head(pooled), name="trained")


def build_head(architecture: Architecture, seed: int, width: int) -> Any:
    """Dropout → Dense(ReLU) → Dense(1): features (n, width) → logits (n, 1).

    The output is linear because the loss is more accurate on logits; `build_network` adds the
    sigmoid.
    """
    keras = load_keras()
    initial = [keras.initializers.GlorotUniform(seed=2 * seed + k) for k in (0, 1)]
    features = keras.Input((width,), name="features")
    x = keras.layers.Dropout(architecture.dropout, seed=seed, dtype="float32")(features)
    x = keras.layers.Dense(
        architecture.hidden_units,
        activation="relu",
        kernel_initializer=initial[0],
        dtype="float32",
    )(x)
    logits = keras.layers.Dense(1, kernel_initializer=initial[1], dtype="float32")(x)
    return keras.Model(features, logits, name="head")


def build_network(backbone: Any, architecture: Architecture, head: HeadWeights) -> Any:
    """The complete network: images (n, size, size, 3) → probability of pneumonia (n, 1)."""
    keras = load_keras()
    x = keras.layers.GlobalAveragePooling2D(name=POOL_LAYER)(backbone.output)
    x = keras.layers.Dropout(architecture.dropout, name="head_dropout")(x)
    x = keras.layers.Dense(architecture.hidden_units, activation="relu", name=HIDDEN_LAYER)(x)
    x = keras.layers.Dense(1, activation="sigmoid", name=OUTPUT_LAYER)(x)
    network = keras.Model(backbone.input, x, name="pneumoscope")
    set_head(network, head)
    return network


def set_head(network: Any, head: HeadWeights) -> None:
    """Set the head weights of a network made by `build_network`."""
    network.get_layer(HIDDEN_LAYER).set_weights([head.hidden_kernel, head.hidden_bias])
    network.get_layer(OUTPUT_LAYER).set_weights([head.output_kernel, head.output_bias])


def trainable_copy(backbone: Any, name: str, size: int | None, *, train_statistics: bool) -> Any:
    """A trainable copy of a backbone, with the fastest layers and the current dtype policy.

    Args:
        backbone: made by `build_backbone`.
        name: its name, as `build_backbone` takes it.
        size: of its input; `None` for squares of any size.
        train_statistics: whether batch normalisation is trained. If not, it keeps its moving
            statistics and its scale, as fine-tuning needs it: small batches would distort them.
    """
    keras = load_keras()
    copy = with_native_layers(build_backbone(size, name))
    copy.set_weights(backbone.get_weights())
    settle(copy)
    copy.trainable = True
    for layer in leaves(copy):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = train_statistics
    return copy


def freeze_before(backbone: Any, first: str) -> None:
    """Freeze the layer `first` and all layers that it depends on.

    Frozen batch normalisation keeps its statistics.

    Args:
        backbone: made by `trainable_copy`.
        first: a layer that every path through the network passes.

    Raises:
        UsageError: it is no such layer.
    """
    plan = plan_of(backbone)
    inner = plan.cuts()[1:-1]
    if first not in inner:
        raise UsageError(
            f"scratch.train_from: found {first!r}, wanted a layer that all paths pass: "
            f"{', '.join(inner)}"
        )
    frozen = {layer.name for layer in plan.until(first).layers}
    for layer in leaves(backbone):
        if layer.name in frozen:
            layer.trainable = False


def step_factors(network: Any, backbone: Any, rate: float, decay: float) -> dict[str, float]:
    """Step-size factor of each backbone variable, smaller with the distance from the head.

    Args:
        network: the trained network: layers of the backbone, or of a copy with the same names.
        backbone: made by `build_backbone`.
        rate: factor of the last stage, relative to the head.
        decay: factor of each stage relative to the next one.
    """
    stages = stages_of(plan_of(backbone))
    return {
        variable.path: rate * decay ** stages[layer.name]
        for layer in leaves(network)
        if layer.name in stages
        for variable in layer.trainable_variables
    }
