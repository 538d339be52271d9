"""From a grey image of any size to the network's input; the one way that every path goes.

Comes in: grey float32 (h, w) in [0, 1]. Goes out: a square of grey, or the network's input.
Knows nothing of files, of augmentation, or of the network.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope import config as configuration
from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import UsageError
from pneumoscope.images.grey import FloatArray

VERSION = 1
"""Goes up whenever the same configuration would give other numbers."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Per channel, of ImageNet's training images in [0, 1]; what DenseNet121's weights expect."""

LEAST_DEVIATION = 1e-3
"""An image as good as blank is divided by no less."""

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """What a `PreprocessConfig` says, done.

    Raises:
        UsageError: on creation, if the configuration is of another version of this code or asks
            for what does not exist.
    """

    config: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        if self.config.version != VERSION:
            raise UsageError(
                f"preprocessing version {self.config.version} is not known; this release has "
                f"version {VERSION}. Install the release that wrote the model, or train again"
            )
        if self.config.size < 1:
            raise UsageError(f"preprocess.size is {self.config.size}; 1 pixel or more is wanted")
        _check_choice("fit", self.config.fit, ("stretch", "pad"))
        _check_choice("normalisation", self.config.normalisation, ("imagenet", "standardise"))

    def grey(self, image: FloatArray) -> FloatArray:
        """Fit one grey image into the square.

        Bilinear with antialiasing: the filter widens with the reduction, and unlike bicubic it
        never leaves the range of the input.

        Args:
            image: float32 (h, w) in [0, 1].

        Returns:
            float32 (size, size) in [0, 1]; the same values if the image has that size already.
        """
        if image.ndim != 2 or image.size == 0:
            raise UsageError(f"a grey image (h, w) is wanted, not an array of {image.shape}")
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

    def normalise(self, square: FloatArray) -> FloatArray:
        """Grey squares to the network's three channels.

        Args:
            square: float32 (..., size, size) in [0, 1].

        Returns:
            float32 (..., size, size, 3); a batch gives exactly what its images give one by one.
        """
        size = self.config.size
        if square.shape[-2:] != (size, size):
            raise UsageError(f"squares of ({size}, {size}) are wanted, not {square.shape}")
        result = np.empty((*square.shape, 3), dtype=np.float32)
        if self.config.normalisation == "imagenet":
            for channel in range(3):
                mean = np.float32(IMAGENET_MEAN[channel])
                deviation = np.float32(IMAGENET_DEVIATION[channel])
                result[..., channel] = (square - mean) / deviation
            return result
        images = square.reshape(-1, size, size)
        # One image at a time: a sum over a batch may be taken in another order.
        for target, image in zip(result.reshape(-1, size, size, 3), images, strict=True):
            mean64 = image.mean(dtype=np.float64)
            deviation64 = max(float(image.std(dtype=np.float64)), LEAST_DEVIATION)
            target[...] = ((image - mean64) / deviation64).astype(np.float32)[..., None]
        return result

    def __call__(self, image: FloatArray) -> FloatArray:
        """One grey image, float32 (h, w) in [0, 1], to the input float32 (size, size, 3)."""
        return self.normalise(self.grey(image))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `bundle.json`."""
        return configuration.to_dict(self.config)

    @classmethod
    def from_dict(cls, document: dict[str, Any], source: str = "preprocess") -> Preprocessor:
        """Read what `to_dict` wrote; `source` names the file in errors.

        Raises:
            UsageError: an unknown setting, value or version.
        """
        return cls(configuration.from_dict(PreprocessConfig, document, source))

    def fingerprint(self) -> str:
        """16 hex digits that change with every setting: a part of cache keys."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_FINGERPRINT_DIGITS]


def _resized(image: FloatArray, width: int, height: int) -> FloatArray:
    source = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    resized = source.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0.0, 1.0)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(
            f"preprocess.{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}"
        )
