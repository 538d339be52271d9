"""Named, fixed perturbations of an X-ray, and the sweeps over their strengths that `stress` runs.

A perturbation imitates the exposure, framing or quality of another site or scanner. The input is
one decoded grey image, float32 (h, w) in [0, 1], of any size, and a strength; the output is a new
image of the same shape, dtype and range. Images are changed before preprocessing.

Only the noise is random, and it depends on a seed and on the image alone. So a perturbed copy is
always the same, independent of process and order. `augment` draws random changes for training;
these perturbations are for testing a trained model.

| function | strength | imitates |
| --- | --- | --- |
| contrast | factor about the mean | another tube voltage, window width |
| gamma | exponent, below 1 is brighter | another detector curve or monitor |
| brightness | shift, as a share of the range | another dose, window centre |
| crop | share of the side cut off each edge | tighter collimation |
| collimation | share cut off two sides, below 0 off top and bottom | a field of another shape |
| border | share of the side added at each edge | an X-ray scanned or printed with its frame |
| rotation | degrees, anticlockwise | a child who lies crooked |
| blur | standard deviation, as a share of the mean side | movement, a coarser detector |
| enhancement | gain of structures finer than 5 % of the side | a detector's software |
| noise | standard deviation, as a share of the range | less dose |
| jpeg | quality, 1 to 100 | lossy storage |
| resolution | pixels kept on the longer side | a thumbnail, an image from a document |
| zoom | factor, below 1 shows the child smaller | another distance, a smaller child |
| inversion | share of the way to the negative | a viewer set to black bones |
| marker | height of a letter, as a share of the side | a lead letter in the corner |

`photograph` in `augment.py` is a further one. `SWEEPS` lists every perturbation at increasing
strengths, in the order of the tables. A strength is plausible if X-rays of another site or scanner,
read by this program, look like that; verdicts use only plausible strengths. The stronger ones show
where predictions break down. All of `PERTURBATIONS` are among the plausible ones.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import PneumoscopeError, UsageError
from pneumoscope.images.augment import photograph, random_stream
from pneumoscope.images.grey import unit_range

_REACH = 4.0
"""Standard deviations at which the Gaussian of `blur` is cut off: 6e-5 of its mass lies beyond."""

_BROAD, _BROAD_SIDE = 0.05, 128
"""Standard deviation of the blur in `enhancement`, as a share of the side; and the size in pixels
at which it is computed."""

_MARKER_MARGIN, _MARKER_STROKE, _MARKER_GREY = 0.05, 0.16, 0.97
_LETTER_R = (
    ((0, 1), (0, 0), (0.42, 0), (0.6, 0.13), (0.6, 0.36), (0.42, 0.5), (0, 0.5)),
    ((0.28, 0.5), (0.62, 1)),
)
"""Two strokes in units of the letter's height."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One perturbation at one strength; use `dataclasses.replace` for another strength.

    Attributes:
        name: letters, digits and underscores; used as a key and in file names.
        title: for tables.
        change: a function of this module.
        strength: its second argument.
        seeded: whether it takes a seed as its third argument.
    """

    name: str
    title: str
    change: Callable[..., Float32Array]
    strength: float
    seeded: bool = False

    def apply(self, image: Float32Array, seed: int = 0) -> Float32Array:
        """Return the perturbed copy of an image.

        Args:
            image: float32 (h, w) in [0, 1].
            seed: of the noise; the other perturbations are deterministic.

        Returns:
            A new array, float32 (h, w) in [0, 1].

        Raises:
            PneumoscopeError: `image` is not a float32 array with two axes.
            UsageError: the strength is out of range.
        """
        if self.seeded:
            return self.change(image, self.strength, seed)
        return self.change(image, self.strength)


def contrast(image: Float32Array, factor: float) -> Float32Array:
    """Multiply differences from the image's mean by `factor` (0 or more) and clip."""
    _check(image, "contrast: factor", factor, 0.0, math.inf)
    mean = np.float32(image.mean(dtype=np.float64))
    return _clipped((image - mean) * np.float32(factor) + mean)


