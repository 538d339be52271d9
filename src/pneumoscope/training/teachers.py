"""Teachers for distillation: trained models named by `train --teacher RUN[,RUN…]`.

A teacher is a bundle, or a run that holds one, of any backbone and size. Its network is rebuilt
from the bundle's arrays, frozen, together with its heatmap. It becomes part of the training model
(`guidance.py`), so it sees the same views as the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.config import PreprocessConfig, from_dict
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER, Architecture
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.keras_loading import load_keras
from pneumoscope.storage import sha256_of_file
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.guidance import Teacher, heatmap_of
from pneumoscope.training.native_torch import with_native_layers
from pneumoscope.training.plans import leaves

BUNDLED = ("default", "bundled")
"""Names of the bundled model."""


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
    return tuple(teacher for choice in choices for teacher in _teachers_of(teacher_folder(choice)))


def _teachers_of(folder: Path) -> list[Teacher]:
    manifest = bundle_files.read_manifest(folder)
    sections = {} if not isinstance(manifest, dict) else manifest
    stated, files = (sections.get(name) for name in ("architecture", "files"))
    if not isinstance(stated, dict) or not isinstance(files, dict):
        raise BundleError(
            f"{folder / bundle_files.MANIFEST}: names no architecture or no files. Train again."
        )
    architecture = from_dict(Architecture, stated, str(folder))
    preprocess = from_dict(PreprocessConfig, sections.get("preprocessing", {}), str(folder))
    found = []
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
        model = _frozen_model(read_network(path, architecture), architecture)
        found.append(Teacher(model, preprocess))
    return found


def _frozen_model(network: NetworkArrays, architecture: Architecture) -> Any:
    """Images (n, size, size, 3) → logits (n, 1), heatmaps (n, h, w)."""
    keras = load_keras()
    backbone = build_backbone(architecture.size, architecture.name)
    for layer in leaves(backbone):
        if layer.weights:
            layer.set_weights(list(network.of(layer.name)))
    backbone = with_native_layers(backbone)
    pooled = keras.layers.GlobalAveragePooling2D(name=POOL_LAYER, dtype="float32")(backbone.output)
    hidden = keras.layers.Dense(architecture.hidden_units, activation="relu", name=HIDDEN_LAYER)
    output = keras.layers.Dense(1, name=OUTPUT_LAYER)
    logits = output(hidden(pooled))
    for layer in (hidden, output):
        layer.set_weights(list(network.of(layer.name)))
    heatmap = heatmap_of(backbone.output, pooled, hidden, output)
    model = keras.Model(backbone.input, [logits, heatmap])
    model.trainable = False  # this also fixes the moving statistics of batch normalisation
    return model
