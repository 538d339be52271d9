"""Weights on disk: Keras' layout, reproducible bytes, half precision."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.phantom import draw
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.bundle import BundleManifest, load_bundle, load_networks, write_bundle
from pneumoscope.inference.engine import KerasBackend
from pneumoscope.inference.weights_store import Precision, save_network
from pneumoscope.storage import sha256_of_file
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import HeadWeights, build_network, initialise_randomly
from support.archives import stored_weights
from support.heads import BACKBONE_WIDTH, empty_head

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

# Keras 3.15 on TensorFlow 2.21 warns in its own saving code with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 64
ARCHITECTURE = Architecture(size=SIZE)
MANIFEST = BundleManifest(architecture=ARCHITECTURE, preprocessing=PreprocessConfig(size=SIZE))


@pytest.fixture(scope="module")
def network() -> Any:
    """A DenseNet121 of random weights, with no two batch normalisations alike."""
    generator = np.random.default_rng(4)
    backbone = build_backbone(SIZE)
    initialise_randomly(backbone, 2)
    for layer in backbone.layers:
        if len(arrays := layer.get_weights()) == 4:
            ends = ((0.7, 1.3), (-0.1, 0.1), (-0.1, 0.1), (0.7, 1.3))
            layer.set_weights(
                [
                    generator.uniform(low, high, a.shape)
                    for (low, high), a in zip(ends, arrays, strict=True)
                ]
            )
    head = HeadWeights(
        generator.standard_normal((BACKBONE_WIDTH, 256)).astype(np.float32) / np.float32(32),
        generator.standard_normal(256).astype(np.float32) / np.float32(16),
        generator.standard_normal((256, 1)).astype(np.float32) / np.float32(8),
        np.zeros(1, np.float32),
    )
    return build_network(backbone, ARCHITECTURE, head)


@pytest.fixture(scope="module")
def half(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.keras"
    save_network(network, path, "float16")
    return path


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype("f2").astype("f4") if array.ndim > 1 else array


def test_half_precision_fits_the_repository(half: Path) -> None:
    assert half.stat().st_size <= 16_000_000
    assert [path.name for path in half.parent.iterdir()] == [half.name]


def test_what_comes_back_is_what_was_rounded(network: Any, half: Path) -> None:
    fresh = keras.saving.load_model(half)
    assert {str(variable.dtype) for variable in fresh.weights} == {"float32"}
    before, after = network.get_weights(), fresh.get_weights()
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(other, rounded(one))
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    preprocess = Preprocessor(MANIFEST.preprocessing)
    return np.stack(
        [preprocess(draw(0, f"p{k}", 0, k % 2, size=96).pixels) for k in range(8)]
    ).astype("f4")


def test_predictions_change_little_with_half_precision(
    network: Any, phantoms: np.ndarray, tmp_path: Path
) -> None:
    manifest = dataclasses.replace(MANIFEST, store="float16")
    write_bundle(tmp_path / "model", network, manifest, "card")
    (loaded,) = load_networks(load_bundle(tmp_path / "model"))
    before, after = network.predict_on_batch(phantoms), loaded.predict_on_batch(phantoms)
    assert np.ptp(before) > 0.01
    assert 0 < np.abs(before - after).max() <= 2e-3


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
from pneumoscope.inference.engine import KerasBackend
from pneumoscope.inference.bundle import load_bundle, load_networks
folder, images, logits = sys.argv[1:]
backend = KerasBackend(load_networks(load_bundle(folder)), flip=True)
np.save(logits, backend.run(np.load(images)).logits)
"""


@pytest.mark.engines
@pytest.mark.parametrize("store", ["float32", "float16"])
@pytest.mark.parametrize("other", ["torch", "jax"])
def test_other_backends_predict_alike(
    network: Any, phantoms: np.ndarray, tmp_path: Path, other: str, store: Any
) -> None:
    pytest.importorskip(other)
    manifest = dataclasses.replace(MANIFEST, store=store)
    bundle = write_bundle(tmp_path / "model", network, manifest, "card")
    np.save(tmp_path / "images.npy", phantoms)
    paths = [str(tmp_path / name) for name in ("model", "images.npy", "logits.npy")]
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, *paths],
        check=True,
        env=os.environ | {"KERAS_BACKEND": other},
    )
    found = np.load(tmp_path / "logits.npy")
    wanted = KerasBackend(load_networks(bundle), flip=True).run(phantoms).logits
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_full_precision_comes_back_bit_by_bit(network: Any, tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", network, MANIFEST, "card")
    (loaded,) = load_networks(load_bundle(tmp_path / "model"))
    for one, other in zip(network.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_same_weights_give_the_same_bytes(network: Any, tmp_path: Path) -> None:
    """A network built later, and one read back, give the same bytes."""
    later = build_network(build_backbone(SIZE), ARCHITECTURE, empty_head(ARCHITECTURE))
    later.set_weights(network.get_weights())
    models = (network, later)
    path = tmp_path / "model.keras"
    stores: tuple[Precision, ...] = ("float32", "float16")
    for store in stores:
        digests = set()
        for model in models:
            save_network(model, path, store)
            digests.add(sha256_of_file(path))
        assert len(digests) == 1


class Arrays:
    """A stand-in for a Keras network of one dense layer."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self._arrays = arrays

    def to_json(self) -> str:
        return "{}"

    def save_weights(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            variables = file.create_group("layers/dense/vars")
            variables.attrs["name"] = "dense"
            for name, array in self._arrays.items():
                variables[name] = array


def written(path: Path, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    save_network(Arrays(**arrays), path, "float16")
    with stored_weights(path) as file:
        assert dict(file["layers/dense/vars"].attrs) == {"name": "dense"}
        return {name: item[()] for name, item in file["layers/dense/vars"].items()}


def test_statistics_that_half_precision_cant_hold_stay_whole(tmp_path: Path) -> None:
    variances = np.array([1e-9, 1.0, 3.3e5], "f4")
    found = written(tmp_path / "model.keras", a=variances)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, variances)


@pytest.mark.parametrize(
    ("value", "kept"),
    [(1.0, "f2"), (6e4, "f2"), (7e4, "f4"), (1e-3, "f2"), (1e-7, "f4"), (np.nan, "f4")],
)
def test_kernels_that_half_precision_would_spoil_stay_whole(
    tmp_path: Path, value: float, kept: str
) -> None:
    kernel = (np.random.default_rng(0).uniform(0.5, 1.0, (8, 8)) * value).astype("f4")
    kernel[0, 0] = value
    kernel[0, 1] = 0.0
    found = written(tmp_path / "model.keras", kernel=kernel)["kernel"]
    assert found.dtype == np.dtype(kept)
    np.testing.assert_allclose(found.astype("f4"), kernel, rtol=1e-3)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    class Full(Arrays):
        def save_weights(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_network(Full(), tmp_path / "model.keras", "float16")
    assert list(tmp_path.iterdir()) == []


def test_the_file_holds_plain_numbers_of_two_kinds(half: Path) -> None:
    with stored_weights(half) as file:
        kinds = set()
        file.visititems(lambda _, item: kinds.add(str(getattr(item, "dtype", "group"))))
    assert kinds == {"group", "float16", "float32"}
