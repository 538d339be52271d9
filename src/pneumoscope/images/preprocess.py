"""Preprocessing: a grey image of any size to the network input; every code path uses this one.

The input is grey float32 (h, w) in [0, 1]. The output is a grey square, or the normalised network
input with three channels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope import config as configuration
from pneumoscope.arrays import Float32Array
from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import UsageError

VERSION = 1
"""Raise it whenever the same configuration would give other numbers."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Per channel, over the ImageNet training images in [0, 1]; the DenseNet121 weights expect them."""

LEAST_DEVIATION = 1e-3
"""Lower bound of the divisor in standardisation, for nearly blank images."""

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Applies a `PreprocessConfig`.

    Raises:
        UsageError: on creation, if the configuration has another version than this code, or an
            unknown option.
    """

    config: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        if self.config.version != VERSION:
            raise UsageError(
                f"preprocessing version {self.config.version} is not known; this release has "
                f"version {VERSION}. Install the release that wrote the model, or train again."
            )
        if self.config.size < 1:
            raise UsageError(f"preprocess.size is {self.config.size}; expected 1 pixel or more.")
        _check_choice("fit", self.config.fit, ("stretch", "pad"))
        _check_choice("normalisation", self.config.normalisation, ("imagenet", "standardise"))

    def grey(self, image: Float32Array) -> Float32Array:
        """Resize one grey image to the square of side `config.size`.

        The filter is bilinear with antialiasing: it widens with the reduction and, unlike bicubic,
        never leaves the range of the input.

        Args:
            image: float32 (h, w) in [0, 1].

        Returns:
            float32 (size, size) in [0, 1]; the same values if the image already has that size.
        """
        if image.ndim != 2 or image.size == 0:
            raise UsageError(
                f"preprocess: found an array of shape {image.shape}; expected a grey image (h, w)."
            )
        size = self.config.size
        if image.shape == (size, size):
            return image.astype(np.float32)
        height, width = image.shape
        if self.config.fit == "stretch":
            return _resized(image, size, size)
        scale = size / max(height, width)
        new_height = max(1, round(height * scale))
        new_width = max(1, round(width * scale))
        square = np.zeros((size, size), dtype=np.float32)
        top, left = (size - new_height) // 2, (size - new_width) // 2
        square[top : top + new_height, left : left + new_width] = _resized(
            image, new_width, new_height
        )
        return square

    def normalise(self, square: Float32Array) -> Float32Array:
        """Normalise grey squares and repeat them in the network's three channels.

        Args:
            square: float32 (..., size, size) in [0, 1].

        Returns:
            float32 (..., size, size, 3). A batch gives exactly the numbers of its single images.
        """
        size = self.config.size
        if square.shape[-2:] != (size, size):
            raise UsageError(
                f"preprocess: found shape {square.shape}; expected squares of side {size}."
            )
        result = np.empty((*square.shape, 3), dtype=np.float32)
        if self.config.normalisation == "imagenet":
            for channel in range(3):
                mean = np.float32(IMAGENET_MEAN[channel])
                deviation = np.float32(IMAGENET_DEVIATION[channel])
                result[..., channel] = (square - mean) / deviation
            return result
        images = square.reshape(-1, size, size)
        # One image at a time: the sum over a batch may be evaluated in another order.
        for target, image in zip(result.reshape(-1, size, size, 3), images, strict=True):
            mean64 = image.mean(dtype=np.float64)
            deviation64 = max(float(image.std(dtype=np.float64)), LEAST_DEVIATION)
            target[...] = ((image - mean64) / deviation64).astype(np.float32)[..., None]
        return result

    def __call__(self, image: Float32Array) -> Float32Array:
        """Convert one grey image, float32 (h, w) in [0, 1], to the input, (size, size, 3)."""
        return self.normalise(self.grey(image))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for `bundle.json`."""
        return configuration.to_dict(self.config)

    @classmethod
    def from_dict(cls, document: dict[str, Any], source: str = "preprocess") -> Preprocessor:
        """Read what `to_dict` wrote; `source` names the file in errors.

        Raises:
            UsageError: an unknown setting, value or version.
        """
        return cls(configuration.from_dict(PreprocessConfig, document, source))

    def fingerprint(self) -> str:
        """16 hex digits that change with every setting; part of cache keys."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_FINGERPRINT_DIGITS]


def _resized(image: Float32Array, width: int, height: int) -> Float32Array:
    source = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    resized = source.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0.0, 1.0)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"preprocess.{name} is {value!r}; expected one of {', '.join(map(repr, choices))}."
        )
