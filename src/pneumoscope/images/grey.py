"""Grey images: the records that decoding yields, limits, scaling of samples, colour, warnings.

Samples of more than 8 bits, signed samples and floats are scaled to grey in [0, 1]. The range of a
sample type says little about the values used: 12 bits are stored in 16, counts in 32, shares as
floats. If the image uses a small part of its type's range, it is scaled to the whole range, and a
warning states the limits. The limits leave out stray values at both ends. Hot and dead pixels,
burnt-in marks and codes for "no data" lie far beyond the other values; a range that includes them
makes the image nearly black.

`mean_chroma` measures how colourful an image is before it becomes grey; X-rays are grey, even if
they are stored as RGB. Chroma is the largest of red, green and blue minus the smallest, as a share
of the range. Large images are sampled at a few thousand pixels.

The warnings of an image are formatted for one table cell, and counted over many images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.arrays import Float32Array
from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason

_SIDE = 64
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_LAB_RANGE = 128

STRAY = 0.001
"""The share of pixels at either end of the range that may be stray."""

_SAMPLED = 1 << 20
_MIN_DISTINCT = 4
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R BT.601."""

_MIN_PART = 0.25
"""An image that uses a smaller share of its type's range is scaled."""

_MAX_WHOLE_BITS = 16
_NOTED_HIDDEN = 0.1
SEPARATOR = "; "
"""Separates the warnings of one image in the column `warnings`; no warning contains it."""

_MAX_TYPES = 5
_VALUE = re.compile(r"""'[^']*'|"[^"]*"|(?<![A-Za-z_\d])-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?""")