def gamma(image: Float32Array, exponent: float) -> Float32Array:
    """Raise greys to the power of `exponent` (0.01 or more); below 1 brightens."""
    _check(image, "gamma: exponent", exponent, 0.01, math.inf)
    return _clipped(np.power(image, np.float32(exponent)))


def brightness(image: Float32Array, shift: float) -> Float32Array:
    """Add `shift` (-1 to 1, a share of the grey range) to every pixel and clip."""
    _check(image, "brightness: shift", shift, -1.0, 1.0)
    return _clipped(image + np.float32(shift))


def crop(image: Float32Array, share: float) -> Float32Array:
    """Cut `share` (0 to 0.49) of the side off each edge and resize the rest to the image's shape.

    Whole pixels are cut, as viewers do, so no removed pixel influences the new edges.
    """
    _check(image, "crop: share", share, 0.0, 0.49)
    return _middle(image, share, share)


def collimation(image: Float32Array, share: float) -> Float32Array:
    """Cut `share` (-0.49 to 0.49) of the width off left and right; if negative, off top and bottom.

    The rest is resized to the image's shape. This imitates a field of another shape in a program
    that fits every image into one square: cut left and right, the child looks wider by
    1 / (1 - 2 share).
    """
    _check(image, "collimation: share", share, -0.49, 0.49)
    return _middle(image, max(-share, 0.0), max(share, 0.0))


def border(image: Float32Array, share: float) -> Float32Array:
    """Add black at each edge, `share` (0 to 5) of the side wide, and shrink to the old shape.

    The image then fills 1 / (1 + 2 share) of each side, rounded to whole pixels, at least one.
    """
    _check(image, "border: share", share, 0.0, 5.0)
    height, width = image.shape
    rows = max(1, round(height / (1 + 2 * share)))
    columns = max(1, round(width / (1 + 2 * share)))
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = (height - rows) // 2, (width - columns) // 2
    framed = np.zeros_like(image)
    framed[top : top + rows, left : left + columns] = np.asarray(small)
    return _clipped(framed)


def rotation(image: Float32Array, degrees: float) -> Float32Array:
    """Rotate anticlockwise about the centre (-180 to 180 degrees), bilinear; black outside."""
    _check(image, "rotation: degrees", degrees, -180.0, 180.0)
    turned = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=0)
    return _clipped(np.asarray(turned))


def blur(image: Float32Array, share: float) -> Float32Array:
    """Blur with a Gaussian of standard deviation `share` (0 to 0.25) times the mean side.

    The edge rows and columns are repeated. Separable, with NumPy: Pillow does not blur floats.
    """
    _check(image, "blur: share", share, 0.0, 0.25)
    deviation = share * sum(image.shape) / 2
    radius = math.ceil(_REACH * deviation)
    if not radius:
        return _clipped(image)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (weights / weights.sum()).astype(np.float32)
    return _clipped(_smoothed_rows(_smoothed_rows(image, kernel).T, kernel).T)


