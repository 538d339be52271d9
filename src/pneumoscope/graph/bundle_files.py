"""Files of a bundle, the path of the bundled model, and the architecture entry of a manifest.

`inference/bundle.py` reads complete bundles, and `training/weights.py` takes the backbone out of
one. Both use the names, paths and the parsed `bundle.json` from here. This module needs neither
Keras nor an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import BundleError, InputError
from pneumoscope.reading import read_json
from pneumoscope.storage import sha256_of_file

MANIFEST = "bundle.json"
CARD = "MODEL_CARD.md"
SEEN_TABLE = "seen"
"""Table of salted hashes of the training images (`data/training_overlap.py`)."""

NETWORK_SUFFIX = ".keras"
OLD_SUFFIX = ".weights.h5"
"""Suffix of the DenseNet121 weights that bundles held before schema 4."""

_MAX_MANIFEST_BYTES = 1 << 24

LEAST_SIZE = 32
"""Smallest input side, pixels: backbones halve their input five times."""

POOL_LAYER = "pool"
"""Layer of global average pooling, between the backbone and the head."""

HIDDEN_LAYER = "head_hidden"
OUTPUT_LAYER = "head_probability"


def network_names(members: int, suffix: str = NETWORK_SUFFIX) -> tuple[str, ...]:
    """The network files of a bundle: `model.keras`, or `model-0.keras`, … for several networks."""
    if members == 1:
        return (f"model{suffix}",)
    return tuple(f"model-{k}{suffix}" for k in range(members))


def default_folder() -> Path:
    """Path of the bundled model in the package; it exists if this installation has the model."""
    return Path(__file__).parent.parent / "models" / "default"


def bundle_in(folder: Path) -> Path | None:
    """`folder` itself if it is a bundle, or `folder/model` of a run; `None` if neither is one."""
    for candidate in (folder, folder / "model"):
        if (candidate / MANIFEST).exists():
            return candidate
    return None


def manifest_digest(folder: Path) -> str:
    """SHA-256 of a bundle's manifest, which states the digest of every other file of the bundle."""
    return sha256_of_file(folder / MANIFEST)


def read_manifest(folder: Path) -> Any:
    """`bundle.json` of a bundle as parsed JSON; its keys and values are not checked yet.

    Raises:
        BundleError: the file can't be read, or is not JSON as `reading.parse_json` reads it.
    """
    try:
        return read_json(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    except InputError as error:
        raise BundleError(f"{error}. Train again, or copy the bundle again.") from error


@dataclass(frozen=True, slots=True)
class Architecture:
    """Architecture of a network, as stored in `bundle.json`.

    Attributes:
        name: name of the backbone, as `--backbone` takes it.
        size: side of the input, pixels.
        dropout: share of pooled features dropped in training.
        hidden_units: width of the hidden layer.
    """

    name: str = "densenet121"
    size: int = 224
    dropout: float = 0.4
    hidden_units: int = 256
