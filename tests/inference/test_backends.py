"""Several passes (members, mirror images) are combined by the mean probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.inference.engine import KerasBackend, Outputs, logit_of_mean
from pneumoscope.training.network import HeadWeights, build_network

keras = pytest.importorskip("keras")

SIZE, CHANNELS, UNITS = 8, 4, 5


def tiny(seed: int) -> Any:
    """A network of one convolution whose output differs between left and right."""
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    images = keras.Input((SIZE, SIZE, 3))
    maps = keras.layers.Conv2D(CHANNELS, 3, strides=2, activation="relu")(images)
    backbone = keras.Model(images, maps)
    backbone.set_weights([random(3, 3, 3, CHANNELS), random(CHANNELS)])
    head = HeadWeights(random(CHANNELS, UNITS), random(UNITS), random(UNITS, 1), random(1))
    return build_network(backbone, Architecture(size=SIZE, hidden_units=UNITS), head)


@pytest.fixture(scope="module")
def networks() -> list[Any]:
    return [tiny(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((6, SIZE, SIZE, 3)).astype(np.float32)


def probabilities(out: Outputs) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-out.logits.astype(np.float64)))


def mirrored(array: np.ndarray) -> np.ndarray:
    return np.flip(array, axis=2)


def test_one_network_in_a_sequence_is_that_network(networks: list[Any], batch: np.ndarray) -> None:
    alone, listed = KerasBackend(networks[0]).run(batch), KerasBackend(networks[:1]).run(batch)
    for name in ("logits", "cams", "embeddings"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(listed, name))
    wanted = networks[0].predict_on_batch(batch)[:, 0]
    np.testing.assert_allclose(probabilities(alone), wanted, atol=1e-6)


def test_an_ensemble_predicts_with_the_mean_probability(
    networks: list[Any], batch: np.ndarray
) -> None:
    each = [KerasBackend(network).run(batch) for network in networks]
    found = KerasBackend(tuple(networks)).run(batch)
    wanted = np.mean([probabilities(out) for out in each], axis=0)
    assert np.ptp([probabilities(out) for out in each], axis=0).min() > 0.01
    np.testing.assert_allclose(probabilities(found), wanted, atol=1e-6)
    np.testing.assert_allclose(found.cams, np.mean([out.cams for out in each], axis=0), atol=1e-6)
    np.testing.assert_array_equal(found.embeddings, each[0].embeddings)
    assert {array.dtype for array in (found.logits, found.cams, found.embeddings)} == {
        np.dtype(np.float32)
    }


def test_flip_averages_over_the_mirror_image(networks: list[Any], batch: np.ndarray) -> None:
    plain = KerasBackend(networks[0])
    straight, reverse = plain.run(batch), plain.run(mirrored(batch))
    found = KerasBackend(networks[0], flip=True).run(batch)
    wanted = (probabilities(straight) + probabilities(reverse)) / 2
    assert np.abs(straight.logits - reverse.logits).min() > 1e-3
    np.testing.assert_allclose(probabilities(found), wanted, atol=1e-6)
    np.testing.assert_allclose(found.cams, (straight.cams + mirrored(reverse.cams)) / 2, atol=1e-6)
    np.testing.assert_array_equal(found.embeddings, straight.embeddings)


def test_with_flip_the_mirror_image_has_the_same_prediction(
    networks: list[Any], batch: np.ndarray
) -> None:
    backend = KerasBackend(networks, flip=True)
    one, other = backend.run(batch), backend.run(mirrored(batch))
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
    np.testing.assert_allclose(one.cams, mirrored(other.cams), atol=1e-5)
    each = [KerasBackend(n, flip=True).run(batch) for n in networks]
    wanted = np.mean([probabilities(out) for out in each], axis=0)
    np.testing.assert_allclose(probabilities(one), wanted, atol=1e-6)


def test_logit_of_mean_is_exact_at_both_ends() -> None:
    logits = np.array(
        [[0.0, 40.0, 200.0, -200.0, 1e4, 300.0], [0.0, 40.0, 200.0, -200.0, 1e4, -300.0]],
        np.float32,
    )
    found = logit_of_mean(logits)
    np.testing.assert_allclose(found, [0.0, 40.0, 200.0, -200.0, 1e4, 0.0], rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32
    # Both probabilities are 1 in float64, and the logit of the mean is still correct.
    pair = np.array([[50.0], [60.0]], np.float32)
    wanted = -np.log((np.exp(-50.0) + np.exp(-60.0)) / 2)
    np.testing.assert_allclose(logit_of_mean(pair), [wanted], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_one_member_without_a_number_leaves_no_result(broken: float) -> None:
    logits = np.array([[1.0, broken], [1.0, 2.0]], np.float32)
    found = logit_of_mean(logits)
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-6)
    assert np.isnan(found[1])
