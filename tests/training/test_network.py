"""The network is the mission's, layer by layer, and its random weights depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.errors import UsageError
from pneumoscope.training.network import (
    Architecture,
    build_backbone,
    build_network,
    empty_head,
    initialise_randomly,
    weights_digest,
)


@pytest.fixture(scope="module")
def network() -> object:
    return build_network(build_backbone(64), Architecture(size=64), empty_head(Architecture()))


def test_head_is_the_missions(network) -> None:
    import keras

    pool, dropout, hidden, output = network.layers[-4:]
    assert isinstance(pool, keras.layers.GlobalAveragePooling2D)
    assert isinstance(dropout, keras.layers.Dropout)
    assert dropout.rate == 0.4
    assert (hidden.units, hidden.activation.__name__) == (256, "relu")
    assert (output.units, output.activation.__name__) == (1, "sigmoid")


def test_backbone_is_densenet121_and_frozen(network) -> None:
    backbone = network.layers[:-4]
    convolutions = [layer for layer in backbone if layer.name.endswith("conv")]
    assert len(convolutions) == 120  # and one Dense: the 121 of its name
    assert all(not layer.trainable for layer in backbone)
    assert sum(np.prod(w.shape) for w in network.trainable_variables) == 1024 * 256 + 256 + 256 + 1


def test_a_size_that_the_backbone_cant_take_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="found 31, wanted 32 or more"):
        build_backbone(31)


def test_random_weights_follow_the_seed() -> None:
    digests = []
    for seed in (1, 1, 2):
        backbone = build_backbone(64)
        initialise_randomly(backbone, seed)
        digests.append(weights_digest(backbone))
    assert digests[0] == digests[1] != digests[2]


def test_features_of_a_random_backbone_keep_their_scale() -> None:
    backbone = build_backbone(64)
    initialise_randomly(backbone, 0)
    images = np.random.default_rng(0).standard_normal((4, 64, 64, 3)).astype(np.float32)
    features = backbone.predict_on_batch(images).mean((1, 2))
    assert 1e-3 < np.median(features) < 1e3  # comfortably inside float16
