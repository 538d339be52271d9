"""The closed-form Grad-CAM map equals that of automatic differentiation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.inference.engine import build_inference_graph
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import HeadWeights, build_network, initialise_randomly
from support.heads import BACKBONE_WIDTH, get_head

SIZE = 96


@pytest.fixture(scope="module")
def network() -> Any:
    generator = np.random.default_rng(3)
    backbone = build_backbone(SIZE)
    initialise_randomly(backbone, 5)
    head = HeadWeights(
        (generator.standard_normal((BACKBONE_WIDTH, 256)) * 0.05).astype(np.float32),
        generator.standard_normal(256).astype(np.float32),
        generator.standard_normal((256, 1)).astype(np.float32),
        generator.standard_normal(1).astype(np.float32),
    )
    return build_network(backbone, Architecture(size=SIZE), head)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, SIZE, SIZE, 3)).astype(np.float32)


def by_gradients(network: Any, images: np.ndarray) -> np.ndarray:
    """Grad-CAM as in the paper, with the backend's gradients of the logit."""
    import keras
    import tensorflow as tf

    features = keras.Model(network.input, network.get_layer("pool").input)
    head = get_head(network)
    with tf.GradientTape() as tape:
        maps = features(images, training=False)
        tape.watch(maps)
        pooled = tf.reduce_mean(maps, axis=(1, 2))
        hidden = tf.nn.relu(pooled @ head.hidden_kernel + head.hidden_bias)
        logit = hidden @ head.output_kernel + head.output_bias
    channel_weights = tf.reduce_mean(tape.gradient(logit, maps), axis=(1, 2))
    weighed = tf.reduce_sum(maps * channel_weights[:, None, None, :], axis=-1)
    return np.asarray(tf.nn.relu(weighed))


def test_equals_gradients_of_the_backend(network: Any, images: np.ndarray) -> None:
    found = build_inference_graph(network).predict_on_batch(images)["cam"]
    wanted = by_gradients(network, images)
    assert wanted.max() > 0
    assert found.shape == (4, SIZE // 32, SIZE // 32)
    assert np.abs(found - wanted).max() <= 1e-4 * (wanted.max() - wanted.min())


def test_logit_is_the_networks_own(network: Any, images: np.ndarray) -> None:
    out = build_inference_graph(network).predict_on_batch(images)
    wanted = network.predict_on_batch(images)[:, 0]
    np.testing.assert_allclose(1 / (1 + np.exp(-out["logit"])), wanted, atol=1e-5)
    assert out["embedding"].shape == (4, BACKBONE_WIDTH)
