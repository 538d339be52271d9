"""Batch augmentation on the device, in Keras ops, so that any Keras backend can run it.

`build_batch_augmentation` makes a layer that takes grey squares as stored, uint8, and returns
float32 squares of the network's size in [0, 1], each changed at random.

Exposure, contrast, framing and borders of an X-ray identify the site where it was made. A network
may learn them instead of the lungs. The augmentation varies each of them, by far more than sites
differ. All geometric changes are one coordinate map and one bilinear interpolation. Random numbers
come from the layer's own seed state, a variable like any weight, so a checkpoint that holds the
variables continues with the same random numbers.

| setting | imitates |
| --- | --- |
| crop, aspect, rotation, flip | other framing, collimation or size of the child |
| frame | black or grey borders, printed or scanned |
| marker | a side marker, a burnt-in label |
| gamma, contrast, brightness, shading | other dose, tube voltage, detector, window, heel effect |
| blur | other resolution, or the edge enhancement of the detector's software |
| enhance | unsharp masking at the scale of an opacity, by the detector's software |
| jpeg, noise | lossy compression, low dose |
| erasing | occlusion of a part (Zhong et al., arXiv:1708.04896) |
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import DistortConfig
from pneumoscope.errors import UsageError
from pneumoscope.training.runtime import load_keras

JPEG_BLOCK = 8

_BROAD = 0.05
"""Standard deviation of the smoothing in `enhance`, share of the side; as in the perturbation
`enhancement`."""

_JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Luminance quantisation table at quality 50: ITU-T T.81 (JPEG), table K.1."""


def build_batch_augmentation(config: DistortConfig, size: int, seed: int) -> Any:
    """Build the augmentation layer: uint8 (n, side, side) → float32 (n, size, size) in [0, 1].

    Called with images and their lung masks (0 to 255), it returns both; the masks are shares of
    lung and are moved like the images. Outside training it only scales to [0, 1] and interpolates.
    `size` must be a multiple of 8 if `config.jpeg` is on.

    Raises:
        UsageError: the largest crop is smaller than the smallest.
    """
    if config.crop_least > config.crop_most:
        raise UsageError(
            f"distort.crop_least: found {config.crop_least:g}, wanted at most distort.crop_most, "
            f"{config.crop_most:g}"
        )
    return _layer_class()(config, size, seed, name="batch_augmentation", dtype="float32")


class _Draw:
    """Random numbers for a batch, each of shape (n, 1, 1), drawn from one seed state."""

    def __init__(self, keras: Any, count: Any, generator: Any) -> None:
        self._keras, self._count, self._generator = keras, count, generator

    def uniform(self, low: float, high: float) -> Any:
        shape = (self._count, 1, 1)
        return self._keras.random.uniform(shape, low, high, seed=self._generator)

    def chance(self, share: float) -> Any:
        """1.0 with probability `share`, else 0.0."""
        drawn = self.uniform(0.0, 1.0) < share
        return self._keras.ops.cast(drawn, "float32")

    def factor(self, reach: float) -> Any:
        """Log-uniform between e^-reach and e^reach."""
        return self._keras.ops.exp(self.uniform(-reach, reach))

    def normal(self, size: int) -> Any:
        shape = (self._count, size, size)
        return self._keras.random.normal(shape, seed=self._generator)


def _warp(
    ops: Any, images: Any, grid: tuple[Any, Any], draw: _Draw, config: DistortConfig, lungs: Any
) -> tuple[Any, Any]:
    """Random resized crop, rotation and flip as one coordinate map and one bilinear interpolation.

    Coordinates run from -1 to 1 over the image. A crop larger than the image fills what lies beyond
    the edge with black, with one grey value, or with the edge pixels. The lung mask, if given, is
    moved in the same way; beyond the edge it is 0.
    """
    area = draw.uniform(config.crop_least, config.crop_most)
    half_x = ops.sqrt(area * draw.factor(config.aspect))
    half_y = area / half_x
    angle = draw.uniform(-1.0, 1.0) * math.radians(config.rotation)
    cosine, sine = ops.cos(angle), ops.sin(angle)
    mirror = 1.0 - 2.0 * draw.chance(config.flip)
    u, v = grid[0] * half_x * mirror, grid[1] * half_y
    x = draw.uniform(-1.0, 1.0) * ops.abs(1.0 - half_x) + cosine * u - sine * v
    y = draw.uniform(-1.0, 1.0) * ops.abs(1.0 - half_y) + sine * u + cosine * v
    sampled = _bilinear(ops, images, x, y)
    inside = ops.cast(ops.maximum(ops.abs(x), ops.abs(y)) <= 1.0, "float32")
    masks = None if lungs is None else inside * _bilinear(ops, lungs, x, y)
    inside = ops.maximum(inside, draw.chance(0.5))
    fill = draw.uniform(0.0, 1.0) * draw.chance(0.3)
    return inside * sampled + (1.0 - inside) * fill, masks


