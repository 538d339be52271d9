"""A network as plan and arrays, and its outputs written for any engine.

The plan is that of the Keras model (`plan.py`), so every engine runs the network that Keras
trained. Behind the feature map are global average pooling and two dense layers. Through them the
gradient of the logit has a closed form, so the same forward pass also gives Grad-CAM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Generic

import numpy as np

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import BundleError
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER
from pneumoscope.graph.layers import Value, write_plan
from pneumoscope.graph.plan import Plan
from pneumoscope.graph.writer import Node, Writer


@dataclass(frozen=True, slots=True)
class NetworkArrays:
    """A network: how its layers are connected, and the arrays of every layer that has any.

    Attributes:
        plan: of a complete network, or of a backbone, which ends in a feature map.
        layers: arrays in Keras' order and layout. A convolution has (height, width, in, out) and a
            bias; batch normalisation has gamma, beta, moving mean and moving variance, each
            (channels,); a dense layer has (in, out) and (out,).
    """

    plan: Plan
    layers: Mapping[str, tuple[Float32Array, ...]]

    def of(self, name: str) -> tuple[Float32Array, ...]:
        """The arrays of a layer.

        Raises:
            BundleError: there is no such layer.
        """
        if name not in self.layers:
            raise BundleError(
                f"the weights have no layer {name!r}. Copy the bundle again or train again."
            )
        return self.layers[name]

    def digest(self) -> str:
        """SHA-256 over plan and arrays: all that the outputs depend on besides the images.

        Networks with the same weights may differ in their plan: in strides and dilations.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.plan), sort_keys=True).encode())
        for name, arrays in sorted(self.layers.items()):
            digest.update(name.encode())
            for array in arrays:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def feature_layer(self) -> str:
        """Name of the layer that computes the last feature map."""
        if self.plan.has(POOL_LAYER):
            return self.plan.layer(POOL_LAYER).sources[0]
        return self.plan.output

    @property
    def width(self) -> int:
        """Channels of the pooled features of a network with a head."""
        return int(self.of(HIDDEN_LAYER)[0].shape[0])


@dataclass(frozen=True, slots=True)
class NetworkOutputs(Generic[Node]):
    """Outputs of a network.

    Attributes:
        logit: (n,).
        cam: Grad-CAM of the logit, (n, side, side) ≥ 0.
        embedding: pooled features, (n, c).
        side: side of the maps.
    """

    logit: Node
    cam: Node
    embedding: Node
    side: int


def write_network(
    to: Writer[Node], network: NetworkArrays, images: Node, size: int
) -> NetworkOutputs[Node]:
    """Write one network for images (n, 3, size, size)."""
    return _head(to, network, write_feature_map(to, network, images, size))


def write_feature_map(
    to: Writer[Node],
    network: NetworkArrays,
    images: Node,
    size: int,
    boundary: str | None = None,
) -> Value[Node]:
    """Images (n, 3, size, size) → the last feature map, or the map of the layer `boundary`."""
    plan = network.plan.until(boundary or network.feature_layer)
    return write_plan(to, plan, network.layers, images, size)


def write_average(
    to: Writer[Node], networks: Sequence[NetworkArrays], images: Node, size: int, *, flip: bool
) -> NetworkOutputs[Node]:
    """Write an ensemble, with `flip` also for mirrored images, averaged by mean probability.

    The logit is that of the mean probability, the map is the mean of all maps, and the embedding is
    that of the first network.
    """
    if flip:
        images = to.concatenate([images, to.mirror(images)], 0)
    passes: list[NetworkOutputs[Node]] = []
    for network in networks:
        outputs = write_network(to, network, images, size)
        passes += _straight_and_mirrored(to, outputs) if flip else [outputs]
    if len(passes) == 1:
        return passes[0]
    side = passes[0].side
    logits = to.concatenate([to.reshape(each.logit, (1, -1)) for each in passes], 0)
    cams = to.concatenate([to.reshape(each.cam, (1, -1, side, side)) for each in passes], 0)
    mean = to.reduce("mean", cams, (0,))
    return NetworkOutputs(_logit_of_mean(to, logits), mean, passes[0].embedding, side)


def _straight_and_mirrored(
    to: Writer[Node], outputs: NetworkOutputs[Node]
) -> list[NetworkOutputs[Node]]:
    """Outputs of the images, and those of their mirror images with the maps flipped back."""
    logits, cams, embeddings = (
        to.halves(node) for node in (outputs.logit, outputs.cam, outputs.embedding)
    )
    return [
        NetworkOutputs(logits[0], cams[0], embeddings[0], outputs.side),
        NetworkOutputs(logits[1], to.mirror(cams[1]), embeddings[1], outputs.side),
    ]


def _logit_of_mean(to: Writer[Node], logits: Node) -> Node:
    """Logits (m, n) → logit of their mean probability (n,), without rounding to probability 1."""
    zero = to.constant(np.zeros(1, np.float32))
    log_q = to.combine("subtract", zero, to.apply("softplus", logits))
    log_p = to.combine("add", logits, log_q)
    return to.combine("subtract", _log_sum(to, log_p), _log_sum(to, log_q))


def _log_sum(to: Writer[Node], logs: Node) -> Node:
    """Logarithm of the sum of exponentials over the first axis."""
    top = to.reduce("max", logs, (0,), keep=True)
    shares = to.apply("exp", to.combine("subtract", logs, top))
    total = to.apply("log", to.reduce("sum", shares, (0,)))
    return to.combine("add", total, to.reshape(top, (-1,)))


def _head(to: Writer[Node], network: NetworkArrays, features: Value[Node]) -> NetworkOutputs[Node]:
    """The head and its closed-form gradient (Grad-CAM: Selvaraju et al., ICCV 2017)."""
    x, side = features.node, features.height
    hidden, hidden_bias = network.of(HIDDEN_LAYER)
    output, output_bias = network.of(OUTPUT_LAYER)
    if hidden.shape[0] != features.channels or side < 1:
        raise BundleError(
            f"the network's feature map has {features.channels} channels, but its head expects "
            f"{hidden.shape[0]}. Copy the bundle again or train again."
        )
    embedding = to.reduce("mean", x, (2, 3))
    before = to.combine(
        "add", to.product(embedding, to.constant(hidden)), to.constant(hidden_bias[None])
    )
    through = to.product(to.apply("relu", before), to.constant(output))
    logit = to.combine("add", through, to.constant(output_bias[None]))
    share = (output.T / (features.height * features.width)).astype(np.float32)
    slopes = to.combine("multiply", to.apply("step", before), to.constant(share))
    gradient = to.product(slopes, to.constant(np.ascontiguousarray(hidden.T)))
    weighed = to.combine("multiply", x, to.reshape(gradient, (0, -1, 1, 1)))
    cam = to.apply("relu", to.reduce("sum", weighed, (1,)))
    return NetworkOutputs(to.reshape(logit, (-1,)), cam, embedding, side)
