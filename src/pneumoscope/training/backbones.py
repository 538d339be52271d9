"""Backbones that can stand in front of the classification head (`--backbone`).

A backbone is a convolutional model of `keras.applications`, an EfficientNet-Lite, or the user's own
Keras model (`module:function`) that ends in a feature map. Every backbone takes images as
`PreprocessConfig` makes them. Where its ImageNet weights need another value range (-1 to 1, or
0 to 255), a rescaling layer at its front converts to it. So preprocessing is the same for all
backbones, and the saved network is complete.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.bundle_files import LEAST_SIZE
from pneumoscope.graph.layers import unknown_layers
from pneumoscope.graph.plan import CONVOLUTIONS, Plan
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN
from pneumoscope.keras_loading import load_keras
from pneumoscope.training.efficientnet_lite import SCALES, efficientnet_lite
from pneumoscope.training.plans import plan_of

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

_NUMBERED = re.compile(r"(.+?)(?:_\d+)?")


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
    _check(backbone, name)
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


def _check(backbone: Any, name: str) -> None:
    """Check that the backbone can run without Keras.

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
