"""DenseNet and its head, written out operation by operation for any engine.

Comes in: a network's arrays and a `Writer`. Goes out: the writer's nodes for logit, Grad-CAM map
and embedding. Knows neither engine nor files. The numbers are those of the Keras network: how many
blocks and units there are is read off the layers' names.

Maps are channels-first, (n, c, h, w), which engines on processors lay out as they like best.
Where batch normalisation follows a convolution its scale goes into the kernel: a node less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, takewhile

import numpy as np

from pneumoscope.graph.architecture import HIDDEN_LAYER, OUTPUT_LAYER
from pneumoscope.graph.stored import FloatArray, NetworkArrays
from pneumoscope.graph.writer import Node, Writer

EPSILON = 1.001e-5
"""What Keras' DenseNet adds to every variance."""


def write_network(
    to: Writer[Node], network: NetworkArrays, images: Node, size: int
) -> tuple[Node, Node, Node]:
    """One network from images (n, 3, s, s) to logit (n,), cam (n, h, w) ≥ 0, embedding (n, c)."""
    return _head(to, network, write_feature_map(to, network, images), map_side(size) ** 2)


def write_average(
    to: Writer[Node], networks: Sequence[NetworkArrays], images: Node, size: int, *, flip: bool
) -> tuple[Node, Node, Node]:
    """Networks, each with the mirror image if `flip`, by their mean probability.

    As `KerasBackend.run` does: the logit is that of the mean probability, the map the mean of all,
    the embedding the first network's.
    """
    if flip:
        images = to.concatenate([images, to.mirror(images)], 0)
    passes = []
    for network in networks:
        nodes = write_network(to, network, images, size)
        passes += _straight_and_mirrored(to, nodes) if flip else [nodes]
    if len(passes) == 1:
        return passes[0]
    logits = to.concatenate([to.reshape(logit, (1, -1)) for logit, _, _ in passes], 0)
    side = map_side(size)
    cams = to.concatenate([to.reshape(cam, (1, -1, side, side)) for _, cam, _ in passes], 0)
    return _logit_of_mean(to, logits), to.reduce("mean", cams, (0,)), passes[0][2]


def _straight_and_mirrored(
    to: Writer[Node], nodes: tuple[Node, Node, Node]
) -> list[tuple[Node, Node, Node]]:
    """The nodes of images and those of their mirror images, the maps turned back."""
    logits, cams, embeddings = (to.halves(node) for node in nodes)
    return [
        (logits[0], cams[0], embeddings[0]),
        (logits[1], to.mirror(cams[1]), embeddings[1]),
    ]


def _logit_of_mean(to: Writer[Node], logits: Node) -> Node:
    """Logits (m, n) to that of their mean probability (n,), without forming a probability of 1."""
    zero = to.constant(np.zeros(1, np.float32))
    log_q = to.combine("subtract", zero, to.apply("softplus", logits))
    log_p = to.combine("add", logits, log_q)
    return to.combine("subtract", _log_sum(to, log_p), _log_sum(to, log_q))


def _log_sum(to: Writer[Node], logs: Node) -> Node:
    """The logarithm of the sum of exponentials over the first axis."""
    top = to.reduce("max", logs, (0,), keep=True)
    shares = to.apply("exp", to.combine("subtract", logs, top))
    total = to.apply("log", to.reduce("sum", shares, (0,)))
    return to.combine("add", total, to.reshape(top, (-1,)))


def write_feature_map(
    to: Writer[Node], network: NetworkArrays, images: Node, boundary: str | None = None
) -> Node:
    """Images (n, 3, s, s) to the last feature map, or to the map behind the layer `boundary`.

    The stem, the blocks of units with a transition before each but the first, the last norm.
    """
    x = _conv_norm_relu(to, network, images, "conv1_conv", "conv1_bn", stride=2, padding=3)
    x = to.pool(x, "max", 3, 2, 1)  # what is padded with counts for nothing: all is 0 or more
    for block in takewhile(lambda b: f"conv{b}_block1_1_conv" in network.layers, count(2)):
        if block > 2:
            x = _transition(to, network, x, f"pool{block - 1}")
            if boundary == f"pool{block - 1}_pool":
                return x
        units = (f"conv{block}_block{number}" for number in count(1))
        for unit in takewhile(lambda name: f"{name}_1_conv" in network.layers, units):
            x = to.concatenate([x, _unit(to, network, x, unit)], 1)
    return _norm_relu(to, network, x, "bn")


