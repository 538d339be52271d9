"""Prediction graphs: probability, Grad-CAM heatmap and embedding from one forward pass.

`write_prediction` writes the graph of an exported model with a `Writer`: from grey pixels through
preprocessing (`images/preprocess.py`), network and calibration to the outputs. Images are resized
by a matrix product on either side, because engines differ in their resize operations, and some lack
antialiasing, but all agree on products.

`build_inference_graph` makes the Keras graph of a trained network with the same outputs.

Grad-CAM (Selvaraju et al., ICCV 2017) weights each channel of the last feature map A, (h, w, c), by
the mean over positions of the gradient of the logit. Behind global average pooling this gradient is
the same at every position: (1 / hw) times the gradient of the head at the pooled features. For
Dense(ReLU) → Dense(1) that is W1 (w2 where the hidden unit is active). So no backward pass is
needed, and an exported graph can compute the map too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER
from pneumoscope.graph.network import NetworkArrays, write_average
from pneumoscope.graph.writer import FloatArray, Node, Writer
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN, LEAST_DEVIATION
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.keras_loading import load_keras

OUTPUTS = ("probability", "heatmap", "embedding")

_LEAST = np.full(1, 1e-12, np.float32)
"""Lower limit of divisors."""


@dataclass(frozen=True, slots=True)
class PredictionNodes(Generic[Node]):
    """The nodes of `OUTPUTS`, and the side of the heatmap."""

    probability: Node
    heatmap: Node
    embedding: Node
    side: int

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        """The nodes in the order of `OUTPUTS`."""
        return self.probability, self.heatmap, self.embedding


def write_prediction(
    to: Writer[Node], manifest: BundleManifest, networks: Sequence[NetworkArrays], pixels: Node
) -> PredictionNodes[Node]:
    """Write the graph from grey pixels, uint8 (n, h, w) of any size, to `OUTPUTS`.

    The probability (n,) is calibrated. The heatmap (n, m, m) is Grad-CAM on the network's coarse
    grid, scaled to a peak of 1, and all 0 where nothing indicates pneumonia. The embedding is
    (n, c).
    """
    config = manifest.preprocessing
    grey = to.combine("divide", to.as_float(pixels), _number(to, 255.0))
    images = _normalise(to, _fit(to, grey, config), config)
    outputs = write_average(to, networks, images, config.size, flip=manifest.flip)
    cam = outputs.cam
    straight = to.combine("multiply", outputs.logit, _number(to, manifest.calibration.slope))
    shifted = to.combine("add", straight, _number(to, manifest.calibration.intercept))
    peak = to.combine("maximum", to.reduce("max", cam, (1, 2), keep=True), to.constant(_LEAST))
    heatmap = to.combine("divide", cam, peak)
    return PredictionNodes(to.apply("sigmoid", shifted), heatmap, outputs.embedding, outputs.side)


def _number(to: Writer[Node], value: float) -> Node:
    return to.constant(np.full(1, value, np.float32))


def _fit(to: Writer[Node], grey: Node, config: PreprocessConfig) -> Node:
    """Resize grey (n, h, w) to the square (n, size, size), as `Preprocessor.grey` does."""
    size = _number(to, config.size)
    height, width = to.length(grey, 1), to.length(grey, 2)
    rows, columns = size, size
    if config.fit == "pad":
        longest = to.combine("maximum", height, width)
        rows, columns = (_shown(to, side, longest, size) for side in (height, width))
    above = _taps(to, height, rows, config.size)
    beside = _taps(to, width, columns, config.size, turned=True)
    return to.product(to.product(above, grey), beside)


def _shown(to: Writer[Node], side: Node, longest: Node, size: Node) -> Node:
    """Pixels of the square that a side of the image takes: its share, rounded, at least 1."""
    share = to.combine("divide", to.combine("multiply", side, size), longest)
    return to.combine("maximum", to.apply("round", share), _number(to, 1.0))


def _taps(to: Writer[Node], length: Node, shown: Node, size: int, *, turned: bool = False) -> Node:
    """The matrix (size, length) that resizes one side; (length, size) if `turned`.

    Row i holds the weights of the source pixels in target pixel i. They form a triangle around the
    target's position in the source, as wide as the reduction and at least one pixel, with sum 1
    (bilinear with antialiasing, as in Pillow). Rows in the margin of a padded side are 0.
    """
    target_axis, source_axis = ((1, -1), (-1, 1)) if turned else ((-1, 1), (1, -1))
    margin = to.combine("subtract", _number(to, size), shown)
    first = to.apply("floor", to.combine("divide", margin, _number(to, 2.0)))
    middles = np.arange(size, dtype=np.float32).reshape(target_axis) + np.float32(0.5)
    place = to.combine("subtract", to.constant(middles), first)
    step = to.combine("divide", length, shown)
    reach = to.combine("maximum", step, _number(to, 1.0))
    source = to.reshape(to.counted(length), source_axis)
    source = to.combine("add", source, _number(to, 0.5))
    distance = to.apply("abs", to.combine("subtract", source, to.combine("multiply", place, step)))
    near = to.combine("subtract", _number(to, 1.0), to.combine("divide", distance, reach))
    weights = to.apply("relu", near)
    total = to.reduce("sum", weights, (0,) if turned else (1,), keep=True)
    weights = to.combine("divide", weights, to.combine("maximum", total, to.constant(_LEAST)))
    inside = to.combine(
        "multiply",
        to.apply("step", place),
        to.apply("step", to.combine("subtract", shown, place)),
    )
    return to.combine("multiply", weights, inside)


def _normalise(to: Writer[Node], square: Node, config: PreprocessConfig) -> Node:
    """Normalise the square (n, size, size) to the network's channels (n, 3, size, size)."""
    one = to.reshape(square, (-1, 1, config.size, config.size))
    if config.normalisation == "imagenet":
        mean, deviation = (_per_channel(each) for each in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        centred = to.combine("subtract", one, to.constant(mean))
        return to.combine("divide", centred, to.constant(deviation))
    centred = to.combine("subtract", one, to.reduce("mean", one, (2, 3), keep=True))
    squares = to.combine("multiply", centred, centred)
    deviation_of = to.apply("sqrt", to.reduce("mean", squares, (2, 3), keep=True))
    held = to.combine("maximum", deviation_of, _number(to, LEAST_DEVIATION))
    standard = to.combine("divide", centred, held)
    return to.concatenate([standard] * 3, 1)


def _per_channel(values: Sequence[float]) -> FloatArray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def build_inference_graph(network: Any) -> Any:
    """A model from images (n, s, s, 3) to `logit` (n,), `cam` (n, h, w) ≥ 0, `embedding` (n, c).

    The map is Grad-CAM of the pneumonia logit, unscaled; the embedding is the pooled features.
    """
    keras = load_keras()
    feature_map = network.get_layer(POOL_LAYER).input
    logit, cam, embedding = _closed_form_head(network)(feature_map)
    return keras.Model(
        network.input, {"logit": logit, "cam": cam, "embedding": embedding}, name="inference"
    )


def _closed_form_head(network: Any) -> Any:
    keras = load_keras()
    ops = keras.ops
    hidden, hidden_bias = network.get_layer(HIDDEN_LAYER).get_weights()
    output, output_bias = network.get_layer(OUTPUT_LAYER).get_weights()

    class ClosedFormHead(keras.layers.Layer):  # type: ignore[misc, name-defined]
        """The head and its gradient in closed form."""

        def build(self, input_shape: Any) -> None:
            self.hidden = self._constant(hidden)
            self.hidden_bias = self._constant(hidden_bias)
            self.output_kernel = self._constant(output)
            self.output_bias = self._constant(output_bias)

        def _constant(self, value: np.ndarray[Any, Any]) -> Any:
            weight = self.add_weight(shape=value.shape, initializer="zeros", trainable=False)
            weight.assign(value)
            return weight

        def call(self, feature_map: Any) -> tuple[Any, Any, Any]:
            positions = feature_map.shape[1] * feature_map.shape[2]
            embedding = ops.mean(feature_map, axis=(1, 2))
            before = ops.matmul(embedding, self.hidden) + self.hidden_bias
            logit = ops.matmul(ops.relu(before), self.output_kernel) + self.output_bias
            active = ops.cast(before > 0, before.dtype)
            through = active * ops.transpose(self.output_kernel)
            gradient = ops.matmul(through, ops.transpose(self.hidden)) / positions
            weighed = ops.sum(feature_map * gradient[:, None, None, :], axis=-1)
            return logit[:, 0], ops.relu(weighed), embedding

    return ClosedFormHead(name="closed_form_head")
