"""Every backbone gives the same output with and without Keras, can be cut, and keeps its names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import UsageError
from pneumoscope.graph.openvino import build_frozen_part, compile_model
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN
from pneumoscope.keras_loading import load_keras
from pneumoscope.training.backbones import (
    APPLICATIONS,
    BACKBONES,
    arrays_of,
    build_backbone,
    find_boundary,
    leaves,
    plan_of,
    stages_of,
)
from pneumoscope.training.network import build_tail, build_trunk, initialise_randomly

SIZE = 96

FAMILIES = {
    "densenet121": ("pool4_pool", "pool3_pool"),
    "densenet121-stride16": ("pool3_pool", "pool2_pool"),
    "mobilenet": ("conv_dw_12", "conv_dw_6"),
    "mobilenetv2": ("block_13_depthwise", "block_6_depthwise"),
    "mobilenetv3small": ("expanded_conv_8_depthwise", "expanded_conv_3_depthwise"),
    "efficientnetb0": ("block6a_dwconv", "block4a_dwconv"),
    "efficientnetv2b0": ("block6a_dwconv2", "block4a_dwconv2"),
    "resnet50": ("conv5_block1_add", "conv4_block1_add"),
    "resnet50v2": ("conv4_block6_out", "conv3_block4_out"),
    "xception": ("add_11", "add_2"),
    "inceptionv3": ("mixed8", "mixed3"),
    "convnexttiny": ("convnext_tiny_downsampling_conv_2", "convnext_tiny_downsampling_conv_1"),
    "vgg16": ("block4_pool", "block3_pool"),
    "efficientnet-lite0": ("block11_depthwise_conv", "block5_depthwise_conv"),
}
"""One model of each family, and where it is cut."""


def outputs_of(model: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(load_keras().ops.convert_to_numpy(model(images, training=False)))


def rows(network: Any, images: np.ndarray, boundary: str | None) -> np.ndarray:
    built = build_frozen_part(network, SIZE, len(images), boundary)
    request = compile_model(built, "f32").create_infer_request()
    request.infer([images])
    return np.array(request.get_tensor("rows").data)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_predicts_as_in_keras_and_can_be_cut(name: str) -> None:
    backbone = build_backbone(SIZE, name)
    initialise_randomly(backbone, 0)
    network = arrays_of(backbone)
    images = np.random.default_rng(1).standard_normal((2, SIZE, SIZE, 3)).astype(np.float32)
    wanted = outputs_of(backbone, images)
    found = rows(network, images, None)
    np.testing.assert_allclose(found, wanted.mean((1, 2)), atol=2e-5 * np.abs(wanted).max())
    boundaries = tuple(find_boundary(backbone, block) for block in ("conv5", "conv4"))
    assert boundaries == FAMILIES[name]
    trunk = outputs_of(build_trunk(backbone, boundaries[0]), images)
    np.testing.assert_allclose(
        rows(network, images, boundaries[0]), trunk, atol=2e-5 * np.abs(trunk).max()
    )
    tail = build_tail(backbone, boundaries[0])
    np.testing.assert_allclose(outputs_of(tail, trunk), wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mobilenetv2", lambda g: np.stack([2 * g - 1] * 3)),
        ("efficientnet-lite0", lambda g: np.stack([(255 * g - 127) / 128] * 3)),
        ("mobilenetv3small", lambda g: np.stack([255 * g] * 3)),
        ("resnet50", lambda g: np.stack([255 * g - m for m in (103.939, 116.779, 123.68)])),
    ],
)
def test_a_backbone_gets_grey_in_the_range_of_its_own_weights(name: str, wanted: Any) -> None:
    backbone = build_backbone(64, name)
    first = load_keras().Model(backbone.input, backbone.get_layer("to_own_range").output)
    grey = np.random.default_rng(0).uniform(0, 1, (64, 64)).astype(np.float32)
    deviation, mean = np.array([IMAGENET_DEVIATION, IMAGENET_MEAN], np.float32)
    found = outputs_of(first, ((grey[..., None] - mean) / deviation)[None])[0]
    np.testing.assert_allclose(found.transpose(2, 0, 1), wanted(grey), atol=1e-4)


def test_a_last_stage_of_half_the_stride_takes_the_same_weights_to_a_finer_map() -> None:
    plain, fine = (build_backbone(SIZE, f"densenet121{end}") for end in ("", "-stride16"))
    initialise_randomly(plain, 0)
    fine.set_weights(plain.get_weights())
    assert [layer.name for layer in fine.layers] == [layer.name for layer in plain.layers]
    images = np.random.default_rng(1).standard_normal((1, SIZE, SIZE, 3)).astype(np.float32)
    coarse, found = outputs_of(plain, images)[0], outputs_of(fine, images)[0]
    assert (coarse.shape, found.shape) == ((3, 3, 1024), (6, 6, 1024))
    # What one cell sees is as wide as before: a 3 x 3 convolution reaches over 2 of 16 pixels,
    # where it reached over 1 of 32.
    reach = {
        layer.name: (stride, tuple(layer.settings["dilation_rate"]))
        for layer, stride in zip(
            plan_of(fine).layers, plan_of(fine).strides().values(), strict=True
        )
        if layer.kind == "Conv2D" and tuple(layer.settings["kernel_size"]) == (3, 3)
    }
    assert {each for name, each in reach.items() if name.startswith("conv5")} == {(16, (2, 2))}
    assert {each for name, each in reach.items() if name.startswith("conv4")} == {(16, (1, 1))}


def test_deeper_ones_have_the_finer_map_too() -> None:
    name = "densenet169-stride16"
    plain, fine = build_backbone(SIZE, name.removesuffix("-stride16")), build_backbone(SIZE, name)
    assert [each.shape for each in fine.weights] == [each.shape for each in plain.weights]
    assert fine.output.shape == (None, 6, 6, plain.output.shape[-1])


def test_layers_are_called_alike_however_many_were_built_before() -> None:
    first, second = (build_backbone(64, "mobilenetv3small") for _ in range(2))
    assert first.to_json() == second.to_json()
    names = [layer.name for layer in leaves(first)]
    assert len(set(names)) == len(names)


def test_stages_are_counted_from_the_end() -> None:
    stages = stages_of(plan_of(build_backbone(64, "mobilenetv2")))
    assert (stages["Conv1"], stages["block_13_expand"], stages["Conv_1"]) == (4, 1, 0)


def test_a_model_of_ones_own_is_taken_by_its_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def build(input_shape):\n"
        "    images = keras.Input(input_shape)\n"
        "    x = keras.layers.Conv2D(8, 3, strides=2, activation='relu')(images)\n"
        "    return keras.Model(images, keras.layers.Conv2D(12, 3, strides=2)(x))\n"
        "def flat(input_shape):\n"
        "    images = keras.Input(input_shape)\n"
        "    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))\n"
        "def strange(input_shape):\n"
        "    images = keras.Input(input_shape)\n"
        "    return keras.Model(images, keras.layers.UpSampling2D()(images))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert build_backbone(64, "mine:build").output.shape == (None, 15, 15, 12)
    for name, told in (("flat", "ends in a feature map"), ("strange", "UpSampling2D")):
        with pytest.raises(UsageError, match=told):
            build_backbone(64, f"mine:{name}")
    with pytest.raises(UsageError, match="can't be imported"):
        build_backbone(64, "mine:absent")


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ("keras.layers.Activation('elu')", r"layer 'activation' .*found the activation 'elu'"),
        ("keras.layers.Conv2D(4, 1, activation='elu')", r"found the activation 'elu', wanted one"),
        ("keras.layers.ReLU(max_value=2)", r"layer 're_lu' .*wanted a plain ReLU or ReLU6"),
    ],
)
def test_a_setting_that_only_keras_can_run_is_rejected_before_training(
    layer: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.py").write_text(
        "import keras\n"
        "def build(input_shape):\n"
        "    images = keras.Input(input_shape)\n"
        "    x = keras.layers.Conv2D(4, 3)(images)\n"
        f"    return keras.Model(images, {layer}(x))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    with pytest.raises(UsageError, match=rf"--backbone odd:build: can't run .*{told}") as raised:
        build_backbone(64, "odd:build")
    assert "bundle" not in str(raised.value)


def test_an_unknown_name_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="found 'resnet', wanted one of densenet121"):
        build_backbone(64, "resnet")
    with pytest.raises(UsageError, match="at least 71x71"):
        build_backbone(64, "xception")


def test_every_name_is_a_model_of_keras() -> None:
    applications = load_keras().applications
    assert all(hasattr(applications, each.constructor) for each in APPLICATIONS.values())
    assert len(set(BACKBONES)) == len(BACKBONES) > 30