def _unit(to: Writer[Node], network: NetworkArrays, x: Node, name: str) -> Node:
    x = _norm_relu(to, network, x, f"{name}_0_bn")
    x = _conv_norm_relu(to, network, x, f"{name}_1_conv", f"{name}_1_bn", stride=1, padding=0)
    (kernel,) = network.of(f"{name}_2_conv")
    return to.convolution(x, _out_in(kernel), 1, 1)


def _transition(to: Writer[Node], network: NetworkArrays, x: Node, name: str) -> Node:
    """Norm, ReLU, 1×1 convolution, mean of each 2×2.

    The mean goes before the convolution here: both are linear and the convolution looks at one
    position at a time, so the numbers are the same for a quarter of the products.
    """
    x = to.pool(_norm_relu(to, network, x, f"{name}_bn"), "mean", 2, 2, 0)
    (kernel,) = network.of(f"{name}_conv")
    return to.convolution(x, _out_in(kernel), 1, 0)


def _conv_norm_relu(
    to: Writer[Node],
    network: NetworkArrays,
    x: Node,
    conv: str,
    norm: str,
    *,
    stride: int,
    padding: int,
) -> Node:
    (kernel,) = network.of(conv)
    scale, shift = _scale_and_shift(network, norm)
    x = to.convolution(x, _out_in(kernel * scale), stride, padding)
    return to.apply("relu", to.combine("add", x, to.constant(_per_channel(shift))))


def _norm_relu(to: Writer[Node], network: NetworkArrays, x: Node, norm: str) -> Node:
    scale, shift = _scale_and_shift(network, norm)
    x = to.combine("multiply", x, to.constant(_per_channel(scale)))
    return to.apply("relu", to.combine("add", x, to.constant(_per_channel(shift))))


def _scale_and_shift(network: NetworkArrays, norm: str) -> tuple[FloatArray, FloatArray]:
    """Batch normalisation with its moving statistics as x × scale + shift, each (channels,)."""
    gamma, beta, mean, variance = (array.astype(np.float64) for array in network.of(norm))
    scale = gamma / np.sqrt(variance + EPSILON)
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def _per_channel(array: FloatArray) -> FloatArray:
    return array.reshape(1, -1, 1, 1)


def _out_in(kernel: FloatArray) -> FloatArray:
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def map_side(size: int) -> int:
    """The side of the last feature map of images of `size` pixels: two halvings up, three down."""
    half = (size + 1) // 2
    return (half + 1) // 2 // 8


def _head(
    to: Writer[Node], network: NetworkArrays, x: Node, positions: int
) -> tuple[Node, Node, Node]:
    """The head and its gradient, as `gradcam.py` has them."""
    hidden, hidden_bias = network.of(HIDDEN_LAYER)
    output, output_bias = network.of(OUTPUT_LAYER)
    embedding = to.reduce("mean", x, (2, 3))
    before = to.combine(
        "add", to.product(embedding, to.constant(hidden)), to.constant(hidden_bias[None])
    )
    through = to.product(to.apply("relu", before), to.constant(output))
    logit = to.combine("add", through, to.constant(output_bias[None]))
    share = (output.T / positions).astype(np.float32)
    slopes = to.combine("multiply", to.apply("step", before), to.constant(share))
    gradient = to.product(slopes, to.constant(np.ascontiguousarray(hidden.T)))
    weighed = to.combine("multiply", x, to.reshape(gradient, (0, -1, 1, 1)))
    cam = to.apply("relu", to.reduce("sum", weighed, (1,)))
    return to.reshape(logit, (-1,)), cam, embedding
