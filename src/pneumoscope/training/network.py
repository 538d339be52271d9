"""The network: a backbone → GlobalAveragePooling2D → Dropout → Dense(ReLU) → Dense(1, sigmoid).

This module builds it and takes it apart, as Keras models on any Keras backend. It is the only
definition of the network: engines without Keras read the layers from the saved model
(`graph/plan.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER, Architecture
from pneumoscope.keras_loading import load_keras
from pneumoscope.training.backbones import build_backbone, layer_at, stages_of
from pneumoscope.training.native_torch import with_native_layers
from pneumoscope.training.plans import leaves, plan_of, settle


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
