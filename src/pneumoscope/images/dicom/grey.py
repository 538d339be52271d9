"""Convert stored DICOM values to displayed grey.

Modality, VOI, polarity and padding (PS3.3 C.11) are applied in one table. Every step acts on one
value at a time, and an image has at most 65,536 distinct values. So the steps are computed once per
value, in float64, and the image needs one look-up.

A window or table that hides most of the image, or uses only a narrow part of the greys, contradicts
the pixels. The next one in the header is used instead, and after the last one the range of the
values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.images.grey import quantiles, trusted

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

_MAX_CLIPPED = 0.5
"""A window that makes more than this share of the pixels black or white is not used."""

_NOTED_CLIPPED = 0.08
"""A window or table that does so to more is noted: from about here on the probability of an image
of which the model is unsure changes by 0.01 (`benchmarks/fuzz_headers.py`)."""

_MIN_SPREAD = 1 / 3
"""Minimum share of the greys between nearly the darkest and nearly the brightest pixel."""


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A look-up table: `first` is the input of `values[0]`; other inputs get the nearest end.

    `highest` is the output that is shown as white.
    """

    first: int
    values: Values
    highest: float
    name: str = "VOI LUT"

    def __call__(self, inputs: Values) -> Values:
        """Look up (PS3.3 C.11.1.1)."""
        index = np.rint(inputs - self.first).clip(0, len(self.values) - 1).astype(np.int64)
        return np.take(self.values, index)

    def grey(self, inputs: Values) -> Values:
        """Grey in [0, 1]."""
        return np.clip(self(inputs) / self.highest, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Window:
    """A window over modality values; `function` is LINEAR, LINEAR_EXACT or SIGMOID."""

    centre: float
    width: float
    function: str = "LINEAR"

    @property
    def name(self) -> str:
        """A description for messages: `window (centre 2048, width 4096)`."""
        return f"window (centre {self.centre:g}, width {self.width:g})"

    def grey(self, inputs: Values) -> Values:
        """Grey in [0, 1] (PS3.3 C.11.2.1.2.1, C.11.2.1.3.1, C.11.2.1.3.2)."""
        if self.function == "SIGMOID":
            # Beyond ±700 the exponential overflows float64; the grey is 0 or 1 there.
            exponent = np.clip(-4.0 * (inputs - self.centre) / self.width, -700.0, 700.0)
            sigmoid: Values = 1.0 / (1.0 + np.exp(exponent))
            return sigmoid
        if self.function == "LINEAR_EXACT":
            return np.clip((inputs - self.centre) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1.0:
            return np.where(inputs <= self.centre - 0.5, 0.0, 1.0)
        return np.clip((inputs - (self.centre - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Display:
    """How the header asks for its values to be displayed.

    Attributes:
        modality: the modality LUT, `None` for slope and intercept.
        slope: rescale slope.
        intercept: rescale intercept.
        voi: VOI LUTs or windows, the preferred one first. The first one that the pixels don't
            contradict is used, and the range of the values if there is none.
        inverted: MONOCHROME1, whose lowest value is white.
    """

    modality: Lut | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi: tuple[Lut | Window, ...] = ()
    inverted: bool = False


def grey_table(levels: Values, counts: Counts, display: Display) -> tuple[Values, tuple[str, ...]]:
    """The grey of each stored value.

    Args:
        levels: float64 (n,), every value that could be stored, ascending.
        counts: int64 (n,), the number of pixels with each value, without padding.
        display: the display settings of the header.

    Returns:
        float64 (n,) in [0, 1], and warnings.
    """
    if not counts.any():  # only padding: shown unchanged, so that the image is refused as blank
        return np.zeros(levels.shape), ()
    modality, warnings = _modality(levels, display)
    grey = None
    for voi in display.voi:
        grey, words = _shown(modality, counts, voi)
        warnings += words
        if grey is not None:
            break
    if grey is None:
        grey, words = _over_range(modality, counts)
        warnings += words
    return (1.0 - grey if display.inverted else grey), tuple(warnings)


def _modality(levels: Values, display: Display) -> tuple[Values, list[str]]:
    if display.modality is not None:
        return display.modality(levels), []
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = levels * display.slope + display.intercept
    # A huge intercept makes the values indistinguishable.
    distinct = np.isfinite(scaled).all() and bool((np.diff(scaled) != 0).all())
    if distinct:
        return scaled, []
    words = f"its rescale slope {display.slope:g} and intercept {display.intercept:g} "
    return levels, [f"{words}can't be applied to its values and were not used"]


def _shown(modality: Values, counts: Counts, voi: Lut | Window) -> tuple[Values | None, list[str]]:
    """The greys through one window or table, `None` if the pixels contradict it."""
    grey, seen = voi.grey(modality), counts > 0
    if _flat(modality, seen):
        return grey, []
    if _flat(grey, seen):
        return None, [f"its {voi.name} shows one grey only, so it was not used"]
    clipped = _clipped(modality, grey, counts, 0.01 if _is_sigmoid(voi) else 0.0)
    if clipped > _MAX_CLIPPED:
        return None, [f"its {voi.name} clips {clipped:.0%} of the pixels, so it was not used"]
    low, high = quantiles(grey, counts)
    if high - low < _MIN_SPREAD:
        words = (
            f"its {voi.name} shows the pixels in {high - low:.0%} of the greys, so these were "
            "stretched to the whole range"
        )
        return _over_range(grey, counts)[0], [words]
    if clipped > _NOTED_CLIPPED:
        return grey, [f"its {voi.name} makes {clipped:.0%} of the pixels black or white"]
    return grey, []


def _is_sigmoid(voi: Lut | Window) -> bool:
    return isinstance(voi, Window) and voi.function == "SIGMOID"


def _clipped(modality: Values, grey: Values, counts: Counts, margin: float) -> float:
    """The share of pixels that are fully black or white without having an extreme value."""
    seen = counts > 0
    values, shown, count = modality[seen], grey[seen], counts[seen]
    ends = (shown <= shown.min() + margin) | (shown >= shown.max() - margin)
    extreme = (values == values.min()) | (values == values.max())
    return float(count[ends & ~extreme].sum()) / float(count.sum())


def _over_range(values: Values, counts: Counts) -> tuple[Values, list[str]]:
    """Map the range of the values, without stray ones at its ends, to black to white."""
    seen = counts > 0
    found, count = values[seen], counts[seen]
    least, most = trusted(found, count)
    near = (found >= least) & (found <= most)
    low, high = float(found[near].min()), float(found[near].max())
    grey = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
    if near.all():
        return grey, []
    stray = float(count[~near].sum()) / float(count.sum())
    words = (
        f"{stray:.2%} of its pixels lie far beyond the others (values {found.min():g} to "
        f"{found.max():g}, the others {low:g} to {high:g}); they became black or white"
    )
    return grey, [words]


def _flat(values: Values, seen: Mask) -> bool:
    return bool(values[seen].min() == values[seen].max())
