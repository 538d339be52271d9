"""From stored values to displayed grey: modality, VOI, polarity and padding in one table.

Comes in: which stored values there are, and what the header says of them. Goes out: the grey of
each. Knows nothing of files or of pydicom; every step of PS3.3 C.11 here is arithmetic.

All these steps look at one value at a time, and a film has at most 65,536 of them. So they are
worked out once per value, in float64, and the image is one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A look-up table: `first` is the input of `values[0]`; inputs beyond the ends get the ends.

    `highest` is the largest output that its bit depth allows.
    """

    first: int
    values: Values
    highest: float

    def __call__(self, inputs: Values) -> Values:
        """Look up (PS3.3 C.11.1.1)."""
        index = np.rint(inputs - self.first).clip(0, len(self.values) - 1).astype(np.int64)
        return np.take(self.values, index)


@dataclass(frozen=True, slots=True)
class Window:
    """A window over modality values; `function` is LINEAR, LINEAR_EXACT or SIGMOID."""

    centre: float
    width: float
    function: str = "LINEAR"

    def __call__(self, inputs: Values) -> Values:
        """Grey in [0, 1] (PS3.3 C.11.2.1.2.1, C.11.2.1.3.1, C.11.2.1.3.2)."""
        if self.function == "SIGMOID":
            # Beyond ±700 the exponential leaves float64; there the grey is 0 or 1 anyhow.
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
    """How a header asks for its values to be shown.

    Attributes:
        modality: the modality LUT, `None` for slope and intercept.
        slope: rescale slope.
        intercept: rescale intercept.
        voi: VOI LUT or window; `None` stretches what is there to the whole range.
        inverted: MONOCHROME1, whose lowest value is white.
        padding: lowest and highest stored value of pixels outside the film.
    """

    modality: Lut | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi: Lut | Window | None = None
    inverted: bool = False
    padding: tuple[int, int] | None = None


def grey_table(levels: Values, present: Mask, display: Display) -> tuple[Values, tuple[str, ...]]:
    """The grey of each stored value.

    Args:
        levels: float64 (n,), every value that could be stored, ascending.
        present: bool (n,), which of them the image has.
        display: what the header says.

    Returns:
        float64 (n,) in [0, 1], 0 for padding; and what was odd, in words.
    """
    padded = np.zeros(levels.shape, dtype=np.bool_)
    if display.padding is not None:
        low, high = display.padding
        padded = (levels >= low) & (levels <= high)
    film = present & ~padded
    if not film.any():  # nothing but padding: shown as it is, so that it is refused as blank
        return np.zeros(levels.shape), ()
    modality = (
        display.modality(levels)
        if display.modality is not None
        else levels * display.slope + display.intercept
    )
    warnings: tuple[str, ...] = ()
    grey = _stretched(modality, film) if display.voi is None else _voi(modality, display.voi)
    if _flat(grey, film) and not _flat(modality, film):
        warnings = ("its window shows one grey only, so it was not used",)
        grey = _stretched(modality, film)
    if display.inverted:
        grey = 1.0 - grey
    return np.where(padded, 0.0, grey), warnings


def _voi(modality: Values, voi: Lut | Window) -> Values:
    if isinstance(voi, Lut):
        return np.clip(voi(modality) / voi.highest, 0.0, 1.0)
    return voi(modality)


def _stretched(modality: Values, film: Mask) -> Values:
    low, high = float(modality[film].min()), float(modality[film].max())
    return np.clip((modality - low) / ((high - low) or 1.0), 0.0, 1.0)


def _flat(values: Values, film: Mask) -> bool:
    return bool(values[film].min() == values[film].max())
