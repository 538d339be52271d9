"""What graphs are made of: operations with the same names for every engine, and their precision.

`layers.py` and `inference/engine.py` write to a `Writer`; `openvino.py` and `onnx.py` implement it.
Everything is float32 unless stated. Maps are channels-first, (n, c, h, w).

The precision is float32, bfloat16, or int8 within measured activation ranges. `fast_here` lists the
precisions that this processor computes fast. `Ranges` holds the activation ranges for int8. They
are all that int8 needs besides the weights, because the range of a kernel is computed from the
kernel itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import BundleError

Pair = tuple[int, int]
"""Height and width."""

Edges = tuple[int, int, int, int]
"""Rows above, columns to the left, rows below, columns to the right."""

NO_EDGES: Edges = (0, 0, 0, 0)

Node = TypeVar("Node")
"""A writer's representation of a value in its graph."""

FUNCTIONS = (
    *("abs", "erf", "exp", "floor", "hard_sigmoid", "hard_silu", "log", "relu", "relu6", "round"),
    *("sigmoid", "silu", "softplus", "sqrt", "step", "tanh"),
)
"""Elementwise functions as Keras defines them. `round` rounds halves to even; `step` is 1 above 0,
else 0."""

OPERATIONS = ("add", "subtract", "multiply", "divide", "maximum")
"""Elementwise operations of two inputs."""

INT8_LEVELS = 256
_INT8_FLAGS = ("vnni", "amx_int8", "asimddp", "i8mm")
"""CPU flags for 8-bit products without intermediate saturation (x86 and ARM)."""


class Writer(Protocol[Node]):
    """The operations of a network; each adds a node to the graph and returns it."""

    def constant(self, value: NDArray[np.generic]) -> Node:
        """A constant array in the graph."""

    def convolution(
        self,
        x: Node,
        kernel: Float32Array,
        strides: Pair = (1, 1),
        edges: Edges = NO_EDGES,
        groups: int = 1,
        dilation: Pair = (1, 1),
    ) -> Node:
        """Convolve (n, in, h, w) with a kernel (out, in / groups, h, w); `edges` are zeros."""

    def pool(self, x: Node, kind: str, size: Pair, strides: Pair, edges: Edges = NO_EDGES) -> Node:
        """The `max` or `mean` over windows; added edges are ignored."""

    def pad(self, x: Node, edges: Edges) -> Node:
        """Add zeros around a map."""

    def concatenate(self, nodes: Sequence[Node], axis: int) -> Node:
        """Concatenate nodes along an axis."""

    def combine(self, kind: str, a: Node, b: Node) -> Node:
        """Combine two nodes elementwise by one of `OPERATIONS`."""

    def apply(self, kind: str, x: Node) -> Node:
        """Apply one of `FUNCTIONS` elementwise."""

    def product(self, a: Node, b: Node) -> Node:
        """Matrix product."""

    def reduce(self, kind: str, x: Node, axes: Sequence[int], *, keep: bool = False) -> Node:
        """Reduce axes by `mean`, `sum` or `max`."""

    def as_float(self, x: Node) -> Node:
        """Convert to float32."""

    def length(self, x: Node, axis: int) -> Node:
        """Length of an axis, float32 ()."""

    def counted(self, length: Node) -> Node:
        """0, 1, … below `length`, float32 (length,)."""

    def halves(self, x: Node) -> tuple[Node, Node]:
        """Split the first axis into two halves."""

    def mirror(self, x: Node) -> Node:
        """Reverse the last axis."""

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        """Reshape; 0 keeps an axis, a single -1 is inferred."""


Precision = Literal["f32", "bf16", "int8"]

Floats = Literal["f32", "bf16"]
"""Floating-point type of a graph; with int8, the type between its convolutions."""

Device = Literal["CPU", "GPU"]
"""Device that OpenVINO computes on."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Slowest first, on most processors that support all of them."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Activation ranges of the convolutions' inputs, in the order of writing.

    Attributes:
        low, high: float32 (n,); NaN for a convolution that stays in floating point.
    """

    low: Float32Array
    high: Float32Array

    def has(self, number: int) -> bool:
        """Whether a convolution has a range."""
        return number < len(self.low) and bool(np.isfinite(self.low[number]))

    def of(self, number: int) -> tuple[Float32Array, Float32Array]:
        """Both ends, (1, 1, 1, 1) each, of a convolution's input range."""
        shape = (1, 1, 1, 1)
        return self.low[number].reshape(shape), self.high[number].reshape(shape)

    def check(self, convolutions: int) -> None:
        """Check that there is one range per convolution.

        Raises:
            BundleError: there are more or fewer.
        """
        if len(self.low) != convolutions:
            raise BundleError(
                f"int8: found ranges of {len(self.low)} convolutions, wanted {convolutions}. "
                "Measure them again: pneumoscope certify DATA --model MODEL."
            )

    def as_table(self) -> dict[str, NDArray[Any]]:
        """The arrays for a bundle's table."""
        return {"low": self.low, "high": self.high}

    @classmethod
    def from_table(cls, table: Mapping[str, NDArray[Any]]) -> Ranges:
        """The ranges in a bundle's table.

        Raises:
            BundleError: the table holds no valid ranges.
        """
        low, high = table.get("low"), table.get("high")
        if low is None or high is None or low.ndim != 1 or low.shape != high.shape:
            raise BundleError(
                f"int8: found a table of {sorted(table)}, wanted low and high, one number each per "
                "convolution. Copy the bundle again."
            )
        if not ((low < high) | (np.isnan(low) & np.isnan(high))).all():
            raise BundleError("int8: found a range of width 0. Copy the bundle again.")
        return cls(low.astype(np.float32), high.astype(np.float32))


def largest_per_output(kernel: Float32Array) -> Float32Array:
    """Largest magnitude per output channel, (out, in, h, w) → (out, 1, 1, 1), above 0."""
    most: Float32Array = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)
    return np.where(most > 0, most, np.float32(1.0))


def fast_here(capabilities: frozenset[str], flags: str | None = None) -> tuple[Precision, ...]:
    """The precisions that this processor supports with instructions, slowest first.

    Args:
        capabilities: from `graph.openvino.capabilities`.
        flags: content of `/proc/cpuinfo`, for tests; `None` reads it. OpenVINO lists `INT8` for any
            processor, even where it is emulated slowly and with saturation. Without CPU flags,
            OpenVINO's list is used.
    """
    found = processor_flags() if flags is None else flags
    order = PRECISIONS if bfloat16_gains(found) else ("bf16", "f32", "int8")
    has = {
        "f32": True,
        "bf16": "BF16" in capabilities,
        "int8": "INT8" in capabilities and (not found or any(m in found for m in _INT8_FLAGS)),
    }
    return tuple(p for p in order if has[p])


def bfloat16_gains(flags: str) -> bool:
    """Whether bfloat16, if the processor supports it, is faster than float32.

    Intel processors with AVX512_BF16 but without AMX (or with AMX hidden from a virtual machine)
    take a fifth to a half longer in bfloat16 (`benchmarks/RESULTS.md`). AMD processors gain by it.

    Args:
        flags: from `processor_flags`.
    """
    return "GenuineIntel" not in flags or "amx_bf16" in flags


def processor_flags() -> str:
    """Content of `/proc/cpuinfo`; `""` where it does not exist."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