@dataclass(frozen=True, slots=True)
class DicomInfo:
    """DICOM header elements of an X-ray; `""` where an element is missing."""

    modality: str = ""
    body_part: str = ""
    view_position: str = ""
    patient_id: str = ""
    photometric: str = ""
    study_uid: str = ""
    study_date: str = ""
    study_description: str = ""
    series_description: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    patient_age: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    manufacturer: str = ""
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of one decoder, passed to `read`.

    Attributes:
        pixels: float32 (h, w) in [0, 1], 0 is black.
        bit_depth: bits per sample in the file.
        warnings: anomalies of the file, one sentence each.
        dicom: the header; only for DICOM.
        colour: mean chroma from 0 (grey) to 1, before the conversion to grey.
    """

    pixels: Float32Array
    bit_depth: int
    warnings: tuple[str, ...] = ()
    dicom: DicomInfo | None = None
    colour: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class GreyImage:
    """One image as every later stage receives it.

    Attributes:
        pixels: float32 (h, w) in [0, 1]; 0 is black, like air on a displayed X-ray.
        source: the name it was read from.
        format: `jpeg`, `png`, `tiff`, `bmp`, `webp` or `dicom`, detected by content.
        bit_depth: bits per sample in the file.
        sha256: hex digest of the file's bytes.
        dicom: the DICOM header; `None` for other formats.
        warnings: anomalies of the file, one sentence each.
        colour: mean chroma of the file's pixels from 0 (grey, also if stored as RGB) to 1.

    Examples:
        >>> found = read_image(image)
        >>> found.pixels.shape, found.pixels.dtype.name, found.format
        ((64, 64), 'float32', 'png')
    """

    pixels: Float32Array
    source: str
    format: str
    bit_depth: int
    sha256: str
    dicom: DicomInfo | None = None
    warnings: tuple[str, ...] = ()
    colour: float = 0.0


def unit_range(grey: npt.NDArray[np.uint8]) -> Float32Array:
    """Convert 8-bit grey, uint8 (h, w), to float32 in [0, 1]: divided by 255, rounded once."""
    return np.divide(grey, np.float32(255), dtype=np.float32)


def oriented(pixels: Float32Array, orientation: int) -> Float32Array:
    """Rotate and mirror (h, w) pixels according to EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def check_size(source: str, width: int, height: int, limits: LimitsConfig) -> None:
    """Reject an image whose header states a size outside the limits.

    Raises:
        ImageRefusedError: `corrupt` for an empty image, else `too_many_pixels`, `too_small` or
            `extreme_aspect`.
    """
    if width < 1 or height < 1:
        raise ImageRefusedError(
            source, Reason.CORRUPT, f"its header states a size of {width} × {height} pixels"
        )
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageRefusedError(
            source,
            Reason.TOO_MANY_PIXELS,
            f"its header states {width} × {height} pixels; at most {limits.max_pixels:,} pixels "
            f"and {limits.max_side:,} a side are read. Scale it down",
        )
    if min(width, height) < limits.min_side:
        raise ImageRefusedError(
            source,
            Reason.TOO_SMALL,
            f"it has {width} × {height} pixels; the shortest side must have at least "
            f"{limits.min_side}. Give the original, not a thumbnail",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageRefusedError(
            source,
            Reason.EXTREME_ASPECT,
            f"it has {width} × {height} pixels; the longest side may be at most "
            f"{limits.max_aspect:g} times the shortest, so this is not a complete X-ray",
        )


def colour_of(image: Image.Image) -> float:
    """Mean chroma of an image, 0 to 1; transparent areas count as black."""
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return 0.0
    small = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    if image.mode == "LAB":  # Pillow does not convert it to RGB; a and b are signed
        hues = np.asarray(small)[..., 1:].astype(np.int8).astype(np.float64)
        return float(np.hypot(hues[..., 0], hues[..., 1]).mean()) / _LAB_RANGE
    seen = image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info
    if not seen:
        return mean_chroma(np.asarray(small.convert("RGB")))
    small.info = dict(image.info)
    rgba = np.asarray(small.convert("RGBA")).astype(np.float64)
    return mean_chroma(rgba[..., :3] * rgba[..., 3:] / 255)


def mean_chroma(rgb: NDArray[Any], white: float = 255) -> float:
    """Mean chroma of samples (h, w, 3) from 0 to `white`."""
    step = max(1, min(rgb.shape[:2]) // _SIDE)
    red, green, blue = np.moveaxis(rgb[::step, ::step], 2, 0)
    # Per plane: NumPy takes many times as long along an axis of three.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean(dtype=np.float64)) / white


Values = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]


def quantiles(values: Values, counts: Counts) -> tuple[float, float]:
    """The quantiles at the levels `STRAY` and 1 - `STRAY` of the pixels.

    Args:
        values: (n,), in any order.
        counts: (n,), the number of pixels with each value; at least one is above 0.
    """
    order = np.argsort(values, kind="stable")
    running = np.cumsum(counts[order])
    least, most = STRAY * running[-1], (1 - STRAY) * running[-1]
    low = values[order[np.searchsorted(running, least, side="right")]]
    high = values[order[min(int(np.searchsorted(running, most, side="left")), len(order) - 1)]]
    return float(low), float(high)


def trusted(values: Values, counts: Counts) -> tuple[float, float]:
    """The limits within which values belong to the image and are not stray.

    A value is stray if its distance from the bulk of the values exceeds the width of the bulk. A
    single value at an end is left out, however many pixels have it, if its distance from its
    neighbour exceeds the span of all other values.

    Args:
        values: (n,), in any order.
        counts: (n,), the number of pixels with each value, above 0.

    Returns:
        Lower and upper limit.
    """
    kept = _without_lone_ends(values)
    low, high = quantiles(values[kept], counts[kept])
    spread = high - low
    if not spread:
        return float(values.min()), float(values.max())
    return low - spread, high + spread


def range_of(samples: Values) -> tuple[float, float, float]:
    """Smallest and largest value that is not stray, and the share of stray pixels (any shape)."""
    flat = samples.ravel()
    values, counts = np.unique(flat[:: -(-flat.size // _SAMPLED)], return_counts=True)
    low, high = trusted(values, counts)
    near = (flat >= low) & (flat <= high)
    if near.all():
        return float(flat.min()), float(flat.max()), 0.0
    found = flat[near]
    return float(found.min()), float(found.max()), 1.0 - float(near.mean())


def _without_lone_ends(values: Values) -> npt.NDArray[np.bool_]:
    kept = np.ones(values.shape, np.bool_)
    distinct = np.unique(values)
    if len(distinct) < _MIN_DISTINCT:
        return kept
    if distinct[1] - distinct[0] > distinct[-1] - distinct[1]:
        kept &= values != distinct[0]
    elif distinct[-1] - distinct[-2] > distinct[-2] - distinct[0]:
        kept &= values != distinct[-1]
    return kept


Samples = npt.NDArray[Any]
Graded = tuple[Float32Array, tuple[str, ...]]


def graded(samples: Samples, source: str, bits: int = 0) -> Graded:
    """Convert samples (h, w) of any integer or float type to grey in [0, 1].

    Args:
        samples: higher values are brighter.
        source: the file's name, for errors.
        bits: bits per sample in the file, if fewer than the type has.

    Returns:
        float32 (h, w) in [0, 1], and warnings.

    Raises:
        ImageRefusedError: `non_finite_pixels`.
    """
    if samples.dtype.kind == "f":
        return _of_floats(samples, source)
    bits = bits or samples.dtype.itemsize * 8
    signed = samples.dtype.kind == "i"
    low, high, stray = range_of(samples)
    name = f"{bits}-bit {'signed ' if signed else ''}integers"
    if bits > _MAX_WHOLE_BITS:
        return _stretched(samples, low, high, stray, f"its values are {name}")
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if signed and low >= 0:  # the negative half is not used
        least = 0
    whole = most - least
    if high - low >= _MIN_PART * whole or high == low:
        return _scaled(samples, least, most), _strays(stray, low, high)
    if low >= 0 and high < _MIN_PART * whole:
        used = max(int(high).bit_length(), 1)
        words = (
            f"its brightest value is {high:g} of {most}, so it uses {used} of {bits} bits; these "
            "were scaled to the whole range"
        )
        return _scaled(samples, 0, (1 << used) - 1), (words, *_strays(stray, low, high))
    return _stretched(samples, low, high, stray, f"its values are {name} of {low:g} to {high:g}")


def deep_grey(samples: Samples, source: str) -> Graded:
    """Convert samples (h, w) or (h, w, channels), of which the last may be alpha, to grey."""
    if samples.ndim == 2:
        return graded(samples, source)
    channels = samples.shape[2]
    grey = samples[..., 0] if channels < 3 else _weighed(samples)
    pixels, warnings = graded(grey, source)
    if channels in (2, 4) and samples.dtype.kind == "u":
        top = np.float32(np.iinfo(samples.dtype).max)
        pixels, odd = composited(pixels, np.divide(samples[..., -1], top, dtype=np.float32))
        warnings += odd
    return pixels, warnings


def composited(grey: Float32Array, alpha: Float32Array) -> Graded:
    """Composite grey (h, w) on black with `alpha` in [0, 1]; returns pixels and warnings."""
    if alpha.min() == alpha.max() < 1.0:
        words = f"its alpha channel is {float(alpha.flat[0]):.2f} everywhere and was not used"
        return grey, (words,)
    hidden = float((alpha < _MIN_PART).mean())
    if hidden > _NOTED_HIDDEN:
        words = f"its alpha channel hides {hidden:.0%} of its pixels; they became black"
        return grey * alpha, (words,)
    return grey * alpha, ()


def luma(rgb: Samples) -> Samples:
    """The luma of (h, w, 3 or more) in the units of the samples, float32."""
    weighed = np.zeros(rgb.shape[:2], np.float32)
    for channel, weight in enumerate(LUMA):
        weighed += rgb[..., channel] * np.float32(weight)
    return weighed


def _weighed(samples: Samples) -> Samples:
    weighed = luma(samples)
    if samples.dtype.kind == "f":
        return weighed
    return np.rint(weighed).astype(samples.dtype)


def _of_floats(samples: Samples, source: str) -> Graded:
    finite = np.isfinite(samples)
    if not finite.all():
        raise ImageRefusedError(
            source,
            Reason.NON_FINITE_PIXELS,
            f"{samples.size - int(finite.sum())} of its {samples.size} pixels are NaN or infinite",
        )
    low, high, stray = range_of(samples.astype(np.float64))
    if not stray and low >= 0.0 and high <= 1.0 and (high - low >= _MIN_PART or high == low):
        return samples.astype(np.float32), ()
    inside = low >= 0.0 and high <= 1.0
    what = "its values are floats " + (f"of {low:g} to {high:g}" if inside else "outside 0 to 1")
    return _stretched(samples, low, high, stray, what)


def _scaled(samples: Samples, low: float, high: float) -> Float32Array:
    if low == 0:
        return np.divide(samples, np.float32(high), dtype=np.float32).clip(0.0, 1.0)
    shifted = samples.astype(np.float64) - low
    return (shifted / (high - low)).astype(np.float32).clip(0.0, 1.0)


def _stretched(samples: Samples, low: float, high: float, stray: float, what: str) -> Graded:
    span = high - low or 1.0
    pixels = ((samples.astype(np.float64) - low) / span).clip(0.0, 1.0).astype(np.float32)
    words = f"{what}, so {low:g} became black and {high:g} white"
    return pixels, (words, *_strays(stray, low, high))


def _strays(share: float, low: float, high: float) -> tuple[str, ...]:
    if not share:
        return ()
    return (
        f"{share:.2%} of its pixels lie far beyond the others, which are {low:g} to {high:g}; they "
        "became black or white",
    )


def join_warnings(warnings: Iterable[str]) -> str:
    """The warnings of one image as the text of one cell; empty if there are none."""
    return SEPARATOR.join(warning.replace(SEPARATOR, ", ") for warning in warnings)


def split_warnings(text: str) -> tuple[str, ...]:
    """The warnings in a cell that `join_warnings` wrote."""
    return tuple(text.split(SEPARATOR)) if text else ()


def warning_type(warning: str) -> str:
    """A warning without its numbers and quoted values, so that equal ones can be counted.

    No patient data from a header remains in it.
    """
    return _VALUE.sub("…", warning.replace(SEPARATOR, ", "))


def count_warnings(images: Iterable[Sequence[str]]) -> Counter[str]:
    """How many images have each type of warning."""
    counts: Counter[str] = Counter()
    for warnings in images:
        counts.update({warning_type(warning) for warning in warnings})
    return counts


def summary(counts: Counter[str]) -> str:
    """The counts in one line, most frequent first; empty if there are none."""
    listed = [f"{count} × {kind}" for kind, count in counts.most_common(_MAX_TYPES)]
    more = len(counts) - len(listed)
    listed += [f"{more} more types"] if more > 0 else []
    return SEPARATOR.join(listed)


def summary_lines(counts: Counter[str]) -> list[str]:
    """The line about warnings at the end of a run; no line if there are none."""
    return [f"warnings  {summary(counts)}"] if counts else []
