"""Samples of more than 8 bits, signed ones and floats, to grey in [0, 1].

A type's range tells little of what its values reach: 12 bits are stored in 16, counts in 32, shares
as floats. Where the picture takes a small part of its type's range it is scaled to all of it, and
a warning says from where to where.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.spread import range_of

Samples = npt.NDArray[Any]
Graded = tuple[FloatArray, tuple[str, ...]]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue: ITU-R BT.601."""

_LEAST_PART = 0.25
"""A picture that takes less of its type's range is scaled."""
_MOST_WHOLE_BITS = 16
_NOTED_HIDDEN = 0.1


def graded(samples: Samples, source: str, bits: int = 0) -> Graded:
    """Grey in [0, 1] of samples (h, w) of any integer or float type, and what was odd, in words.

    Args:
        samples: the higher, the brighter.
        source: the file's name, for errors.
        bits: how many bits a sample has in the file, where it is fewer than its type's.

    Raises:
        ImageRefusedError: `non_finite_pixels`.
    """
    if samples.dtype.kind == "f":
        return _of_floats(samples, source)
    bits = bits or samples.dtype.itemsize * 8
    signed = samples.dtype.kind == "i"
    low, high, stray = range_of(samples)
    name = f"{bits}-bit {'signed ' if signed else ''}integers"
    if bits > _MOST_WHOLE_BITS:
        return _stretched(samples, low, high, stray, f"its values are {name}")
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if signed and low >= 0:  # the half below is not used
        least = 0
    whole = most - least
    if high - low >= _LEAST_PART * whole or high == low:
        return _scaled(samples, least, most), _strays(stray, low, high)
    if low >= 0 and high < _LEAST_PART * whole:
        used = max(int(high).bit_length(), 1)
        words = (
            f"its brightest value is {high:g} of {most}, so it has {used} of {bits} bits; these "
            "were scaled to the whole range"
        )
        return _scaled(samples, 0, (1 << used) - 1), (words, *_strays(stray, low, high))
    return _stretched(samples, low, high, stray, f"its values are {name} of {low:g} to {high:g}")


def deep_grey(samples: Samples, source: str) -> Graded:
    """Grey of samples (h, w), or (h, w, channels) whose last may be alpha."""
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
    """Grey (h, w) over black, as transparent as `alpha` in [0, 1] says; and what was odd."""
    if alpha.min() == alpha.max() < 1.0:
        words = f"its alpha channel is {float(alpha.flat[0]):.2f} everywhere and was not used"
        return grey, (words,)
    hidden = float((alpha < _LEAST_PART).mean())
    if hidden > _NOTED_HIDDEN:
        words = f"its alpha channel hides {hidden:.0%} of its pixels; they were made black"
        return grey * alpha, (words,)
    return grey * alpha, ()


def luma(rgb: Samples) -> Samples:
    """Luma of (h, w, 3 or more) in the samples' own units, float32."""
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
    if not stray and low >= 0.0 and high <= 1.0 and (high - low >= _LEAST_PART or high == low):
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
    words = f"{what}, so {low:g} was made black and {high:g} white"
    return pixels, (words, *_strays(stray, low, high))


def _strays(share: float, low: float, high: float) -> tuple[str, ...]:
    if not share:
        return ()
    return (
        f"{share:.2%} of its pixels lie far beyond the others, which are {low:g} to {high:g}; they "
        "were made black or white",
    )
