"""From the pixels of a film to its answer, within the graph: what an exported model does.

Comes in: a bundle's manifest and arrays, a `Writer`, its node for grey pixels. Goes out: nodes for
probability, heatmap and embedding. The steps are those of `images/preprocess.py`, the network and
the calibration; fitting into the square is a product with a matrix on either side, because engines
differ in how they resize, if they do it without aliasing at all, and none differs in a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph.network import NetworkArrays, write_average
from pneumoscope.graph.writer import FloatArray, Node, Writer
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN, LEAST_DEVIATION
from pneumoscope.inference.bundle import BundleManifest

OUTPUTS = ("probability", "heatmap", "embedding")

_LEAST = np.full(1, 1e-12, np.float32)
"""Nothing is divided by less."""


@dataclass(frozen=True, slots=True)
class AnswerNodes(Generic[Node]):
    """`OUTPUTS`, and the side of the heatmap."""

    probability: Node
    heatmap: Node
    embedding: Node
    side: int

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        """In the order of `OUTPUTS`."""
        return self.probability, self.heatmap, self.embedding


def write_answer(
    to: Writer[Node], manifest: BundleManifest, networks: Sequence[NetworkArrays], pixels: Node
) -> AnswerNodes[Node]:
    """From grey pixels, uint8 (n, h, w) of any size, to `OUTPUTS`.

    The probability (n,) is calibrated. The heatmap (n, m, m) is Grad-CAM on the network's coarse
    grid, 1 at its peak, all 0 where nothing speaks for pneumonia. The embedding is (n, c).
    """
    config = manifest.preprocessing
    grey = to.combine("divide", to.as_float(pixels), _number(to, 255.0))
    images = _normalise(to, _fit(to, grey, config), config)
    answers = write_average(to, networks, images, config.size, flip=manifest.flip)
    cam = answers.cam
    straight = to.combine("multiply", answers.logit, _number(to, manifest.calibration.slope))
    shifted = to.combine("add", straight, _number(to, manifest.calibration.intercept))
    peak = to.combine("maximum", to.reduce("max", cam, (1, 2), keep=True), to.constant(_LEAST))
    heatmap = to.combine("divide", cam, peak)
    return AnswerNodes(to.apply("sigmoid", shifted), heatmap, answers.embedding, answers.side)


def _number(to: Writer[Node], value: float) -> Node:
    return to.constant(np.full(1, value, np.float32))


def _fit(to: Writer[Node], grey: Node, config: PreprocessConfig) -> Node:
    """Grey (n, h, w) into the square (n, size, size), as `Preprocessor.grey` does."""
    size = _number(to, config.size)
    height, width = to.length(grey, 1), to.length(grey, 2)
    rows, columns = size, size
    if config.fit == "pad":
        longest = to.combine("maximum", height, width)
        rows, columns = (_shown(to, side, longest, size) for side in (height, width))
    above = _taps(to, height, rows, config.size)
    beside = _taps(to, width, columns, config.size, turned=True)
    return to.product(to.product(above, grey), beside)


def _shown(to: Writer[Node], side: Node, longest: Node, size: Node) -> Node:
    """How many of the square's pixels a side of the film takes: its share, rounded, at least 1."""
    share = to.combine("divide", to.combine("multiply", side, size), longest)
    return to.combine("maximum", to.apply("round", share), _number(to, 1.0))


def _taps(to: Writer[Node], length: Node, shown: Node, size: int, *, turned: bool = False) -> Node:
    """The matrix (size, length) that shrinks or stretches a side; `turned`, (length, size).

    Row i holds the weights with which source pixels make target pixel i: a triangle about the
    target's place in the source, as wide as the reduction and never narrower than a pixel, its sum
    1 (bilinear with antialiasing, as Pillow has it). Rows in the margin of a padded side are 0.
    """
    target_axis, source_axis = ((1, -1), (-1, 1)) if turned else ((-1, 1), (1, -1))
    margin = to.combine("subtract", _number(to, size), shown)
    first = to.apply("floor", to.combine("divide", margin, _number(to, 2.0)))
    middles = np.arange(size, dtype=np.float32).reshape(target_axis) + np.float32(0.5)
    place = to.combine("subtract", to.constant(middles), first)
    step = to.combine("divide", length, shown)
    reach = to.combine("maximum", step, _number(to, 1.0))
    source = to.reshape(to.counted(length), source_axis)
    source = to.combine("add", source, _number(to, 0.5))
    distance = to.apply("abs", to.combine("subtract", source, to.combine("multiply", place, step)))
    near = to.combine("subtract", _number(to, 1.0), to.combine("divide", distance, reach))
    weights = to.apply("relu", near)
    total = to.reduce("sum", weights, (0,) if turned else (1,), keep=True)
    weights = to.combine("divide", weights, to.combine("maximum", total, to.constant(_LEAST)))
    inside = to.combine(
        "multiply",
        to.apply("step", place),
        to.apply("step", to.combine("subtract", shown, place)),
    )
    return to.combine("multiply", weights, inside)


def _normalise(to: Writer[Node], square: Node, config: PreprocessConfig) -> Node:
    """The square (n, size, size) to the network's channels (n, 3, size, size)."""
    one = to.reshape(square, (-1, 1, config.size, config.size))
    if config.normalisation == "imagenet":
        mean, deviation = (_per_channel(each) for each in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        centred = to.combine("subtract", one, to.constant(mean))
        return to.combine("divide", centred, to.constant(deviation))
    centred = to.combine("subtract", one, to.reduce("mean", one, (2, 3), keep=True))
    squares = to.combine("multiply", centred, centred)
    deviation_of = to.apply("sqrt", to.reduce("mean", squares, (2, 3), keep=True))
    held = to.combine("maximum", deviation_of, _number(to, LEAST_DEVIATION))
    standard = to.combine("divide", centred, held)
    return to.concatenate([standard] * 3, 1)


def _per_channel(values: Sequence[float]) -> FloatArray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)
