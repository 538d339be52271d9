"""Guidance of training beyond the labels: distillation, attention, lungs and subtypes.

*Distillation* (Hinton et al., arXiv:1503.02531). Teachers and student see the same augmented view.
The student's target is a weighted mean of the label and the teachers' mean probability. Long
training on ever new views makes the student match its teachers (Beyer et al., arXiv:2106.05237).
Where a view shows hidden lungs or another background than the image's own, the label is the whole
target: a teacher that relies on the background would teach that too. One that was itself trained
with swapped backgrounds may judge them (`teach_swapped`).

*Attention transfer* (Zagoruyko & Komodakis, arXiv:1612.03928). A probability does not carry where
the teacher's heatmap points, so the student's heatmap is drawn towards the teachers' as well.

*Lung guidance*. Heatmap energy outside the lungs is penalised in images with pneumonia whose lungs
were found, so that the prediction rests on the lungs (Ross et al., "Right for the Right Reasons",
arXiv:1703.03717).

A heatmap here is the Grad-CAM map of the last feature map. With global average pooling it has a
closed form: the weight of each channel is the gradient of the logit with respect to its mean. It is
part of the training model's graph, so gradients flow through it.

Teachers are trained models named by `train --teacher RUN[,RUN…]`. A teacher is a bundle, or a run
that holds one, of any backbone and size. Its network is rebuilt from the bundle's arrays, frozen,
together with its heatmap. It becomes part of the training model, so it sees the same views as the
student.

*Subtypes*: bacterial versus viral pneumonia as a second task in training. `subtype_codes` gives
each image a code for its subtype. The layer of `build_subtype_head` adds the loss of the second
task. A network that must separate bacterial from viral pneumonia can't rest on features that both
subtypes share for other reasons than disease. The head is discarded after training. Caruana,
"Multitask Learning", Machine Learning 28, 1997.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import GuidanceConfig, PreprocessConfig, from_dict
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER, Architecture
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.records import ImageRecord
from pneumoscope.storage import sha256_of_file
from pneumoscope.training.backbones import build_backbone, leaves
from pneumoscope.training.network import with_native_layers
from pneumoscope.training.runtime import load_keras

_LEAST_MASS = 1e-3
"""Added to the sum of a heatmap before dividing by it."""

_LEAST_COVERED = 0.3
"""Threshold on the coverage of the best covered cell: if lungs cover less of it, the view shows too
little of them."""

BUNDLED = ("default", "bundled")
"""Names of the bundled model."""

UNKNOWN = -1
"""Code of an image without a subtype, or whose subtype is not known."""


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
    pneumonia: Any,
    *,
    lungs: Any = None,
    taught: Sequence[tuple[Any, Any]] = (),
    judged: Any = None,
) -> Any:
    """The logits (n, 1), unchanged; in training, the losses of `config` are added to the model.

    Args:
        logits: the student's.
        heatmap: the student's (n, h, w).
        config: the weights of the losses.
        pneumonia: share of pneumonia in each image (n, 1).
        lungs: share of lung at each pixel of the view (n, side, side), 0 everywhere if unknown.
        taught: for each teacher, its logits (n, 1) and heatmaps (n, h, w) of the same views.
        judged: 1 for views that the teachers judge, 0 for those that only the label does (n, 1).
    """
    if lungs is not None:
        logits = _lung_guidance_class()(config.lungs)([logits, heatmap, lungs, pneumonia])
    if taught:
        flat = [each for pair in taught for each in pair]
        layer = _distillation_class()(config.teacher, config.teacher_maps)
        logits = layer([logits, heatmap, pneumonia, judged, *flat])
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
            logits, heatmap, pneumonia, judged, *taught = inputs
            if training:
                count = len(taught) // 2
                target = sum(ops.sigmoid(each) for each in taught[::2]) / count
                target = judged * target + (1.0 - judged) * pneumonia
                difference = ops.binary_crossentropy(target, logits, from_logits=True)
                self.add_loss(self._weight * ops.mean(difference))
                if self._maps:
                    wanted = sum(_shares(_on_grid(each, heatmap)) for each in taught[1::2]) / count
                    missed = ops.sum(ops.abs(_shares(heatmap) - wanted), axis=(1, 2))
                    self.add_loss(self._maps * ops.mean(missed * (judged * target)[:, 0]))
            return logits

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    return Distillation


def teacher_folder(choice: str) -> Path:
    """The bundle folder of a teacher.

    Raises:
        UsageError: the folder holds no bundle.
    """
    named = bundle_files.default_folder() if choice in BUNDLED else Path(choice)
    folder = bundle_files.bundle_in(named)
    if folder is None:
        raise UsageError(
            f"--teacher {choice}: holds no {bundle_files.MANIFEST}; wanted a finished run, a "
            "bundle, or 'default'."
        )
    return folder


def described_teacher(choice: str) -> str:
    """A teacher's entry in a manifest: the last part of its name and the digest of its manifest."""
    digest = bundle_files.manifest_digest(teacher_folder(choice))
    return f"{Path(choice).name} (bundle.json SHA-256 {digest})"


def load_teachers(choices: Sequence[str]) -> tuple[Teacher, ...]:
    """One teacher for every network of the bundles; an ensemble gives several.

    Args:
        choices: runs, bundles, or `default`.

    Raises:
        UsageError: one of them is not a bundle.
        BundleError: a bundle is damaged, or of an unknown architecture.
    """
    teachers: list[Teacher] = []
    for choice in choices:
        teachers += _teachers_of(teacher_folder(choice), len(teachers))
    return tuple(teachers)


