"""Determine which bits of a DICOM file's cells are the stored values, checked against the pixels.

A cell is the space of one value in the file (Bits Allocated). Bits Stored, High Bit and Pixel
Representation state which part of it is used and whether it has a sign (PS3.5 8.1.1). Wrong headers
make values wrap around, and a wrap is visible: neighbouring pixels of an X-ray are similar, and
where a value wraps they differ by the whole range. Therefore the stated interpretation is compared
with the plausible alternatives, at the neighbours where both differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Cells = npt.NDArray[Any]
Values = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_SAMPLED_ROWS = 256
_FEWER = 0.5
"""The other sign is used if it increases fewer steps between neighbours than this share of those it
decreases. For X-rays with a correct header it increases forty steps for each one it decreases."""
_CARRY = 0.2
"""Mean fall of the field, as a share of its range, where the bits above it step up. X-rays of 16
bits with 12 stated have 0.33 or more; drawn overlays have at most 0.11."""
_MIN_HALF = 0.01
_MIN_DISTINCT = 16
"""A wrapped image has at least this share, and so many values, on either side of the sign."""
_MAX_OVERLAYS = 4
"""Maximum number of bits of a cell that overlays use."""
_SWAPPED_SMOOTHER = 0.25
_MIN_SHARE = 0.001
"""A smaller share of pixels counts as stray, not as a border."""
_MAX_PADDED = 16
"""Maximum number of distinct padding values; more than this are image content."""
_MAX_PADDING = 0.9
"""A larger share of an image is not a border either."""


@dataclass(frozen=True, slots=True)
class Field:
    """A part of each cell: `bits` bits from bit `shift` upwards, two's complement if `signed`."""

    shift: int
    bits: int
    signed: bool

    @property
    def mask(self) -> int:
        """The bits of a cell that belong to the field."""
        return ((1 << self.bits) - 1) << self.shift

    @property
    def lowest(self) -> int:
        """The smallest value that the field can hold."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest value that the field can hold."""
        return self.lowest + (1 << self.bits) - 1

    def of(self, cells: Cells) -> Values:
        """The values in cells, int32 of the same shape."""
        values = (cells.astype(np.int32) >> self.shift) & ((1 << self.bits) - 1)
        if self.signed:
            sign = 1 << (self.bits - 1)
            values = (values ^ sign) - sign
        return values

    def words(self) -> str:
        """A description for messages: `12 bits, unsigned`."""
        low = f" from bit {self.shift} up" if self.shift else ""
        return f"{self.bits} bits{low}, {'signed' if self.signed else 'unsigned'}"


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The stored values of an image.

    Attributes:
        values: int32 (h, w).
        outside: bool (h, w), padding pixels; `None` if there are none.
        bits: the number of bits that the values have.
    """

    values: Values
    outside: Mask | None
    bits: int


def read_cells(
    cells: Cells,
    stated: Field,
    width: int,
    padding: tuple[int, int] | None,
    warnings: list[str],
    *,
    overlays: int = 0,
    swappable: bool = False,
) -> Stored:
    """Extract the stored values from cells, and the mask of padding.

    Args:
        cells: unsigned (h, w).
        stated: the field that the header states.
        width: bits in a cell.
        padding: lowest and highest padding value according to the header.
        warnings: anomalies are appended.
        overlays: mask of the bits that hold overlays according to the header.
        swappable: the cells may have the other byte order.
    """
    outside = None
    if padding is not None and (padding[0] > stated.highest or padding[1] < stated.lowest):
        # No stored value can equal it, so it fills whole cells (PS3.3 C.7.5.1.1.2).
        whole = Field(0, width, stated.signed or padding[0] < 0).of(cells)
        outside = _believed(whole, _raw_padding(whole, width, padding), padding, warnings)
        padding = None
    above = _bits_above(cells, stated, width, overlays, outside)
    if outside is None and above:
        outside = _filled_border(cells, _beyond(cells, stated, width, overlays), warnings)
        above = _bits_above(cells, stated, width, overlays, outside)
    field, cells = _chosen(cells, stated, width, above, outside, warnings, swappable=swappable)
    if field == stated and above:
        count = int(_beyond(cells, stated, width, overlays).sum())
        warnings.append(
            f"{count} of its pixels have bits set above the {stated.bits} that its header states; "
            "these bits were ignored"
        )
    if below := _varying(cells, ((1 << field.shift) - 1) & ~overlays):
        warnings.append(
            f"its pixels use {below.bit_count()} bits below the {field.words()} that its header "
            "states; these bits were ignored"
        )
    values = field.of(cells)
    if padding is not None and outside is None:
        within = (values >= padding[0]) & (values <= padding[1])
        outside = _believed(values, within, padding, warnings)
    return Stored(values, outside, field.bits)


def _raw_padding(whole: Values, width: int, padding: tuple[int, int]) -> Mask:
    low, high = padding
    span = 1 << width
    if low == high and -span // 2 <= low < span:  # a bit pattern, whatever its sign
        return np.asarray(whole % span == low % span)
    return np.asarray((whole >= low) & (whole <= high))


def _beyond(cells: Cells, field: Field, width: int, overlays: int) -> Mask:
    """Where a cell exceeds the range of the field; sign extension is not counted."""
    free: Cells = cells & cells.dtype.type(((1 << width) - 1) & ~overlays) if overlays else cells
    whole = Field(field.shift, width - field.shift, field.signed)
    return np.asarray(whole.of(free) != field.of(free))


def _bits_above(cells: Cells, field: Field, width: int, overlays: int, outside: Mask | None) -> int:
    """The bits above the field that differ between pixels, except for copies of the sign."""
    unused = ((1 << width) - 1) & ~(field.mask | (field.mask - 1)) & ~overlays
    kept = cells if outside is None else cells[~outside]
    if not unused or not kept.size or (overlays and field.signed):
        return 0
    varying = _varying(kept, unused)
    if varying and field.signed and not _beyond(kept, field, width, overlays).any():
        return 0
    return varying


def _varying(cells: Cells, bits: int) -> int:
    """Those of the bits of a mask that differ between cells."""
    if not bits or not cells.size:
        return 0
    either = int(np.bitwise_or.reduce(cells, axis=None))
    return (either ^ int(np.bitwise_and.reduce(cells, axis=None))) & bits


def _filled_border(cells: Cells, beyond: Mask, warnings: list[str]) -> Mask | None:
    """Pixels beyond the stored bits that all have one value and reach the border."""
    share = float(beyond.mean())
    if not _MIN_SHARE <= share <= _MAX_PADDING or not _reaches_border(beyond):
        return None
    filled = cells[beyond]
    if filled.min() != filled.max():
        return None
    warnings.append(
        f"{share:.0%} of its pixels hold {int(filled[0])}, beyond the bits that its header states; "
        "they were treated as padding"
    )
    return beyond


def _reaches_border(mask: Mask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _believed(
    values: Values, within: Mask, padding: tuple[int, int], warnings: list[str]
) -> Mask | None:
    """The padding mask, unless the pixels show that it is a part of the image."""
    if not within.any():
        return None
    share, (low, high) = float(within.mean()), padding
    named = f"{low}" if low == high else f"{low} to {high}"
    picture = values[~within]
    inside = picture.size and picture.min() < low and picture.max() > high
    # Padding forms areas: nearly every pixel of it has another one beside it.
    beside = within[:, 1:] & within[:, :-1]
    scattered = float(beside.sum()) < 0.8 * float(within[:, 1:].sum())
    if share > _MAX_PADDING and values.min() < values.max():
        warnings.append(
            f"its padding value {named} would hide {share:.0%} of its pixels and was not used"
        )
        return None
    several = low < high and len(np.unique(values[within])) > _MAX_PADDED
    if several or (inside and (low < high or scattered or not _reaches_border(within))):
        warnings.append(
            f"its padding value {named} lies within the values of the image and was not used"
        )
        return None
    return within


def _chosen(
    cells: Cells,
    stated: Field,
    width: int,
    above: int,
    outside: Mask | None,
    warnings: list[str],
    *,
    swappable: bool,
) -> tuple[Field, Cells]:
    """The field to read, and the cells to read it from."""
    step = max(1, cells.shape[0] // _SAMPLED_ROWS)
    rows = cells[::step]
    picture = np.ones(rows.shape, np.bool_) if outside is None else ~outside[::step]
    pairs = picture[:, 1:] & picture[:, :-1]
    if swappable and width == 16:
        whole = Field(0, width, stated.signed)
        swapped = _roughness(whole.of(rows.byteswap()), pairs)
        if swapped < _SWAPPED_SMOOTHER * _roughness(whole.of(rows), pairs):
            warnings.append(
                "its pixels have the other byte order than its header states; they were swapped"
            )
            return stated, cells.byteswap()
    top = int(cells.max())
    if stated.shift and (
        not top >> stated.shift or (top <= stated.mask >> stated.shift and _low_bits(cells, stated))
    ):
        low = Field(0, max(stated.bits, top.bit_length()), stated.signed)
        warnings.append(
            f"its header states {stated.words()}, but its values lie in the lowest "
            f"{low.bits}; these were read"
        )
        return low, cells
    best = stated
    if above and _carries(rows, stated, width, pairs, above):
        bits = width - stated.shift if stated.signed else above.bit_length() - stated.shift
        best = replace(stated, bits=bits)
    other = replace(best, signed=not best.signed)
    if _both_halves(rows, best) and _wraps_less(other.of(rows), best.of(rows), pairs):
        best = other
    if best != stated:
        kept = cells if outside is None else cells[~outside]
        top = int(kept.max()) >> stated.shift
        warnings.append(
            f"its header states {stated.words()}, but its values are {best.words()} (up to {top}); "
            "they were read as such"
        )
    return best, cells


def _low_bits(cells: Cells, stated: Field) -> bool:
    return bool((cells & ((1 << stated.shift) - 1)).any())


def _carries(rows: Cells, stated: Field, width: int, pairs: Mask, above: int) -> bool:
    """Whether the bits above the field belong to the values and are not an overlay.

    If they do, a step up in them comes with a fall in the bits below, as in any carry; an overlay
    does not depend on the image under it.
    """
    top = Field(stated.shift + stated.bits, width - stated.shift - stated.bits, stated.signed)
    tops = top.of(rows)
    if above.bit_count() > _MAX_OVERLAYS and len(np.unique(tops)) > 1 << _MAX_OVERLAYS:
        return True
    up = np.diff(tops, axis=1)
    steps = np.diff(replace(stated, signed=False).of(rows), axis=1)
    carried = pairs & (up != 0)
    if not carried.any():
        return False
    mean = float((np.sign(up[carried]) * steps[carried]).mean(dtype=np.float64))
    return mean < -_CARRY * (1 << stated.bits)


def _both_halves(rows: Cells, field: Field) -> bool:
    """Whether the image, and not only stray pixels, lies on both sides of the sign boundary."""
    upper = (rows & (1 << (field.shift + field.bits - 1))) != 0
    share = float(upper.mean())
    fewer = rows[upper] if share < 1 / 2 else rows[~upper]
    return min(share, 1 - share) >= _MIN_HALF and len(np.unique(fewer)) >= _MIN_DISTINCT


def _wraps_less(other: Values, ours: Values, pairs: Mask) -> bool:
    """Whether another interpretation makes neighbours more similar, where the two differ."""
    own, others = np.abs(np.diff(ours, axis=1)), np.abs(np.diff(other, axis=1))
    less, more = int((pairs & (others < own)).sum()), int((pairs & (others > own)).sum())
    return more < _FEWER * less


def _roughness(values: Values, pairs: Mask) -> float:
    """Mean step between neighbours, as a share of the range."""
    steps = np.abs(np.diff(values, axis=1))[pairs]
    span = float(values.max()) - float(values.min())
    return float(steps.mean(dtype=np.float64)) / span if steps.size and span else 0.0
