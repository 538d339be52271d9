"""What a graph is made of: the operations that every engine has, under one name each.

`layers.py` and `prediction_graph.py` write to this; `openvino.py` and `onnx.py` say it in their
engine's words. Everything is float32 unless said. Maps are channels-first, (n, c, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

Pair = tuple[int, int]
"""Along the height, along the width."""

Edges = tuple[int, int, int, int]
"""Rows above, columns to the left, rows below, columns to the right."""

NO_EDGES: Edges = (0, 0, 0, 0)

Node = TypeVar("Node")
"""What a writer calls a value in its graph."""

FUNCTIONS = (
    *("abs", "erf", "exp", "floor", "hard_sigmoid", "hard_silu", "log", "relu", "relu6", "round"),
    *("sigmoid", "silu", "softplus", "sqrt", "step", "tanh"),
)
"""Of one number, as Keras defines them; `round` takes halves to the even side, `step` is 1 above 0,
else 0."""

OPERATIONS = ("add", "subtract", "multiply", "divide", "maximum")
"""Of two numbers."""


class Writer(Protocol[Node]):
    """The operations that the network is made of; each adds one to the graph and returns it."""

    def constant(self, value: NDArray[np.generic]) -> Node:
        """An array that is part of the graph."""

    def convolution(
        self,
        x: Node,
        kernel: FloatArray,
        strides: Pair = (1, 1),
        edges: Edges = NO_EDGES,
        groups: int = 1,
        dilation: Pair = (1, 1),
    ) -> Node:
        """Kernel (out, in / groups, h, w) over (n, in, h, w), zeros in the added edges."""

    def pool(self, x: Node, kind: str, size: Pair, strides: Pair, edges: Edges = NO_EDGES) -> Node:
        """The `max` or the `mean` of rectangles; added edges count for nothing."""

    def pad(self, x: Node, edges: Edges) -> Node:
        """Zeros around a map."""

    def concatenate(self, nodes: Sequence[Node], axis: int) -> Node:
        """Nodes in a row along an axis."""

    def combine(self, kind: str, a: Node, b: Node) -> Node:
        """Element by element: a name of `OPERATIONS`."""

    def apply(self, kind: str, x: Node) -> Node:
        """Element by element: a name of `FUNCTIONS`."""

    def product(self, a: Node, b: Node) -> Node:
        """Matrix product."""

    def reduce(self, kind: str, x: Node, axes: Sequence[int], *, keep: bool = False) -> Node:
        """`mean`, `sum` or `max` over axes."""

    def as_float(self, x: Node) -> Node:
        """Numbers of any type as float32."""

    def length(self, x: Node, axis: int) -> Node:
        """The length of an axis, float32 ()."""

    def counted(self, length: Node) -> Node:
        """0, 1, … below `length`, float32 (length,)."""

    def halves(self, x: Node) -> tuple[Node, Node]:
        """The first axis in two."""

    def mirror(self, x: Node) -> Node:
        """The last axis turned round."""

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        """Another shape; 0 keeps an axis, one -1 takes what is left."""