def _bilinear(ops: Any, images: Any, x: Any, y: Any) -> Any:
    """Values at (x, y) in [-1, 1], (n, rows, columns) in [0, 1]; outside, the nearest pixel's."""
    side = images.shape[1]
    flat = ops.reshape(ops.cast(images, "float32") * (1.0 / 255.0), (-1, side * side))
    shape = ops.shape(x)
    column = ops.clip((x + 1.0) * (side / 2) - 0.5, 0.0, side - 1.0)
    row = ops.clip((y + 1.0) * (side / 2) - 0.5, 0.0, side - 1.0)
    left = ops.minimum(ops.floor(column), side - 2.0)
    top = ops.minimum(ops.floor(row), side - 2.0)
    across, down = column - left, row - top
    first = ops.reshape(ops.cast(top * side + left, "int32"), (-1, shape[1] * shape[2]))

    def at(offset: int) -> Any:
        return ops.reshape(ops.take_along_axis(flat, first + offset, axis=1), shape)

    upper = at(0) * (1.0 - across) + at(1) * across
    lower = at(side) * (1.0 - across) + at(side + 1) * across
    return upper * (1.0 - down) + lower * down


def _tone(ops: Any, x: Any, grid: tuple[Any, Any], draw: _Draw, config: DistortConfig) -> Any:
    """Contrast about the mean, brightness with a gradient across the image, gamma."""
    mean = ops.mean(x, axis=(1, 2), keepdims=True)
    x = mean + (x - mean) * draw.factor(config.contrast)
    x = x + draw.uniform(-config.brightness, config.brightness)
    for axis in grid:
        x = x + draw.uniform(-config.shading, config.shading) * axis
    x = ops.clip(x, 0.0, 1.0)
    return ops.power(x + 1e-6, draw.factor(config.gamma))


def _sharpness(ops: Any, x: Any, draw: _Draw, config: DistortConfig) -> Any:
    """Move towards a smoothed copy (blur) or away from it (edge enhancement)."""
    smooth = _smoothed(ops, _smoothed(ops, x))
    strength = draw.uniform(-config.sharpen, 1.0) * draw.chance(config.blur)
    return ops.clip(x + strength * (smooth - x), 0.0, 1.0)


def _enhanced(ops: Any, x: Any, draw: _Draw, config: DistortConfig) -> Any:
    """Unsharp masking: multiply differences from the local mean by 1 + a random gain."""
    gaussian = ops.convert_to_tensor(_gaussian(x.shape[1], _BROAD * x.shape[1]))
    broad = ops.matmul(ops.matmul(gaussian, x), ops.transpose(gaussian))
    gain = draw.uniform(-config.enhance / 2, config.enhance)
    return ops.clip(x + gain * (x - broad), 0.0, 1.0)


def _gaussian(size: int, deviation: float) -> NDArray[np.float32]:
    """The matrix (size, size) that smooths a column of pixels; edge pixels are repeated."""
    reach = math.ceil(4 * deviation)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-((offsets / deviation) ** 2) / 2)
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        matrix[rows, np.clip(rows + offset, 0, size - 1)] += weight
    return matrix.astype(np.float32)


def _smoothed(ops: Any, x: Any) -> Any:
    """The binomial filter 1-2-1 along both axes; edge pixels are repeated."""
    for axis in (1, 2):
        before = ops.concatenate([_slice(x, axis, 0, 1), _slice(x, axis, 0, -1)], axis)
        after = ops.concatenate([_slice(x, axis, 1, None), _slice(x, axis, -1, None)], axis)
        x = 0.5 * x + 0.25 * (before + after)
    return x


def _slice(x: Any, axis: int, start: int, stop: int | None) -> Any:
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]


