"""Scale samples of more than 8 bits, signed samples and floats to grey in [0, 1].

The range of a sample type says little about the values used: 12 bits are stored in 16, counts in
32, shares as floats. If the image uses a small part of its type's range, it is scaled to the whole
range, and a warning states the limits.

The limits leave out stray values at both ends. Hot and dead pixels, burnt-in marks and codes for
"no data" lie far beyond the other values; a range that includes them makes the image nearly black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.grey import FloatArray

Values = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

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
Graded = tuple[FloatArray, tuple[str, ...]]


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


def composited(grey: FloatArray, alpha: FloatArray) -> Graded:
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


def _scaled(samples: Samples, low: float, high: float) -> FloatArray:
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
