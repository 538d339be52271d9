"""Random augmentation of a training image, imitating another X-ray of the same child.

The input is one preprocessed grey image, the ranges of `AugmentConfig` and a random generator. The
output is a grey image of the same shape, dtype and range. The functions keep no state: view 3 of an
image is the same in every process.

| switch | imitates, at the X-ray stand |
| --- | --- |
| rotation | a child who lies crooked |
| shift | a beam that is not centred on the sternum |
| zoom | a smaller or larger child, another distance from tube to detector |
| crop | tighter collimation, or borders cut off later |
| flip | an image stored as its mirror image |
| brightness | more or less dose, another window centre |
| contrast | another tube voltage or grid, another window width |
| gamma | another detector curve or monitor |
| erasing | an object that hides a part: a hand, a lead shield, a marker, a cable plug |

A moved image leaves gaps at the edge. Half of the time they are filled with black, as behind a
collimator, and half of the time by repeating the last row or column, as if tissue continued. The
choice is random, so that neither becomes a shortcut.

`photograph` simulates a photograph of an X-ray on a light box or screen, as taken with a telephone.
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

from pneumoscope.arrays import Float32Array
from pneumoscope.config import AugmentConfig
from pneumoscope.errors import PneumoscopeError, UsageError

GreyImage = NDArray[np.float32]
"""One image: float32 (height, width) in [0, 1], 1 is white."""

ALGORITHM_VERSION = 1
"""Part of every fingerprint. Raise it when the same random numbers would give other pixels."""

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

_CORNER_SHIFT = 0.09
"""Largest displacement of a corner, as a share of the side."""

_STRIPES = 0.07
_CAST = (0.30, 0.05, -0.30)
"""Relative change in the exposure of red, green and blue by the colour of the light."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Grey from colours, ITU-R BT.601."""


def random_stream(*parts: object) -> np.random.Generator:
    """A generator that depends only on `parts`, not on the order of calls, process or machine."""
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
    """Return one random variant of an image: one warp, then grey-level changes, then erasing.

    Rotation, shift, zoom, crop and flip form one affine map and need one bilinear interpolation.
    The function always draws the same count of random numbers, so that turning one change off does
    not alter the others. Erasing follows Zhong et al. 2020, arXiv:1708.04896; the rectangles cover
    `ERASED_AREA` of the image.

    Args:
        grey: float32 (h, w) in [0, 1].
        config: ranges; 0 turns a change off, and all 0 returns an equal copy.
        rng: the only source of randomness.

    Returns:
        A new array, float32 (h, w) in [0, 1].

    Raises:
        UsageError: a range in `config` is negative or too large.
        PneumoscopeError: `grey` is not a float32 array with two axes.
    """
    _check(grey, config)
    draw = _Draw(*rng.random(len(dataclasses.fields(_Draw))).tolist())
    image = _warp(grey, config, draw)
    if config.contrast:
        mean = image.mean(dtype=np.float64)
        image = (image - np.float32(mean)) * _log_uniform(config.contrast, draw.contrast)
        image += np.float32(mean)
    if config.brightness:
        image = image + np.float32(_symmetric(config.brightness, draw.brightness))
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
    """Return view `index` of an image: 0 is the image itself, the others are fixed random variants.

    A view depends only on the seed, the image's content and the index. It does not depend on other
    views, on the file's name or on the process, so cached features of views stay valid.

    Args:
        grey: float32 (h, w) in [0, 1].
        config: ranges of the changes.
        seed: seed of the run.
        image_sha256: hex digest of the image file's bytes.
        index: number of the view, from 0.

    Raises:
        UsageError: `index` is negative, or a range in `config` is invalid.
    """
    if index < 0:
        raise UsageError(f"view {index}: views are counted from 0, the un-augmented image.")
    if index == 0:
        return grey
    return augment(grey, config, random_stream("view", seed, image_sha256, index))