def _teachers_of(folder: Path, before: int) -> list[Teacher]:
    """The teachers of a bundle, numbered after those before it."""
    manifest = bundle_files.read_manifest(folder)
    sections = {} if not isinstance(manifest, dict) else manifest
    stated, files = (sections.get(name) for name in ("architecture", "files"))
    if not isinstance(stated, dict) or not isinstance(files, dict):
        raise BundleError(
            f"{folder / bundle_files.MANIFEST}: names no architecture or no files. Train again."
        )
    architecture = from_dict(Architecture, stated, str(folder))
    preprocess = from_dict(PreprocessConfig, sections.get("preprocessing", {}), str(folder))
    found: list[Teacher] = []
    for name in bundle_files.network_names(int(sections.get("members", 1))):
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"{path}: is missing. Convert a bundle of an earlier version with: "
                "pneumoscope upgrade"
            )
        if sha256_of_file(path) != files.get(name):
            raise BundleError(
                f"{path}: its SHA-256 differs from that in {bundle_files.MANIFEST}. The file was "
                "changed or damaged; copy the bundle again."
            )
        prefix = f"teacher{before + len(found)}_"
        model = _frozen_model(read_network(path, architecture), architecture, prefix)
        found.append(Teacher(model, preprocess))
    return found


def _frozen_model(network: NetworkArrays, architecture: Architecture, prefix: str) -> Any:
    """Images (n, size, size, 3) → logits (n, 1), heatmaps (n, h, w).

    The names of its layers begin with `prefix`, so that none is that of a student's layer.
    """
    keras = load_keras()
    backbone = build_backbone(architecture.size, architecture.name)
    for layer in leaves(backbone):
        if layer.weights:
            layer.set_weights(list(network.of(layer.name)))
    backbone = with_native_layers(backbone, prefix)
    names = [prefix + name for name in (POOL_LAYER, HIDDEN_LAYER, OUTPUT_LAYER)]
    pooled = keras.layers.GlobalAveragePooling2D(name=names[0], dtype="float32")(backbone.output)
    hidden = keras.layers.Dense(architecture.hidden_units, activation="relu", name=names[1])
    output = keras.layers.Dense(1, name=names[2])
    logits = output(hidden(pooled))
    for layer, name in ((hidden, HIDDEN_LAYER), (output, OUTPUT_LAYER)):
        layer.set_weights(list(network.of(name)))
    heatmap = heatmap_of(backbone.output, pooled, hidden, output)
    model = keras.Model(backbone.input, [logits, heatmap])
    model.trainable = False  # this also fixes the moving statistics of batch normalisation
    return model


def subtype_codes(records: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """Codes (n,), numbered from 0 in the order of the subtypes' names, or `UNKNOWN`."""
    names = sorted({record.subtype for record in records} - {""})
    codes = {name: number for number, name in enumerate(names)}
    return np.array([codes.get(record.subtype, UNKNOWN) for record in records], np.int64)


def balanced_order(codes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.intp]:
    """Rows (n,) in random order, balanced so that each subtype has an equal share.

    Rare subtypes are repeated; of frequent ones a new random part is left out each time. Images
    without a subtype appear once each.
    """
    known = np.flatnonzero(codes != UNKNOWN)
    subtypes = np.unique(codes[known])
    if not len(subtypes):
        return generator.permutation(len(codes))
    parts = np.array_split(known, len(subtypes))
    chosen = [
        np.resize(generator.permutation(np.flatnonzero(codes == subtype)), len(part))
        for subtype, part in zip(subtypes, parts, strict=True)
    ]
    return generator.permutation(np.concatenate([np.flatnonzero(codes == UNKNOWN), *chosen]))


def build_subtype_head(subtypes: int, weight: float, seed: int) -> Any:
    """A Keras layer: [logits (n, 1), pooled features (n, c), codes (n, 1)] → the logits, unchanged.

    In training it adds `weight` times the cross-entropy of the subtype, averaged over the batch;
    images without a subtype contribute 0.
    """
    return _layer_class()(subtypes, weight, seed, name="subtype", dtype="float32")


@functools.cache
def _layer_class() -> Any:
    """The layer's class, made on first use because Keras is imported late."""
    keras = load_keras()
    ops = keras.ops

    class SubtypeHead(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, subtypes: int, weight: float, seed: int, **settings: Any) -> None:
            super().__init__(**settings)
            initial = keras.initializers.GlorotUniform(seed=seed)
            self._dense = keras.layers.Dense(subtypes, kernel_initializer=initial, dtype="float32")
            self._weight = weight

        def build(self, shapes: Any) -> None:
            self._dense.build(shapes[1])

        def call(self, inputs: Any, training: Any = None) -> Any:
            logits, pooled, codes = inputs
            if training:
                codes = ops.cast(codes[:, 0], "int32")
                known = ops.cast(codes >= 0, "float32")
                each = keras.losses.sparse_categorical_crossentropy(
                    ops.maximum(codes, 0), self._dense(pooled), from_logits=True
                )
                self.add_loss(self._weight * ops.mean(each * known))
            return logits

        def compute_output_shape(self, shapes: Any) -> Any:
            return shapes[0]

    return SubtypeHead
