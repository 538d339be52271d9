"""The network is the mission's, layer by layer; its parts add up to it, weight by weight.

Tests of its structure use DenseNet121; tests of how parts combine use a small stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import UsageError
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import (
    HeadWeights,
    build_feature_model,
    build_head,
    build_network,
    build_tail,
    build_trunk,
    initialise_randomly,
    set_head,
    weights_digest,
    with_head,
)
from support.heads import BACKBONE_WIDTH, BOUNDARIES, empty_head, get_head
from support.small_network import small_network

SMALL = Architecture(size=64, hidden_units=8)


@pytest.fixture(scope="module")
def network() -> Any:
    return build_network(build_backbone(64), Architecture(size=64), empty_head(Architecture()))


def test_head_is_the_missions(network: Any) -> None:
    import keras

    pool, dropout, hidden, output = network.layers[-4:]
    assert isinstance(pool, keras.layers.GlobalAveragePooling2D)
    assert isinstance(dropout, keras.layers.Dropout)
    assert dropout.rate == 0.4
    assert (hidden.units, hidden.activation.__name__) == (256, "relu")
    assert (output.units, output.activation.__name__) == (1, "sigmoid")


def test_backbone_is_densenet121_and_frozen(network: Any) -> None:
    backbone = network.layers[:-4]
    convolutions = [layer for layer in backbone if layer.name.endswith("conv")]
    assert len(convolutions) == 120  # plus one Dense: the 121 of its name
    assert all(not layer.trainable for layer in backbone)
    assert sum(np.prod(w.shape) for w in network.trainable_variables) == 1024 * 256 + 256 + 256 + 1


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """A small backbone of random weights, moving statistics among them."""
    with small_network():
        yield randomised(build_backbone(64))


def randomised(model: Any) -> Any:
    generator = np.random.default_rng(1)
    model.set_weights(
        [generator.uniform(0.05, 0.3, w.shape).astype(np.float32) for w in model.get_weights()]
    )
    return model


def images(size: int = 64, count: int = 3) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, size, size, 3)).astype(np.float32)


def outputs_of(model: Any, batch: np.ndarray) -> np.ndarray:
    """Called directly, because compiling does not pay off for a few images."""
    from keras import ops

    return np.asarray(ops.convert_to_numpy(model(batch, training=False)), np.float32)


def random_head(seed: int = 3) -> HeadWeights:
    generator = np.random.default_rng(seed)
    shapes = ((BACKBONE_WIDTH, 8), (8,), (8, 1), (1,))
    ninth = np.float32(9)
    return HeadWeights(*(generator.standard_normal(s).astype(np.float32) / ninth for s in shapes))


def test_a_size_that_the_backbone_cant_take_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="found 31, wanted 32 or more"):
        build_backbone(31)


def test_random_weights_follow_the_seed(small: Any) -> None:
    before = small.get_weights()
    digests = []
    for seed in (1, 1, 2):
        initialise_randomly(small, seed)
        digests.append(weights_digest(small))
    kernels = [w for w in small.get_weights() if w.ndim == 4]
    small.set_weights(before)
    assert digests[0] == digests[1] != digests[2]
    for kernel in kernels:  # He-normal: deviation √(2 / fan-in)
        spread = kernel.std() / np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert spread == pytest.approx(1, abs=4 / np.sqrt(kernel.size))


def test_features_of_a_random_backbone_keep_their_scale(network: Any) -> None:
    backbone = build_backbone(64)
    initialise_randomly(backbone, 0)
    features = outputs_of(backbone, images()).mean((1, 2))
    assert features.shape == (3, BACKBONE_WIDTH)
    assert 1e-3 < np.median(features) < 1e3  # comfortably inside float16


def test_a_digest_changes_with_any_weight(small: Any) -> None:
    before, digest = small.get_weights(), weights_digest(small)
    for position in (0, len(before) - 1):
        changed = [w.copy() for w in before]
        changed[position].flat[0] = np.nextafter(changed[position].flat[0], np.float32(9))
        small.set_weights(changed)
        assert weights_digest(small) != digest
    small.set_weights(before)
    assert weights_digest(small) == digest


@pytest.mark.parametrize("boundary", BOUNDARIES.values())
def test_trunk_and_tail_are_the_backbone(small: Any, boundary: str) -> None:
    trunk, tail = build_trunk(small, boundary), build_tail(small, boundary)
    batch = images()
    np.testing.assert_allclose(
        outputs_of(tail, outputs_of(trunk, batch)), outputs_of(small, batch), rtol=1e-5
    )
    layers = {id(layer) for part in (trunk, tail) for layer in part.layers}
    assert {id(layer) for layer in small.layers} <= layers  # the same layers, not copies


@pytest.mark.parametrize(("block", "boundary"), BOUNDARIES.items())
def test_a_boundary_lies_right_before_its_block(network: Any, block: str, boundary: str) -> None:
    """In the real DenseNet121, where Keras names the layers."""
    names = [layer.name for layer in network.layers[:-4]]
    behind = names[names.index(boundary) + 1 :]
    assert behind[0].startswith(f"{block}_block1")
    assert not any(name.startswith(block) for name in names[: names.index(boundary)])
    begun = (
        ("conv4", "pool4", "conv5", "bn", "relu") if block == "conv4" else ("conv5", "bn", "relu")
    )
    assert all(name.startswith(begun) for name in behind)


def test_weights_of_what_is_trained_are_the_bodys_and_then_the_heads(small: Any) -> None:
    """The recipes take them apart by position."""
    trained = with_head(small, SMALL, 0)
    weights = trained.get_weights()
    assert [w.shape for w in weights[-4:]] == [(BACKBONE_WIDTH, 8), (8,), (8, 1), (1,)]
    for mine, theirs in zip(weights[:-4], small.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_training_and_inference_agree(small: Any) -> None:
    """The training model ends in logits, the network in probabilities; the rest is identical."""
    head, batch = random_head(), images()
    trained = with_head(small, SMALL, 0)
    trained.get_layer("head").set_weights(
        [head.hidden_kernel, head.hidden_bias, head.output_kernel, head.output_bias]
    )
    logits = outputs_of(trained, batch).astype(np.float64)
    assert np.ptp(logits) > 1e-4
    network = build_network(small, SMALL, head)
    np.testing.assert_allclose(outputs_of(network, batch), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    pooled = outputs_of(small, batch).mean((1, 2))
    np.testing.assert_allclose(outputs_of(build_feature_model(small), batch), pooled, rtol=1e-5)
    hidden = np.maximum(pooled @ head.hidden_kernel + head.hidden_bias, 0)
    wanted = hidden @ head.output_kernel + head.output_bias
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_head_put_in_comes_out(small: Any) -> None:
    network = build_network(small, SMALL, empty_head(SMALL))
    assert not get_head(network).hidden_kernel.any()
    head = random_head()
    set_head(network, head)
    for name in HeadWeights.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(get_head(network), name), getattr(head, name))


def test_a_backbone_of_no_size_takes_squares_of_any(small: Any) -> None:
    with small_network():
        flexible = build_backbone(None)
    flexible.set_weights(small.get_weights())
    batch = images()
    np.testing.assert_allclose(outputs_of(flexible, batch), outputs_of(small, batch), rtol=1e-5)
    assert outputs_of(flexible, images(96)).shape == (3, 3, 3, BACKBONE_WIDTH)


def test_a_new_head_follows_its_seed_and_drops_out_in_training_only() -> None:
    about = Architecture(dropout=0.9)
    first, same, other = (build_head(about, seed, BACKBONE_WIDTH) for seed in (1, 1, 2))
    for mine, theirs in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert np.abs(first.get_weights()[0] - other.get_weights()[0]).max() > 0
    features = np.ones((4, BACKBONE_WIDTH), np.float32)
    assert np.ptp(outputs_of(first, features)) < 1e-5
    assert np.ptp(np.asarray(first(features, training=True))) > 1e-3
    assert all(weight.dtype == np.float32 for weight in first.get_weights())
