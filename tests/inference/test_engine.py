"""The engine gives the outputs of the Keras networks, alone, in ensembles and mirrored."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import DeviceChoice
from pneumoscope.errors import BundleError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_frozen_part
from pneumoscope.inference import engine
from pneumoscope.inference.bundle import Bundle, write_bundle
from pneumoscope.inference.engine import KerasBackend, OpenVinoBackend, Outputs, choose_device
from pneumoscope.training.backbones import arrays_of, build_backbone
from support.bad_data import write_image
from support.small_bundle import UNITS, manifest_for, random_network
from support.small_network import small_network

SIZE = 96


def images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def networks() -> list[Any]:
    with small_network():
        return [random_network(seed, SIZE) for seed in range(3)]


def assert_same(found: Outputs, wanted: Outputs) -> None:
    for name in ("logits", "cams", "embeddings"):
        mine, theirs = getattr(found, name), getattr(wanted, name)
        assert mine.dtype == np.float32
        assert mine.shape == theirs.shape
        assert np.ptp(theirs) > 0
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("size", [64, 97])
def test_the_whole_densenet_predicts_as_in_keras(size: int, tmp_path: Path) -> None:
    network = random_network(0, size)
    bundle = write_bundle(tmp_path / "model", network, manifest_for(size), "card")
    batch = images(3, size)
    assert_same(OpenVinoBackend.load(bundle).run(batch), KerasBackend(network).run(batch))


@pytest.mark.parametrize("size", [32, 33, 63, 127])
def test_the_side_of_the_map_is_what_keras_makes_of_it(size: int) -> None:
    with small_network():
        backbone = build_backbone(size)
    shape = tuple(build_frozen_part(arrays_of(backbone), size, 1, "bn").output(0).shape)
    assert shape[1:] == backbone.output.shape[1:]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_ensembles_and_mirror_images_predict_as_in_keras(
    networks: list[Any], members: int, flip: bool, tmp_path: Path
) -> None:
    bundle = write_bundle(
        tmp_path / "model", networks[:members], manifest_for(SIZE, flip=flip), "card"
    )
    found = OpenVinoBackend.load(bundle).run(images(5))
    assert_same(found, KerasBackend(networks[:members], flip=flip).run(images(5)))


def test_the_mean_probability_is_exact_at_both_ends(networks: list[Any], tmp_path: Path) -> None:
    """Logits of ±300, of which no float holds the probability."""
    arrays = []
    for number, shift in enumerate((300.0, 310.0)):
        bundle = write_bundle(tmp_path / str(number), networks[number], manifest_for(SIZE), "card")
        read = read_network(bundle.weights[0], bundle.manifest.architecture)
        kernel, bias = read.of("head_probability")
        arrays.append(
            replace(read, layers={**read.layers, "head_probability": (0 * kernel, bias + shift)})
        )
    low = [
        replace(
            a, layers={**a.layers, "head_probability": tuple(-x for x in a.of("head_probability"))}
        )
        for a in arrays
    ]
    for pair in (arrays, low):
        each = np.array([one.of("head_probability")[1][0] for one in pair], np.float64)
        signs = np.sign(each[0])
        # log of the mean of the smaller of p and 1 - p, which is e^-|logit| out here.
        wanted = -signs * np.log(np.mean(np.exp(-np.abs(each) + 300.0))) + signs * 300.0
        found = OpenVinoBackend(pair, SIZE).run(images(1)).logits
        np.testing.assert_allclose(found, [wanted], rtol=1e-5)


def test_company_changes_nothing(networks: list[Any], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "model", networks[0], manifest_for(SIZE), "card")
    backend, batch = OpenVinoBackend.load(bundle), images(4)
    together = backend.run(batch)
    kept = together.logits.copy()
    alone = [backend.run(batch[k : k + 1]).logits[0] for k in range(4)]
    np.testing.assert_allclose(alone, kept, atol=1e-5)
    np.testing.assert_array_equal(together.logits, kept)  # not overwritten by later runs


def test_compiled_graphs_are_kept(networks: list[Any], tmp_path: Path, own_cache: Path) -> None:
    bundle = write_bundle(tmp_path / "model", networks[0], manifest_for(SIZE), "card")
    first = OpenVinoBackend.load(bundle).run(images(2))
    kept = {path: path.stat().st_mtime_ns for path in (own_cache / "graphs").rglob("*.blob")}
    assert kept
    again = OpenVinoBackend.load(bundle).run(images(2))
    assert {p: p.stat().st_mtime_ns for p in (own_cache / "graphs").rglob("*.blob")} == kept
    np.testing.assert_array_equal(first.logits, again.logits)


def test_without_a_cache_it_predicts_the_same(
    networks: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "model", networks[0], manifest_for(SIZE), "card")
    wanted = OpenVinoBackend.load(bundle).run(images(1))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    np.testing.assert_array_equal(OpenVinoBackend.load(bundle).run(images(1)).logits, wanted.logits)


def test_a_damaged_graph_in_the_cache_is_made_anew(
    networks: list[Any], tmp_path: Path, own_cache: Path
) -> None:
    bundle = write_bundle(tmp_path / "model", networks[0], manifest_for(SIZE), "card")
    wanted = OpenVinoBackend.load(bundle).run(images(1))
    (blob,) = (own_cache / "graphs").rglob("*.blob")
    whole = blob.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], bytes(100)):
        blob.unlink()
        blob.write_bytes(damaged)
        found = OpenVinoBackend.load(bundle).run(images(1))
        np.testing.assert_array_equal(found.logits, wanted.logits)


def test_the_engine_brings_nothing_that_reports_over_the_network() -> None:
    code = (
        "import sys; from pneumoscope.graph.openvino import load_openvino; load_openvino().Core();"
        "print([m for m in sys.modules if 'telemetry' in m or 'tensorflow' in m or 'keras' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def stored(networks: list[Any], folder: Path) -> tuple[Bundle, NetworkArrays]:
    bundle = write_bundle(folder, networks[0], manifest_for(SIZE), "card")
    return bundle, read_network(bundle.weights[0], bundle.manifest.architecture)


def test_weights_without_a_layer_are_rejected(networks: list[Any], tmp_path: Path) -> None:
    _, arrays = stored(networks, tmp_path / "model")
    less = replace(arrays, layers={n: a for n, a in arrays.layers.items() if n != "conv1_bn"})
    with pytest.raises(BundleError, match="no layer 'conv1_bn'"):
        OpenVinoBackend([less], SIZE).run(images(1))


def test_weights_that_do_not_fit_the_layers_are_rejected(
    networks: list[Any], tmp_path: Path
) -> None:
    _, arrays = stored(networks, tmp_path / "model")
    (kernel,) = arrays.of("conv1_conv")
    other = replace(arrays, layers={**arrays.layers, "conv1_conv": (kernel[:, :, :2],)})
    with pytest.raises(BundleError, match=r"'conv1_conv'.*found 3 channels, wanted 2"):
        OpenVinoBackend([other], SIZE).run(images(1))


def test_a_head_of_another_width_is_rejected(networks: list[Any], tmp_path: Path) -> None:
    bundle, _ = stored(networks, tmp_path / "model")
    with pytest.raises(BundleError, match="a head of"):
        read_network(bundle.weights[0], Architecture(size=SIZE, hidden_units=UNITS + 1))


def test_a_damaged_file_is_rejected(networks: list[Any], tmp_path: Path) -> None:
    bundle, _ = stored(networks, tmp_path / "model")
    content = bundle.weights[0].read_bytes()
    bundle.weights[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="damaged"):
        read_network(bundle.weights[0], bundle.manifest.architecture)


@pytest.mark.parametrize(
    ("asked", "found", "device"),
    [
        ("CPU", True, "CPU"),
        ("CPU", False, "CPU"),
        ("auto", True, "GPU"),
        ("auto", False, "CPU"),
        ("GPU", True, "GPU"),
    ],
)
def test_the_device_is_the_one_that_was_asked_for(
    asked: DeviceChoice, found: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_graphics", lambda: found)
    assert choose_device(asked) == device


def test_a_gpu_that_is_not_there_is_rejected_by_every_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "has_graphics", lambda: False)
    image, spool = tmp_path / "a.png", str(tmp_path / "spool")
    write_image(image)
    for command in (
        ["predict", str(image), "--out", str(tmp_path / "p.csv")],
        ["serve", "--port", "0"],
        ["node", "run", "--port", "0", "--spool", spool],
    ):
        assert run([*command, "--device", "GPU"]) == 2
        assert "--device CPU" in capsys.readouterr().err