def enhancement(image: Float32Array, gain: float) -> Float32Array:
    """Unsharp masking: multiply differences from the surroundings by 1 + `gain` (-1 to 5) and clip.

    The surroundings are the mean under a Gaussian with a standard deviation of 5 % of the side, the
    width used in chest radiography. Broad structures, such as opacities, lose against fine ones.
    Prokop, Neitzel, Schaefer-Prokop, "Principles of image processing in digital chest radiography",
    J Thorac Imaging 2003;18:148.
    """
    _check(image, "enhancement: gain", gain, -1.0, 5.0)
    height, width = image.shape
    # Such broad structures survive in a small copy, which takes a hundredth of the time to blur.
    scale = min(1.0, _BROAD_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    broad = Image.fromarray(blur(small, _BROAD)).resize((width, height), Image.Resampling.BILINEAR)
    return _clipped(image + np.float32(gain) * (image - np.asarray(broad)))


def noise(image: Float32Array, deviation: float, seed: int = 0) -> Float32Array:
    """Add independent Gaussian noise of standard deviation `deviation` (0 to 1) and clip.

    The pattern depends on the seed and the image's content, its amplitude only on `deviation`, so
    that a sweep over strengths shows one pattern grow.
    """
    _check(image, "noise: deviation", deviation, 0.0, 1.0)
    content = hashlib.sha256(image.tobytes()).hexdigest()
    stream = random_stream("noise", seed, *image.shape, content)
    pattern = stream.standard_normal(image.shape, dtype=np.float32)
    return _clipped(image + np.float32(deviation) * pattern)


def jpeg(image: Float32Array, quality: float) -> Float32Array:
    """Round to 8 bits, store as baseline JPEG of `quality` (1 to 100, rounded), read again."""
    _check(image, "jpeg: quality", quality, 1.0, 100.0)
    stream = io.BytesIO()
    eight_bits = np.rint(image * np.float32(255)).astype(np.uint8)
    Image.fromarray(eight_bits).save(stream, format="JPEG", quality=round(quality))
    with Image.open(stream) as stored:
        return unit_range(np.asarray(stored))


def resolution(image: Float32Array, pixels: float) -> Float32Array:
    """Reduce to `pixels` (8 or more, rounded) on the longer side, then enlarge again, bilinear.

    An image that is not larger stays unchanged.
    """
    _check(image, "resolution: pixels", pixels, 8.0, math.inf)
    height, width = image.shape
    scale = round(pixels) / max(height, width)
    if scale >= 1:
        return _clipped(image)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return _clipped(np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)))


def zoom(image: Float32Array, factor: float) -> Float32Array:
    """Magnify about the centre by `factor` (0.2 to 5), bilinear, same shape.

    Below 1 the edge rows and columns are repeated, whereas `border` adds black.
    """
    _check(image, "zoom: factor", factor, 0.2, 5.0)
    if factor >= 1:
        height, width = image.shape
        x, y = (width - width / factor) / 2, (height - height / factor) / 2
        part = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box=(x, y, width - x, height - y)
        )
        return _clipped(np.asarray(part))
    small = border(image, (1 / factor - 1) / 2)
    inside = [max(1, round(side * factor)) for side in image.shape]
    starts = [(side - kept) // 2 for side, kept in zip(image.shape, inside, strict=True)]
    rows, columns = (
        np.clip(np.arange(side), start, start + kept - 1)
        for side, start, kept in zip(image.shape, starts, inside, strict=True)
    )
    return _clipped(small[np.ix_(rows, columns)])


def inversion(image: Float32Array, share: float) -> Float32Array:
    """Move `share` (0 to 1) of the way from the image to its negative; 0.5 is all grey."""
    _check(image, "inversion: share", share, 0.0, 1.0)
    return _clipped(image + np.float32(share) * (1 - 2 * image))


def marker(image: Float32Array, height: float) -> Float32Array:
    """Add a white letter R, `height` (0 to 0.5) of the shorter side high, at the upper left.

    This is the patient's right side, where most lead letters are.
    """
    _check(image, "marker: height", height, 0.0, 0.5)
    side = min(image.shape)
    size, margin = height * side, _MARKER_MARGIN * side
    canvas = Image.new("L", (image.shape[1], image.shape[0]))
    width = max(1, round(_MARKER_STROKE * size))
    if size >= 1:
        draw = ImageDraw.Draw(canvas)
        for line in _LETTER_R:
            draw.line([(margin + size * x, margin + size * y) for x, y in line], 255, width)
    letter = unit_range(np.asarray(canvas))
    return _clipped(image + letter * (np.float32(_MARKER_GREY) - image))


PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("contrast_half", "contrast × 0.5", contrast, 0.5),
    Perturbation("contrast_double", "contrast × 2", contrast, 2.0),
    Perturbation("gamma_06", "gamma 0.6", gamma, 0.6),
    Perturbation("gamma_16", "gamma 1.6", gamma, 1.6),
    Perturbation("brighter_40", "brightness +40 of 255", brightness, 40 / 255),
    Perturbation("darker_40", "brightness −40 of 255", brightness, -40 / 255),
    Perturbation("crop_10", "10 % cropped off each side", crop, 0.10),
    Perturbation("border_10", "10 % black border on each side", border, 0.10),
    Perturbation("rotation_10", "rotation 10°", rotation, 10.0),
    Perturbation("blur_1", "blur, deviation 1 % of the side", blur, 0.01),
    Perturbation("noise_5", "noise, deviation 0.05", noise, 0.05, seeded=True),
    Perturbation("jpeg_30", "JPEG quality 30", jpeg, 30.0),
)
"""The perturbations for testing a shipped model, in the order of tables; never reordered."""


