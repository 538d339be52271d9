"""What a graph computes in: float32, bfloat16, or int8 within measured ranges.

Comes in: what the processor is said to have, a table of ranges. Goes out: the precisions that are
fast here, `Ranges` for the writer. Knows no engine. A table of ranges is all that int8 needs beside
the weights: how far a kernel reaches is read off the kernel itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError
from pneumoscope.graph.writer import FloatArray

Precision = Literal["f32", "bf16", "int8"]

Floats = Literal["f32", "bf16"]
"""The floating-point numbers of a graph; with int8, what is between its convolutions."""

Device = Literal["CPU", "GPU"]
"""What OpenVINO computes on."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Slowest first, on most processors that have instructions for all of them."""

INT8_LEVELS = 256

_INT8_MARKS = ("vnni", "amx_int8", "asimddp", "i8mm")
"""Of processors that multiply 8-bit numbers without saturating on the way (x86 and ARM)."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Between what the inputs of the convolutions lie, in the order in which these are written.

    Attributes:
        low, high: float32 (n,); NaN for a convolution that stays in float.
    """

    low: FloatArray
    high: FloatArray

    def has(self, number: int) -> bool:
        """Whether there is a range for a convolution."""
        return number < len(self.low) and bool(np.isfinite(self.low[number]))

    def of(self, number: int) -> tuple[FloatArray, FloatArray]:
        """Both ends, (1, 1, 1, 1) each, of a convolution's input."""
        shape = (1, 1, 1, 1)
        return self.low[number].reshape(shape), self.high[number].reshape(shape)

    def check(self, convolutions: int) -> None:
        """See that there are as many as convolutions.

        Raises:
            BundleError: there are more or fewer.
        """
        if len(self.low) != convolutions:
            raise BundleError(
                f"int8: found ranges of {len(self.low)} convolutions, wanted {convolutions}. "
                "Make them anew: pneumoscope certify DATA --model MODEL."
            )

    def as_table(self) -> dict[str, NDArray[Any]]:
        """The arrays for a bundle's table."""
        return {"low": self.low, "high": self.high}

    @classmethod
    def from_table(cls, table: Mapping[str, NDArray[Any]]) -> Ranges:
        """The ranges of a bundle's table.

        Raises:
            BundleError: it holds no ranges.
        """
        low, high = table.get("low"), table.get("high")
        if low is None or high is None or low.ndim != 1 or low.shape != high.shape:
            raise BundleError(
                f"int8: found a table of {sorted(table)}, wanted low and high, one number each per "
                "convolution. Copy the bundle again."
            )
        if not ((low < high) | (np.isnan(low) & np.isnan(high))).all():
            raise BundleError("int8: found a range without width. Copy the bundle again.")
        return cls(low.astype(np.float32), high.astype(np.float32))


def largest_per_output(kernel: FloatArray) -> FloatArray:
    """The largest magnitude of each output's kernel, (out, in, h, w) → (out, 1, 1, 1), above 0."""
    most: FloatArray = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)
    return np.where(most > 0, most, np.float32(1.0))


def fast_here(capabilities: frozenset[str], flags: str | None = None) -> tuple[Precision, ...]:
    """The precisions for which this processor has instructions, slowest first.

    Args:
        capabilities: of `graph.openvino.capabilities`.
        flags: `/proc/cpuinfo`, for tests; `None` reads it. OpenVINO names `INT8` for any processor,
            also for those that emulate it, slowly and with saturation; where the system doesn't
            tell, OpenVINO is believed.
    """
    told = processor_flags() if flags is None else flags
    order = PRECISIONS if bfloat16_gains(told) else ("bf16", "f32", "int8")
    has = {
        "f32": True,
        "bf16": "BF16" in capabilities,
        "int8": "INT8" in capabilities and (not told or any(m in told for m in _INT8_MARKS)),
    }
    return tuple(p for p in order if has[p])


def bfloat16_gains(flags: str) -> bool:
    """Whether bfloat16, if there are instructions for it, is faster than float32.

    Intel's processors with AVX512_BF16 whose AMX is absent, or hidden from a virtual machine, take
    a fifth to a half longer in it (`benchmarks/RESULTS.md`); AMD's gain by it.

    Args:
        flags: of `processor_flags`.
    """
    return "GenuineIntel" not in flags or "amx_bf16" in flags


def processor_flags() -> str:
    """What the system tells of the processor, `""` where there is no `/proc/cpuinfo`."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
