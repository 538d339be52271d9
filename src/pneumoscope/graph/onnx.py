"""`OnnxWriter`: writes graphs as ONNX models, opset 18.

It builds an `onnx.ModelProto` from what `inference/engine.py` writes, and does not run
it. ONNX is imported when a writer is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import ExtraMissingError
from pneumoscope.graph.writer import NO_EDGES, Edges, Pair

OPSET = 18
_IR_VERSION = 9
"""File format version that goes with that opset; older runtimes can read it too."""

_NAMES = {"subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max", "add": "Add"}

_FUNCTIONS = {"hard_silu": "HardSwish"}


class OnnxWriter:
    """Writes nodes of ONNX; a node is represented by the name of its output."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError as error:
            raise ExtraMissingError("exporting to ONNX", "export") from error
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._arrays: list[Any] = []

    def model(
        self,
        pixels: str,
        outputs: Mapping[str, tuple[str, Sequence[int | str]]],
        about: Mapping[str, str],
    ) -> Any:
        """The finished model.

        Args:
            pixels: name of the input, uint8 (n, height, width).
            outputs: name → node and shape.
            about: metadata.
        """
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        for name, (node, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [node], [name]))
        given = helper.make_tensor_value_info(pixels, kinds.UINT8, ["n", "height", "width"])
        found = [
            helper.make_tensor_value_info(name, kinds.FLOAT, shape)
            for name, (_, shape) in outputs.items()
        ]
        graph = helper.make_graph(self._nodes, "pneumoscope", [given], found, self._arrays)
        model = helper.make_model(
            graph,
            producer_name="pneumoscope",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )
        helper.set_model_props(model, dict(about))
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _add(self, kind: str, inputs: Sequence[str], **settings: Any) -> str:
        return self._add_several(kind, inputs, 1, **settings)[0]

    def _add_several(
        self, kind: str, inputs: Sequence[str], count: int, **settings: Any
    ) -> list[str]:
        names = [f"{kind}_{len(self._nodes)}_{k}" for k in range(count)]
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, **settings))
        return names

    def constant(self, value: NDArray[np.generic]) -> str:
        """A constant array in the graph."""
        name = f"array_{len(self._arrays)}"
        whole = np.ascontiguousarray(value)
        self._arrays.append(self._onnx.numpy_helper.from_array(whole.reshape(value.shape), name))
        return name

    def convolution(
        self,
        x: str,
        kernel: Float32Array,
        strides: Pair = (1, 1),
        edges: Edges = NO_EDGES,
        groups: int = 1,
        dilation: Pair = (1, 1),
    ) -> str:
        """Convolve (n, in, h, w) with a kernel (out, in / groups, h, w); `edges` are zeros."""
        return self._add(
            "Conv",
            [x, self.constant(kernel)],
            strides=strides,
            pads=edges,
            group=groups,
            dilations=dilation,
        )

    def pool(self, x: str, kind: str, size: Pair, strides: Pair, edges: Edges = NO_EDGES) -> str:
        """The `max` or `mean` over windows; added edges are ignored."""
        name = "MaxPool" if kind == "max" else "AveragePool"
        return self._add(name, [x], kernel_shape=size, strides=strides, pads=edges)

    def pad(self, x: str, edges: Edges) -> str:
        """Add zeros around a map."""
        return self._add("Pad", [x, self._numbers([0, 0, *edges[:2], 0, 0, *edges[2:]])])

    def concatenate(self, nodes: Sequence[str], axis: int) -> str:
        """Concatenate nodes along an axis."""
        return self._add("Concat", nodes, axis=axis)

    def combine(self, kind: str, a: str, b: str) -> str:
        """Combine two nodes elementwise."""
        return self._add(_NAMES[kind], [a, b])

    def apply(self, kind: str, x: str) -> str:
        """Apply a function elementwise."""
        if kind == "step":
            return self.as_float(self._add("Greater", [x, self.constant(np.zeros(1, np.float32))]))
        if kind == "relu6":
            ends = [self.constant(np.array(end, np.float32)) for end in (0, 6)]
            return self._add("Clip", [x, *ends])
        if kind == "silu":
            return self.combine("multiply", x, self.apply("sigmoid", x))
        if kind == "hard_sigmoid":
            return self._add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        return self._add(_FUNCTIONS.get(kind, kind.capitalize()), [x])

    def product(self, a: str, b: str) -> str:
        """Matrix product."""
        return self._add("MatMul", [a, b])

    def reduce(self, kind: str, x: str, axes: Sequence[int], *, keep: bool = False) -> str:
        """Reduce axes by `mean`, `sum` or `max`."""
        return self._add(f"Reduce{kind.capitalize()}", [x, self._numbers(axes)], keepdims=int(keep))

    def as_float(self, x: str) -> str:
        """Convert to float32."""
        return self._add("Cast", [x], to=self._onnx.TensorProto.FLOAT)

    def length(self, x: str, axis: int) -> str:
        """Length of an axis, float32 ()."""
        found = self._add("Gather", [self._add("Shape", [x]), self.constant(np.array(axis))])
        return self.as_float(found)

    def counted(self, length: str) -> str:
        """0, 1, … below `length`, float32 (length,)."""
        ends = [self.constant(np.array(end, np.float32)) for end in (0, 1)]
        return self._add("Range", [ends[0], length, ends[1]])

    def halves(self, x: str) -> tuple[str, str]:
        """Split the first axis into two halves."""
        first, second = self._add_several("Split", [x], 2, axis=0, num_outputs=2)
        return first, second

    def mirror(self, x: str) -> str:
        """Reverse the last axis."""
        last = [self._numbers([each]) for each in (-1, np.iinfo(np.int64).min, -1, -1)]
        return self._add("Slice", [x, *last])

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape; 0 keeps an axis, a single -1 is inferred."""
        return self._add("Reshape", [x, self._numbers(shape)])

    def _numbers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))