def view_fingerprint(config: AugmentConfig, seed: int, index: int) -> str:
    """Hash everything that view `index` depends on, except for the image; used in cache keys.

    Returns:
        `"plain"` for view 0, else 16 hex digits.
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


def _symmetric(reach: float, chance: float) -> float:
    return reach * (2 * chance - 1)


def _log_uniform(reach: float, chance: float) -> np.float32:
    return np.float32(math.exp(_symmetric(reach, chance)))


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
    """The 3×3 map from a point of the new image to the corresponding point of the old one."""
    angle = math.radians(_symmetric(config.rotation, draw.rotation))
    factor = math.exp(-_symmetric(config.zoom, draw.zoom))
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
        -width * _symmetric(config.shift, draw.shift_x),
        -height * _symmetric(config.shift, draw.shift_y),
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
    # The aspect ratio is 1:2 to 2:1, so the longer side is at most 0.64 of the image's.
    stretch = math.sqrt(2.0 ** (2 * draw.erased_aspect - 1))
    rows = max(1, round(height * math.sqrt(area) * stretch))
    columns = max(1, round(width * math.sqrt(area) / stretch))
    top = math.floor(draw.erased_y * (height - rows + 1))
    left = math.floor(draw.erased_x * (width - columns + 1))
    image = image.copy()
    image[top : top + rows, left : left + columns] = draw.erased_grey
    return image


Points = NDArray[np.float64]
"""Four points, (4, 2): column and row."""


_SLOPE, _VIGNETTE = 0.35, 0.25


def photograph(image: Float32Array, strength: float, seed: int = 0) -> Float32Array:
    """Return the grey image that a photograph of the X-ray would give.

    The displacement of the corners, the side of the light and the direction of the stripes depend
    on the seed and on the image's content. Their size depends only on `strength`, so that a sweep
    shows one photograph getting worse.

    Four effects grow in proportion to the strength:
    1. The camera is tilted: the corners of the image move, and black appears beside it.
    2. The illumination is uneven: brighter on one side, darker in the corners.
    3. The light has a colour. Red, green and blue are exposed differently, and the brightest
       channel saturates first; after the conversion to grey the tone curve is bent.
    4. The grids of screen and camera interfere: faint stripes (moiré) in two directions.

    Args:
        image: float32 (h, w) in [0, 1].
        strength: 0 (no change) to 1.
        seed: determines corners, light and stripes.

    Raises:
        PneumoscopeError: `image` is not a float32 array with two axes.
        UsageError: `strength` is out of range.
    """
    if image.ndim != 2 or image.dtype != np.float32 or not image.size:
        raise PneumoscopeError(
            f"photograph: found an array of shape {image.shape} and type {image.dtype}, wanted "
            "float32 of shape (height, width). Give the pixels of `read_image`."
        )
    if not 0.0 <= strength <= 1.0:
        raise UsageError(
            f"photograph: strength is {strength}, wanted 0 to 1. Give another strength."
        )
    content = hashlib.sha256(image.tobytes()).hexdigest()
    stream = random_stream("photograph", seed, *image.shape, content)
    corners = stream.uniform(0.3, 1.0, (4, 2))
    angle, turn = stream.uniform(0, 2 * math.pi, 2)
    phases = stream.uniform(0, 2 * math.pi, 2)
    seen = _tilted(image, _CORNER_SHIFT * strength * corners)
    seen = seen * _light(image.shape, strength, float(angle))
    seen = _cast(seen, strength) + _stripes(image.shape, strength, float(turn), phases.tolist())
    taken: Float32Array = np.clip(seen, 0, 1, dtype=np.float32)
    return taken


def _tilted(image: Float32Array, inward: Points) -> Float32Array:
    """The image with its corners moved inwards by shares of the sides, (4, 2); black outside."""
    height, width = image.shape
    outer = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    inner = outer + signs * inward * (width, height)
    data = _perspective(inner, outer)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR, fillcolor=0
    )
    tilted: Float32Array = np.asarray(turned)
    return tilted


def _perspective(shown: Points, original: Points) -> tuple[float, ...]:
    """The eight coefficients that map the points `shown` (4, 2) to the points `original` (4, 2).

    u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (g x + h y + 1): four pairs of
    points give eight linear equations (Heckbert 1989).
    """
    rows, wanted = [], []
    for (x, y), (u, v) in zip(shown.tolist(), original.tolist(), strict=True):
        rows.append((x, y, 1, 0, 0, 0, -u * x, -u * y))
        rows.append((0, 0, 0, x, y, 1, -v * x, -v * y))
        wanted += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(wanted)).tolist())


def _grid(shape: tuple[int, ...]) -> tuple[Float32Array, Float32Array]:
    """Column (1, w) and row (h, 1) of every pixel, from -1 to 1."""
    height, width = shape
    x = 2 * (np.arange(width) + 0.5) / width - 1
    y = 2 * (np.arange(height) + 0.5) / height - 1
    return x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]


def _light(shape: tuple[int, ...], strength: float, angle: float) -> Float32Array:
    x, y = _grid(shape)
    slope = np.float32(_SLOPE * strength) * (math.cos(angle) * x + math.sin(angle) * y)
    lit: Float32Array = (1 + slope) * (1 - np.float32(_VIGNETTE * strength) * (x * x + y * y))
    return lit.astype(np.float32)


def _cast(image: Float32Array, strength: float) -> Float32Array:
    grey = np.zeros_like(image)
    for share, extra in zip(_LUMINANCE, _CAST, strict=True):
        grey += np.float32(share) * np.minimum(image * np.float32(1 + extra * strength), 1)
    return grey


def _stripes(
    shape: tuple[int, ...], strength: float, angle: float, phases: list[float]
) -> Float32Array:
    """Two patterns of stripes with slightly different periods, which interfere like the grids."""
    x, y = _grid(shape)
    pattern = np.zeros(shape, np.float32)
    for phase, (turn, waves) in zip(phases, ((0.0, 19.0), (0.35, 22.0)), strict=True):
        along = math.cos(angle + turn) * x + math.sin(angle + turn) * y
        pattern += np.sin(np.float32(waves * math.pi) * along + np.float32(phase))
    return np.float32(_STRIPES * strength / 2) * pattern
