"""The operations that graphs are made of, with the same names for every engine.

`layers.py` and `inference/prediction_graph.py` write to a `Writer`; `openvino.py` and `onnx.py`
implement it. Everything is float32 unless stated. Maps are channels-first, (n, c, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

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


class Writer(Protocol[Node]):
    """The operations of a network; each adds a node to the graph and returns it."""

    def constant(self, value: NDArray[np.generic]) -> Node:
        """A constant array in the graph."""

    def convolution(
        self,
        x: Node,
        kernel: FloatArray,
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
