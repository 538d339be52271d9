"""Random further views of a training image, as another film of the same child might look.

Comes in: one preprocessed grey image, the ranges of `AugmentConfig`, a source of randomness.
Goes out: one grey image of the same shape, type and range. Knows nothing of files, labels,
batches or networks, and keeps no state: view 3 of an image is the same in every process.

| switch | imitates, at the X-ray stand |
| --- | --- |
| rotation | a child who lies crooked |
| shift | a beam that is not centred on the sternum |
| zoom | a smaller or larger child, another distance from tube to detector |
| crop | tighter collimation, or borders cut off later |
| flip | a film put in back to front |
| brightness | more or less dose, another window centre |
| contrast | another tube voltage or grid, another window width |
| gamma | another film, detector curve or monitor |
| erasing | what hides a part: a holding hand, a lead shield, a marker, a plug of a cable |

Where a moved image does not reach, the edge is filled with black, as behind a collimator, or with
the last row or column, as where tissue goes on; a coin decides, so neither becomes a clue.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.config import AugmentConfig
from pneumoscope.errors import PneumoscopeError, UsageError

GreyImage = NDArray[np.float32]
"""One image, shape (height, width), float32 in [0, 1], 1 is white."""

ALGORITHM_VERSION = 1
"""Goes into every fingerprint; raised when the same numbers would give other pixels."""

ERASED_AREA = (0.02, 0.20)
"""Smallest and largest share of the area that erasing covers."""

_PLAIN = "plain"
_LARGEST = {
    "rotation": 180.0,
    "shift": 1.0,
    "zoom": 1.0,
    "crop": 0.9,
    "flip": 1.0,
    "brightness": 1.0,
    "contrast": 3.0,
    "gamma": 3.0,
    "erasing": 1.0,
}


def random_stream(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone, not on order of calls, process or machine."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


@dataclasses.dataclass(frozen=True, slots=True)
class _Draw:
    """The random numbers of one view, all in [0, 1)."""

    rotation: float
    shift_x: float
    shift_y: float
    zoom: float
    crop: float
    crop_x: float
    crop_y: float
    flip: float
    edge: float
    brightness: float
    contrast: float
    gamma: float
    erasing: float
    erased_area: float
    erased_aspect: float
    erased_x: float
    erased_y: float
    erased_grey: float


def augment(grey: GreyImage, config: AugmentConfig, rng: np.random.Generator) -> GreyImage:
    """One random variant of an image: a single warp, then greys, then erasing.

    Rotation, shift, zoom, crop and flip are one affine map and so one bilinear interpolation.
    The same count of numbers is drawn whatever is switched on, so turning one change off leaves
    the others as they were. Erasing follows Zhong et al. 2020, arXiv:1708.04896; rectangles
    cover `ERASED_AREA` of the image.

    Args:
        grey: float32, shape (h, w), in [0, 1].
        config: ranges; 0 turns a change off, all 0 gives an equal copy.
        rng: the only source of randomness.

    Returns:
        A new array, float32, shape (h, w), in [0, 1].

    Raises:
        UsageError: a range in `config` is negative or larger than makes sense.
        PneumoscopeError: `grey` is no float32 image with two axes.
    """
    _check(grey, config)
    draw = _Draw(*rng.random(len(dataclasses.fields(_Draw))).tolist())
    image = _warp(grey, config, draw)
    if config.contrast:
        mean = image.mean(dtype=np.float64)
        image = (image - np.float32(mean)) * _log_uniform(config.contrast, draw.contrast)
        image += np.float32(mean)
    if config.brightness:
        image = image + np.float32(_either_way(config.brightness, draw.brightness))
    if config.contrast or config.brightness:
        image = np.clip(image, 0, 1)
    if config.gamma:
        image = image ** _log_uniform(config.gamma, draw.gamma)
    if draw.erasing < config.erasing:
        image = _erase(image, draw)
    return image if image is not grey else grey.copy()


def view(
    grey: GreyImage, config: AugmentConfig, seed: int, image_sha256: str, index: int
) -> GreyImage:
    """View `index` of an image: 0 is the image itself, each other one a fixed random variant.

    A view depends on the seed, the image's content and the index alone, never on which views were
    made before, on the file's name or on the process; so cached features of views stay valid.

    Args:
        grey: float32, shape (h, w), in [0, 1].
        config: ranges of the changes.
        seed: seed of the run.
        image_sha256: hex digest of the image file's bytes.
        index: which view, from 0.

    Raises:
        UsageError: `index` is negative, or a range in `config` makes no sense.
    """
    if index < 0:
        raise UsageError(f"view {index}: views are counted from 0, the un-augmented image.")
    if index == 0:
        return grey
    return augment(grey, config, random_stream("view", seed, image_sha256, index))


def view_fingerprint(config: AugmentConfig, seed: int, index: int) -> str:
    """A short stable hash of all that view `index` depends on besides the image, for cache keys.

    `"plain"` for view 0, which depends on nothing; else 16 hex digits.
    """
    if index == 0:
        return _PLAIN
    document = json.dumps(
        [ALGORITHM_VERSION, dataclasses.asdict(config), seed, index], sort_keys=True
    )
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _check(grey: GreyImage, config: AugmentConfig) -> None:
    if grey.ndim != 2 or grey.dtype != np.float32:
        raise PneumoscopeError(
            f"augment: found an array of shape {grey.shape} and type {grey.dtype}, "
            "wanted float32 of shape (height, width). Preprocess the image first."
        )
    for name, largest in _LARGEST.items():
        value = getattr(config, name)
        if not 0 <= value <= largest:
            raise UsageError(
                f"augment: {name} is {value}, wanted 0 (off) to {largest:g}. "
                "Change it under [augment] of the configuration."
            )


def _either_way(reach: float, chance: float) -> float:
    return reach * (2 * chance - 1)


def _log_uniform(reach: float, chance: float) -> np.float32:
    return np.float32(math.exp(_either_way(reach, chance)))


def _warp(grey: GreyImage, config: AugmentConfig, draw: _Draw) -> GreyImage:
    flipped = draw.flip < config.flip
    if not (flipped or config.rotation or config.shift or config.zoom or config.crop):
        return grey
    height, width = grey.shape
    matrix = _output_to_input(height, width, config, draw, flipped)
    margin = 0
    if draw.edge < 0.5:
        corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        reached = matrix[:2] @ corners
        beyond = np.array([[width], [height]])
        margin = math.ceil(max(-reached.min(), (reached - beyond).max(), 0.0) + 1)
        grey = np.pad(grey, margin, mode="edge")
    a, b, c, d, e, f = matrix[:2].ravel().tolist()
    moved = Image.fromarray(grey).transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, c + margin, d, e, f + margin),
        Image.Resampling.BILINEAR,
    )
    # Bilinear weights may sum to a rounding error above 1.
    return np.clip(np.asarray(moved, dtype=np.float32), 0, 1)


def _output_to_input(
    height: int, width: int, config: AugmentConfig, draw: _Draw, flipped: bool
) -> NDArray[np.float64]:
    """The 3×3 map from a point of the new image to the point of the old one that it shows."""
    angle = math.radians(_either_way(config.rotation, draw.rotation))
    factor = math.exp(-_either_way(config.zoom, draw.zoom))
    side = math.sqrt(1 - config.crop * draw.crop)
    to_centre = _translation(-width / 2, -height / 2)
    rotate_zoom: Any = np.array(
        [
            [factor * math.cos(angle), factor * math.sin(angle), 0.0],
            [-factor * math.sin(angle), factor * math.cos(angle), 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    shift = _translation(
        -width * _either_way(config.shift, draw.shift_x),
        -height * _either_way(config.shift, draw.shift_y),
    )
    crop = _translation(width * (1 - side) * draw.crop_x, height * (1 - side) * draw.crop_y)
    crop = crop @ np.diag([side, side, 1.0])
    mirror = np.diag([-1.0 if flipped else 1.0, 1.0, 1.0])
    from_centre = _translation(width / 2, height / 2)
    result: NDArray[np.float64] = from_centre @ mirror @ rotate_zoom @ to_centre @ shift @ crop
    return result


def _translation(x: float, y: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _erase(image: GreyImage, draw: _Draw) -> GreyImage:
    height, width = image.shape
    smallest, largest = ERASED_AREA
    area = smallest + (largest - smallest) * draw.erased_area
    # Aspect from 1:2 to 2:1; the longer side is then at most 0.64 of the image's.
    stretch = math.sqrt(2.0 ** (2 * draw.erased_aspect - 1))
    rows = max(1, round(height * math.sqrt(area) * stretch))
    columns = max(1, round(width * math.sqrt(area) / stretch))
    top = math.floor(draw.erased_y * (height - rows + 1))
    left = math.floor(draw.erased_x * (width - columns + 1))
    image = image.copy()
    image[top : top + rows, left : left + columns] = draw.erased_grey
    return image