def _middle(image: Float32Array, off_height: float, off_width: float) -> Float32Array:
    """Cut these shares off both ends of each axis and resize the rest to the old shape."""
    height, width = image.shape
    top = min(round(off_height * height), (height - 1) // 2)
    left = min(round(off_width * width), (width - 1) // 2)
    kept = Image.fromarray(image[top : height - top, left : width - left])
    return _clipped(np.asarray(kept.resize((width, height), Image.Resampling.BILINEAR)))


def _smoothed_rows(image: Float32Array, kernel: Float32Array) -> Float32Array:
    """Convolve each row with an odd kernel, edges repeated; all rows in one call."""
    radius = kernel.size // 2
    padded = np.pad(image, ((0, 0), (radius, radius)), mode="edge")
    # The padding separates the rows: pixels that mix two rows are cut off again.
    smooth = np.convolve(padded.ravel(), kernel, mode="same").reshape(padded.shape)
    return smooth[:, radius:-radius]


def _clipped(image: Float32Array) -> Float32Array:
    clipped: Float32Array = np.clip(image, 0, 1, dtype=np.float32)
    return clipped


def _check(image: Float32Array, setting: str, value: float, least: float, most: float) -> None:
    if image.ndim != 2 or image.dtype != np.float32 or not image.size:
        raise PneumoscopeError(
            f"{setting.partition(':')[0]}: found an array of shape {image.shape} and type "
            f"{image.dtype}; expected float32 of shape (height, width). Give the pixels of "
            "`read_image`."
        )
    if not (least <= value <= most and math.isfinite(value)):
        upper = f" to {most:g}" if math.isfinite(most) else " or more"
        raise UsageError(f"{setting} is {value}; expected {least:g}{upper}. Give another strength.")


@dataclass(frozen=True, slots=True)
class Step:
    """One strength of a sweep, and whether X-rays of other sites look like that."""

    perturbation: Perturbation
    plausible: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """One perturbation at several strengths.

    Attributes:
        name: used as a key and in file names.
        title: for headings.
        axis: the meaning of the strength, with its unit.
        neutral: the strength that changes nothing, `None` if the axis has none.
        steps: in order of increasing strength.
    """

    name: str
    title: str
    axis: str
    neutral: float | None
    steps: tuple[Step, ...]


def _sweep(  # noqa: PLR0913 - a row of the table below
    change: Callable[..., Float32Array],
    title: str,
    axis: str,
    neutral: float | None,
    wording: str,
    strengths: tuple[float, ...],
    plausible: tuple[float, ...],
    *,
    scale: float = 1.0,
    seeded: bool = False,
    below: str = "",
) -> Sweep:
    """One row of the table; `plausible` are the ends of a range.

    `wording`, or `below` for negative strengths, is formatted with the strength times `scale`.
    """
    name = change.__name__
    steps = []
    for number, strength in enumerate(strengths, start=1):
        likely = bool(plausible) and plausible[0] <= strength <= plausible[-1]
        said = (
            below.format(-scale * strength)
            if below and strength < 0
            else (wording.format(scale * strength))
        )
        words = said.replace("-", "−").replace(" %", "\N{NO-BREAK SPACE}%")
        changed = Perturbation(f"{name}_{number}", words, change, strength, seeded)
        steps.append(Step(changed, likely))
    return Sweep(name, title, axis, neutral, tuple(steps))


_40 = 40 / 255

SWEEPS: tuple[Sweep, ...] = (
    _sweep(brightness, "Brightness", "shift, share of the range", 0.0, "brightness {:+.2f}",
           (-0.3, -_40, _40, 0.3), (-_40, _40)),
    _sweep(contrast, "Contrast", "factor about the mean", 1.0, "contrast × {:g}",
           (0.3, 0.5, 2.0, 3.0), (0.5, 2.0)),
    _sweep(gamma, "Gamma", "exponent", 1.0, "gamma {:g}", (0.4, 0.6, 1.6, 2.5), (0.6, 1.6)),
    _sweep(noise, "Noise", "deviation, share of the range", 0.0, "noise {:g}",
           (0.02, 0.05, 0.1, 0.2), (0.02, 0.05), seeded=True),
    _sweep(blur, "Blur", "deviation, % of the side", 0.0, "blur {:g} % of the side",
           (0.005, 0.01, 0.02, 0.04), (0.005, 0.01), scale=100),
    _sweep(enhancement, "Enhancement", "gain of what is finer than 5 % of the side", 0.0,
           "enhancement {:+g}", (-0.5, -0.25, 0.25, 0.5, 1.0), (-0.25, 0.5)),
    _sweep(jpeg, "JPEG", "quality", 100.0, "JPEG quality {:g}",
           (5.0, 10.0, 30.0, 70.0), (30.0, 70.0)),
    _sweep(resolution, "Resolution", "pixels on the longer side", None, "{:g} pixels",
           (32.0, 64.0, 96.0, 128.0), (96.0, 128.0)),
    _sweep(rotation, "Rotation", "degrees, anticlockwise", 0.0, "rotation {:+g}°",
           (-20.0, -10.0, 10.0, 20.0), (-10.0, 10.0)),
    _sweep(crop, "Crop", "% of the side cut off each edge", 0.0, "{:g} % cropped off each edge",
           (0.05, 0.1, 0.15, 0.2), (0.05, 0.1), scale=100),
    _sweep(collimation, "Collimation", "% cut off left and right; negative: top and bottom", 0.0,
           "{:g} % cut off left and right", (-0.2, -0.1, 0.1, 0.2), (-0.1, 0.1), scale=100,
           below="{:g} % cut off top and bottom"),
    _sweep(zoom, "Zoom", "factor", 1.0, "zoom × {:g}", (0.75, 0.9, 1.1, 1.3), (0.9, 1.1)),
    _sweep(border, "Border", "% of the side added at each edge", 0.0, "{:g} % black border",
           (0.05, 0.1, 0.2), (0.05, 0.1), scale=100),
    _sweep(inversion, "Inversion", "share of the way to the negative", 0.0,
           "the negative", (1.0,), ()),
    _sweep(marker, "Marker", "height of the letter, % of the side", 0.0,
           "a letter {:g} % high", (0.06, 0.12, 0.25), (0.06, 0.12), scale=100),
    _sweep(photograph, "Photograph", "strength, 0 to 1", 0.0, "photographed, strength {:g}",
           (0.25, 0.5, 1.0), (), seeded=True),
)  # fmt: skip
"""Negatives and photographs are reported but not judged: a model should reject them instead."""

PLAUSIBLE: tuple[Perturbation, ...] = tuple(
    step.perturbation for sweep in SWEEPS for step in sweep.steps if step.plausible
)
"""Perturbations that make an image look like one of another site or scanner; used as copies."""
