"""Guidance of training beyond the labels: distillation, attention transfer and lung guidance.

*Distillation* (Hinton et al., arXiv:1503.02531). Teachers and student see the same augmented view.
The student's target is a weighted mean of the label and the teachers' mean probability. Long
training on ever new views makes the student match its teachers (Beyer et al., arXiv:2106.05237).

*Attention transfer* (Zagoruyko & Komodakis, arXiv:1612.03928). A probability does not carry where
the teacher's heatmap points, so the student's heatmap is drawn towards the teachers' as well.

*Lung guidance*. Heatmap energy outside the lungs is penalised in images with pneumonia whose lungs
were found, so that the prediction rests on the lungs (Ross et al., "Right for the Right Reasons",
arXiv:1703.03717).

A heatmap here is the Grad-CAM map of the last feature map. With global average pooling it has a
closed form: the weight of each channel is the gradient of the logit with respect to its mean. It is
part of the training model's graph, so gradients flow through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import GuidanceConfig, PreprocessConfig
from pneumoscope.training.runtime import load_keras

_LEAST_MASS = 1e-3
"""Added to the sum of a heatmap before dividing by it."""

_LEAST_COVERED = 0.3
"""Threshold on the coverage of the best covered cell: if lungs cover less of it, the view shows too
little of them."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network used as a teacher.

    Attributes:
        model: frozen Keras model: preprocessed images (n, size, size, 3) → logits (n, 1) and
            heatmaps (n, h, w) ≥ 0.
        preprocess: the teacher's own size and normalisation.
    """

    model: Any
    preprocess: PreprocessConfig


def heatmap_of(features: Any, pooled: Any, hidden: Any, output: Any) -> Any:
    """The closed-form Grad-CAM map, float32 (n, h, w) ≥ 0, as part of a Keras graph.

    Args:
        features: last feature map (n, h, w, c).
        pooled: its mean (n, c).
        hidden: built Dense layer with ReLU: c → units.
        output: built Dense layer: units → 1.
    """
    return _heatmap_class()(hidden, output)([features, pooled])


def guided(
    logits: Any,
    heatmap: Any,
    config: GuidanceConfig,
    *,
    lungs: Any = None,
    pneumonia: Any = None,
    taught: Sequence[tuple[Any, Any]] = (),
) -> Any:
    """The logits (n, 1), unchanged; in training, the losses of `config` are added to the model.

    Args:
        logits: the student's.
        heatmap: the student's (n, h, w).
        config: the weights of the losses.
        lungs: share of lung at each pixel of the view (n, side, side), 0 everywhere if unknown;
            used with `pneumonia` for lung guidance.
        pneumonia: share of pneumonia in each image (n, 1).
        taught: for each teacher, its logits (n, 1) and heatmaps (n, h, w) of the same views.
    """
    if lungs is not None:
        logits = _lung_guidance_class()(config.lungs)([logits, heatmap, lungs, pneumonia])
    if taught:
        flat = [each for pair in taught for each in pair]
        layer = _distillation_class()(config.teacher, config.teacher_maps)
        logits = layer([logits, heatmap, *flat])
    return logits


def _shares(heatmap: Any) -> Any:
    """A heatmap scaled to sum 1; to less where it is near 0 everywhere."""
    total = load_keras().ops.sum(heatmap, axis=(1, 2), keepdims=True)
    return heatmap / (total + _LEAST_MASS)


def _on_grid(maps: Any, heatmap: Any) -> Any:
    """Maps (n, side, side), averaged over the cells of a heatmap's grid (n, h, w)."""
    ops = load_keras().ops
    down, across = (_cells(maps.shape[k], heatmap.shape[k]) for k in (1, 2))
    return ops.einsum("hr,nrc,wc->nhw", ops.convert_to_tensor(down), maps,
                      ops.convert_to_tensor(across))  # fmt: skip


def _cells(pixels: int, cells: int) -> NDArray[np.float32]:
    """Weight of each pixel in each of `cells` equal cells along one axis.

    Float32 (cells, pixels); each row sums to 1.
    """
    edges = np.linspace(0, pixels, cells + 1)
    at = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    return (overlap.clip(0.0) * (cells / pixels)).astype(np.float32)


# These classes are made on first use because Keras is imported late.


@functools.cache
def _heatmap_class() -> Any:
    keras = load_keras()
    ops = keras.ops

    class Heatmap(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, hidden: Any, output: Any) -> None:
            super().__init__(trainable=False, dtype="float32", name="heatmap")
            # In a function, because the layers' weights belong to the network, not to this layer.
            self._head: Callable[[], tuple[Any, Any]] = lambda: (hidden, output)

        def call(self, inputs: Any) -> Any:
            features, pooled = inputs
            hidden, output = self._head()
            before = ops.matmul(pooled, hidden.kernel) + hidden.bias
            active = ops.cast(before > 0, "float32") * output.kernel[:, 0]
            weights = ops.matmul(active, ops.transpose(hidden.kernel))
            weighted = ops.cast(features, "float32") * weights[:, None, None, :]
            return ops.relu(ops.sum(weighted, axis=-1))

        def compute_output_shape(self, shapes: Any) -> Any:
            return tuple(shapes[0])[:3]

    return Heatmap


@functools.cache
def _lung_guidance_class() -> Any:
    keras = load_keras()
    ops = keras.ops

    class LungGuidance(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, weight: float) -> None:
            super().__init__(trainable=False, dtype="float32", name="lung_guidance")
            self._weight = weight

        def call(self, inputs: Any, training: Any = None) -> Any:
            logits, heatmap, lungs, pneumonia = inputs
            if training:
                covered = _on_grid(lungs, heatmap)
                most = ops.max(covered, axis=(1, 2), keepdims=True)
                outside = 1.0 - covered / ops.maximum(most, _LEAST_MASS)
                known = ops.cast(most[:, 0, 0] > _LEAST_COVERED, "float32")
                spent = ops.sum(_shares(heatmap) * outside, axis=(1, 2))
                self.add_loss(self._weight * ops.mean(spent * known * pneumonia[:, 0]))
            return logits

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    return LungGuidance


@functools.cache
def _distillation_class() -> Any:
    keras = load_keras()
    ops = keras.ops

    class Distillation(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, share: float, maps: float) -> None:
            super().__init__(trainable=False, dtype="float32", name="distillation")
            # The loss of the label has weight 1; its share of the target is 1 - share.
            self._weight, self._maps = share / (1.0 - share), maps

        def call(self, inputs: Any, training: Any = None) -> Any:
            logits, heatmap, *taught = inputs
            if training:
                count = len(taught) // 2
                target = sum(ops.sigmoid(each) for each in taught[::2]) / count
                difference = ops.binary_crossentropy(target, logits, from_logits=True)
                self.add_loss(self._weight * ops.mean(difference))
                if self._maps:
                    wanted = sum(_shares(_on_grid(each, heatmap)) for each in taught[1::2]) / count
                    missed = ops.sum(ops.abs(_shares(heatmap) - wanted), axis=(1, 2))
                    self.add_loss(self._maps * ops.mean(missed * target[:, 0]))
            return logits

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    return Distillation
