"""Which files make a bundle, and where the bundle that ships lies: no more of a bundle than that.

`inference/bundle.py` reads whole bundles, `training/weights.py` takes a backbone out of one; both
need names, paths, and `bundle.json` as it was parsed.

What must be known of a network beside its own description: sizes, names of its head's layers.

Knows neither Keras nor any engine; both build from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import BundleError
from pneumoscope.storage import sha256_of_file

MANIFEST = "bundle.json"
CARD = "MODEL_CARD.md"
NETWORK_SUFFIX = ".keras"
OLD_SUFFIX = ".weights.h5"
"""Of the weights of a DenseNet121, which bundles held before schema 4."""

_MAX_MANIFEST_BYTES = 1 << 24


def network_names(members: int, suffix: str = NETWORK_SUFFIX) -> tuple[str, ...]:
    """The network files of a bundle: `model.keras`; of several networks `model-0.keras`, …."""
    if members == 1:
        return (f"model{suffix}",)
    return tuple(f"model-{k}{suffix}" for k in range(members))


def default_folder() -> Path:
    """Where the bundle that ships lies in the package, if this installation has it."""
    return Path(__file__).parent.parent / "models" / "default"


def bundle_in(folder: Path) -> Path | None:
    """The bundle that `folder` is, or holds as a run does (`RUN/model`); `None`: neither."""
    for candidate in (folder, folder / "model"):
        if (candidate / MANIFEST).exists():
            return candidate
    return None


def manifest_digest(folder: Path) -> str:
    """SHA-256 of a bundle's manifest, which names the digest of every other file in it."""
    return sha256_of_file(folder / MANIFEST)


def read_manifest(folder: Path) -> Any:
    """`bundle.json` of a bundle as JSON has it, unchecked.

    Raises:
        BundleError: it can't be read, or is no JSON.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            return json.loads(stream.read(_MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path}: can't be read as JSON ({error}). Train or copy it again."
        ) from error


LEAST_SIZE = 32
"""Backbones halve their input five times, pixels."""

POOL_LAYER = "pool"
"""Global average pooling of the last feature map: where the backbone ends and the head begins."""

HIDDEN_LAYER = "head_hidden"
OUTPUT_LAYER = "head_probability"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network in a few words; stored in `bundle.json`.

    Attributes:
        name: of the backbone, as `--backbone` takes it.
        size: side of its input, pixels.
        dropout: share of pooled features dropped in training.
        hidden_units: width of the hidden layer.
    """

    name: str = "densenet121"
    size: int = 224
    dropout: float = 0.4
    hidden_units: int = 256
