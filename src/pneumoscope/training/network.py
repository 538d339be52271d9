"""The network: DenseNet121 → GlobalAveragePooling2D → Dropout → Dense(ReLU) → Dense(1, sigmoid).

Comes in: sizes and a seed. Goes out: Keras models, any backend. Knows nothing of images, files or
training. The backbone is Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.graph.architecture import (
    BACKBONE_WIDTH,
    HIDDEN_LAYER,
    LEAST_SIZE,
    OUTPUT_LAYER,
    Architecture,
)
from pneumoscope.graph.stored import NetworkArrays
from pneumoscope.training.native_torch import with_native_layers
from pneumoscope.training.runtime import load_keras


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The trained head, float32: kernels (1024, units) and (units, 1), biases (units,) and (1,)."""

    hidden_kernel: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output_kernel: NDArray[np.float32]
    output_bias: NDArray[np.float32]


def build_backbone(size: int | None) -> Any:
    """DenseNet121 without its top for (n, size, size, 3) float32 input; its weights are unset.

    The output is the last feature map, (n, size/32, size/32, 1024), after batch norm and ReLU.
    With `None` it takes squares of any size.

    Raises:
        UsageError: the size is less than `LEAST_SIZE`.
    """
    if size is not None and size < LEAST_SIZE:
        raise UsageError(f"preprocess.size: found {size}, wanted {LEAST_SIZE} or more")
    keras = load_keras()
    backbone = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    backbone = with_native_layers(backbone)
    # Frozen as a whole: Keras then runs batch normalisation with its moving statistics.
    backbone.trainable = False
    return backbone


def initialise_randomly(backbone: Any, seed: int) -> None:
    """Give every convolution He-normal weights drawn from `seed` alone, batch norm the identity.

    He et al., "Delving Deep into Rectifiers", ICCV 2015. Drawn with NumPy, so the same seed gives
    the same weights on every Keras backend, and no global random state is touched.
    """
    generator = np.random.default_rng([seed, 0x0DE_45E])
    for layer in backbone.layers:
        weights = layer.get_weights()
        if len(weights) == 1:
            shape = weights[0].shape
            deviation = np.sqrt(2.0 / np.prod(shape[:-1]))
            kernel = generator.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
            layer.set_weights([kernel])


def weights_digest(model: Any) -> str:
    """SHA-256 over all weights, in the model's order: tells which weights made a feature."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def arrays_of(model: Any) -> NetworkArrays:
    """The weights of a Keras model by layer, for engines that know no Keras."""
    arrays = {layer.name: tuple(layer.get_weights()) for layer in model.layers}
    return NetworkArrays({name: each for name, each in arrays.items() if each})


def build_feature_model(backbone: Any) -> Any:
    """Backbone and GlobalAveragePooling2D: (n, size, size, 3) → (n, 1024)."""
    keras = load_keras()
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    return keras.Model(backbone.input, pooled, name="features")


def build_trunk(backbone: Any, boundary: str) -> Any:
    """The backbone up to the layer `boundary`: (n, size, size, 3) → (n, h, w, c)."""
    keras = load_keras()
    return keras.Model(backbone.input, backbone.get_layer(boundary).output, name="trunk")


def build_tail(backbone: Any, boundary: str) -> Any:
    """The backbone behind the layer `boundary`, with its very layers: (n, h, w, c) → last map."""
    keras = load_keras()
    return keras.Model(backbone.get_layer(boundary).output, backbone.output, name="tail")


def with_head(body: Any, architecture: Architecture, seed: int) -> Any:
    """GAP and a new head behind `body`, a model that ends in a feature map: → logits (n, 1)."""
    keras = load_keras()
    # The mean and what follows in float32: little work, and a loss that is exact.
    pooled = keras.layers.GlobalAveragePooling2D(name="pool", dtype="float32")(body.output)
    head = build_head(architecture, seed)
    return keras.Model(body.input, head(pooled), name="trained")


def build_head(architecture: Architecture, seed: int) -> Any:
    """Dropout → Dense(ReLU) → Dense(1): features (n, 1024) → logits (n, 1).

    The layer is linear at its end because the loss is more exact on logits; `build_network` puts
    the sigmoid back.
    """
    keras = load_keras()
    initial = [keras.initializers.GlorotUniform(seed=2 * seed + k) for k in (0, 1)]
    features = keras.Input((BACKBONE_WIDTH,), name="features")
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
    """The whole network: images (n, size, size, 3) → probability of pneumonia (n, 1)."""
    keras = load_keras()
    x = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.output)
    x = keras.layers.Dropout(architecture.dropout, name="head_dropout")(x)
    x = keras.layers.Dense(architecture.hidden_units, activation="relu", name=HIDDEN_LAYER)(x)
    x = keras.layers.Dense(1, activation="sigmoid", name=OUTPUT_LAYER)(x)
    network = keras.Model(backbone.input, x, name="pneumoscope")
    set_head(network, head)
    return network


def set_head(network: Any, head: HeadWeights) -> None:
    """Put trained head weights into a network of `build_network`."""
    network.get_layer(HIDDEN_LAYER).set_weights([head.hidden_kernel, head.hidden_bias])
    network.get_layer(OUTPUT_LAYER).set_weights([head.output_kernel, head.output_bias])


def get_head(network: Any) -> HeadWeights:
    """The head weights of a network of `build_network`."""
    hidden = network.get_layer(HIDDEN_LAYER).get_weights()
    output = network.get_layer(OUTPUT_LAYER).get_weights()
    return HeadWeights(hidden[0], hidden[1], output[0], output[1])


def empty_head(architecture: Architecture) -> HeadWeights:
    """A head of zeros: the shapes, before weights are loaded."""
    units = architecture.hidden_units
    return HeadWeights(
        np.zeros((BACKBONE_WIDTH, units), np.float32),
        np.zeros(units, np.float32),
        np.zeros((units, 1), np.float32),
        np.zeros(1, np.float32),
    )
