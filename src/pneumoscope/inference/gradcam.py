"""Probability, Grad-CAM map and embedding from one forward pass.

`build_inference_graph` makes a Keras graph of a trained network's weights with three outputs.

Grad-CAM (Selvaraju et al., ICCV 2017) weighs each channel of the last feature map A, (h, w, c),
by the mean over positions of the gradient of the logit. Behind global average pooling that
gradient is the same at every position: (1 / hw) times the head's gradient at the pooled
features, which for Dense(ReLU) → Dense(1) is W1 (w2 where the hidden unit is on). So no backward
pass is needed, and an exported graph can yield the map too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pneumoscope.graph.architecture import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER
from pneumoscope.keras_loading import load_keras


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
        """The head and its gradient, written out."""

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
