"""`upgrade`: a model of an older schema as this version writes it, with the same predictions.

Before schema 4 a bundle held the weights of a DenseNet121 alone; here they are put into the network
once, which is then saved whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import BundleError, InputError, UsageError
from pneumoscope.graph.architecture import HIDDEN_LAYER, OUTPUT_LAYER, Architecture
from pneumoscope.graph.bundle_files import MANIFEST
from pneumoscope.graph.weight_file import open_weight_file, read_array
from pneumoscope.inference.bundle import SCHEMA_VERSION, load_bundle, write_bundle
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import HeadWeights, build_network
from pneumoscope.training.plans import leaves

_NETWORK = "densenet121"
"""The only one before schema 4."""


def run_upgrade(model: str, out: Path) -> tuple[dict[str, Any], str]:
    """Write the model anew as `out`; the model itself is left as it is.

    Raises:
        UsageError: no such model, it is of the present schema, or `out` holds something else.
        ExtraMissingError: Keras is not installed.
        BundleError: the model is damaged.
    """
    old = load_bundle(model, oldest=1)
    found = old.manifest.schema_version
    if found == SCHEMA_VERSION:
        raise UsageError(f"--model {model}: is of schema version {found} already. Use it as it is.")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out}: holds something else than a model. Give another folder.")
    architecture = old.manifest.architecture
    if architecture.name != _NETWORK:
        raise BundleError(
            f"{old.folder / MANIFEST}: found the architecture {architecture.name!r}, wanted "
            f"{_NETWORK!r}, the only one of that schema. Train again."
        )
    networks = [_network(architecture, path) for path in old.weights]
    card = old.card.read_text()
    made = write_bundle(out, networks, old.manifest, card, old.tables())
    document = {
        "from": str(old.folder),
        "schema_version": {"from": found, "to": made.manifest.schema_version},
        "model": str(made.folder),
        "files": list(made.manifest.files),
    }
    text = (
        f"model   {made.folder}: schema version {made.manifest.schema_version}, was {found}\n"
        f"from    {old.folder}\nnext    pneumoscope info --model {made.folder}"
    )
    return document, text


def _network(architecture: Architecture, path: Path) -> Any:
    """The network with the weights of an older bundle.

    Raises:
        BundleError: they are damaged or of another architecture.
    """
    backbone = build_backbone(architecture.size, _NETWORK)
    layers = {layer.name: layer for layer in leaves(backbone) if layer.weights}
    try:
        with open_weight_file(path, layers) as stored:
            wanted = [*layers, HIDDEN_LAYER, OUTPUT_LAYER]
            arrays = {n: [read_array(path, n, d) for d in stored.by_name[n]] for n in wanted}
        for name, layer in layers.items():
            layer.set_weights(arrays[name])
        head = HeadWeights(*(np.asarray(a) for n in wanted[-2:] for a in arrays[n]))
        return build_network(backbone, architecture, head)
    except (InputError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: does not fit {architecture}: {error}. Train again.") from error
