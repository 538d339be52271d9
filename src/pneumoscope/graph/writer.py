"""What a graph is made of: the operations that every engine has, under one name each.

`densenet.py` and `answer.py` write to this; `openvino.py` and `onnx.py` say it in their engine's
words. Everything is float32 unless said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pneumoscope.graph.stored import FloatArray

Node = TypeVar("Node")
"""What a writer calls a value in its graph."""

FUNCTIONS = ("abs", "exp", "floor", "log", "relu", "round", "sigmoid", "softplus", "sqrt", "step")
"""Of one number; `round` takes halves to the even side, `step` is 1 above 0, else 0."""

OPERATIONS = ("add", "subtract", "multiply", "divide", "maximum")
"""Of two numbers."""


class Writer(Protocol[Node]):
    """The operations that the network is made of; each adds one to the graph and returns it."""

    def constant(self, value: NDArray[np.generic]) -> Node:
        """An array that is part of the graph."""

    def convolution(self, x: Node, kernel: FloatArray, stride: int, padding: int) -> Node:
        """Kernel (out, in, h, w) over (n, in, h, w), zeros beyond the edge."""

    def pool(self, x: Node, kind: str, side: int, stride: int, padding: int) -> Node:
        """The `max` or the `mean` of squares."""

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