def _jpeg(ops: Any, x: Any, draw: _Draw, config: DistortConfig) -> Any:
    """Quantise 8×8 blocks in the cosine domain, as JPEG does (ITU-T T.81, A.3.3)."""
    size, b = x.shape[1], JPEG_BLOCK
    k = np.arange(b)
    basis = np.cos((2 * k[None, :] + 1) * k[:, None] * math.pi / (2 * b)) * math.sqrt(2 / b)
    basis[0] /= math.sqrt(2)
    transform = ops.convert_to_tensor(basis.astype(np.float32))
    table = ops.convert_to_tensor(np.array(_JPEG_TABLE, np.float32)[None, None, :, None, :] / 255)
    # Quality 50 is factor 1, quality 10 is 5, quality 90 is 0.2.
    steps = table * ops.reshape(draw.factor(math.log(5.0)), (-1, 1, 1, 1, 1))
    blocks = ops.reshape(x, (-1, size // b, b, size // b, b))
    coefficients = ops.einsum("ki,nrics,ls->nrkcl", transform, blocks, transform)
    coefficients = ops.round(coefficients / steps) * steps
    blocks = ops.einsum("ki,nrkcl,ls->nrics", transform, coefficients, transform)
    used = draw.chance(config.jpeg)
    return ops.clip(x + used * (ops.reshape(blocks, ops.shape(x)) - x), 0.0, 1.0)


def _paint(ops: Any, x: Any, box: tuple[Any, Any, Any, Any], ink: Any, used: Any) -> Any:
    """Paint `ink` where the distance to the centre is below the half sides of the box."""
    across, down, half_width, half_height = box
    covered = ops.logical_and(ops.abs(across) <= half_width, ops.abs(down) <= half_height)
    mask = ops.cast(covered, "float32") * used
    return x + mask * (ink - x)


def _frame(ops: Any, x: Any, grid: tuple[Any, Any], draw: _Draw, config: DistortConfig) -> Any:
    """A border of one grey value, usually black, with its own width on each side."""
    used = draw.chance(config.frame)
    ink = draw.uniform(0.0, 1.0) * draw.chance(0.3)
    outside = 0.0 * x
    for axis in grid:
        for sign in (-1.0, 1.0):
            edge = 1.0 - 2.0 * draw.uniform(-config.frame_width / 2, config.frame_width)
            outside = ops.maximum(outside, ops.cast(sign * axis > edge, "float32"))
    return x + outside * used * (ink - x)


def _marker(ops: Any, x: Any, grid: tuple[Any, Any], draw: _Draw, config: DistortConfig) -> Any:
    """A small bright striped patch at a random place, similar to letters at this resolution."""
    across = grid[0] - draw.uniform(-1.0, 1.0)
    down = grid[1] - draw.uniform(-1.0, 1.0)
    stripes = ops.cos(across * draw.uniform(10.0, 60.0)) * ops.cos(down * draw.uniform(0.0, 40.0))
    ink = draw.uniform(0.7, 1.0) * ops.cast(stripes > -0.3, "float32")
    box = (across, down, draw.uniform(0.03, 0.15), draw.uniform(0.03, 0.1))
    return _paint(ops, x, box, ink, draw.chance(config.marker))


def _erase(ops: Any, x: Any, grid: tuple[Any, Any], draw: _Draw, config: DistortConfig) -> Any:
    """A rectangle of 2 to 20 % of the area in one grey."""
    stretch = ops.sqrt(draw.factor(math.log(2.0)))
    half = ops.sqrt(draw.uniform(0.02, 0.20))
    across, down = grid[0] - draw.uniform(-1.0, 1.0), grid[1] - draw.uniform(-1.0, 1.0)
    box = (across, down, half * stretch, half / stretch)
    return _paint(ops, x, box, draw.uniform(0.0, 1.0), draw.chance(config.erasing))


def _grid(ops: Any, size: int) -> tuple[Any, Any]:
    """X and y of the pixel centres, from -1 to 1: (1, 1, size) and (1, size, 1)."""
    centres = (2.0 * np.arange(size, dtype=np.float32) + 1.0) / size - 1.0
    return (
        ops.convert_to_tensor(centres[None, None, :]),
        ops.convert_to_tensor(centres[None, :, None]),
    )


@functools.cache
def _layer_class() -> Any:
    """The layer's class, made on first use because Keras is imported late."""
    keras = load_keras()
    ops = keras.ops

    class BatchAugmentation(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, config: DistortConfig, size: int, seed: int, **settings: Any) -> None:
            super().__init__(trainable=False, **settings)
            self._config, self._size = config, size
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            images, lungs = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
            grid = _grid(ops, self._size)
            if not training:
                columns, rows = (ops.broadcast_to(axis, self._shape(images)) for axis in grid)
                plain = _bilinear(ops, images, columns, rows)
                return plain if lungs is None else [plain, _bilinear(ops, lungs, columns, rows)]
            draw = _Draw(keras, ops.shape(images)[0], self.seed_generator)
            x, masks = _warp(ops, images, grid, draw, self._config, lungs)
            x = self._greys(x, grid, draw)
            return x if masks is None else [x, masks]

        def _greys(self, x: Any, grid: tuple[Any, Any], draw: _Draw) -> Any:
            config = self._config
            x = _marker(ops, x, grid, draw, config)
            x = _tone(ops, x, grid, draw, config)
            x = _sharpness(ops, x, draw, config)
            if config.enhance:
                x = _enhanced(ops, x, draw, config)
            if config.jpeg:
                x = _jpeg(ops, x, draw, config)
            x = _frame(ops, x, grid, draw, config)
            x = _erase(ops, x, grid, draw, config)
            noise = draw.uniform(0.0, config.noise) * draw.normal(self._size)
            return ops.clip(x + noise, 0.0, 1.0)

        def _shape(self, images: Any) -> tuple[Any, int, int]:
            return (ops.shape(images)[0], self._size, self._size)

        def compute_output_shape(self, shape: Any) -> Any:
            if isinstance(shape[0], (list, tuple)):
                return [self.compute_output_shape(each) for each in shape]
            return (shape[0], self._size, self._size)

    return BatchAugmentation
