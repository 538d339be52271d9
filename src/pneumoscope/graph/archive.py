"""A network's `.keras` file, read without Keras and without trusting it.

Such a file is a ZIP archive of `config.json` (layers and wiring), `model.weights.h5` (arrays) and
`metadata.json`. Sizes are checked before anything is unpacked; of the description only layers that
`layers.py` knows are taken, and none of it is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pneumoscope.errors import BundleError, InputError
from pneumoscope.graph.architecture import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER, Architecture
from pneumoscope.graph.layers import unknown_layers
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.plan import Plan, read_plan
from pneumoscope.graph.weight_file import open_weight_file, read_array, read_member

CONFIG_MEMBER = "config.json"
METADATA_MEMBER = "metadata.json"

_MAX_CONFIG_BYTES = 32 << 20


def read_network(path: Path, architecture: Architecture) -> NetworkArrays:
    """Read a network of a bundle.

    Args:
        path: a `.keras` file.
        architecture: what it must be.

    Raises:
        BundleError: it is damaged, would fill the memory, holds what is no finite number, has
            layers that are not known here, or is not of that architecture.
    """
    try:
        plan = read_description(path)
        names = [layer.name for layer in plan.layers]
        with open_weight_file(path, names) as stored:
            found = {name: stored.by_name[name] for name in names if name in stored.by_name}
            layers = {
                name: tuple(read_array(path, name, each) for each in datasets)
                for name, datasets in found.items()
            }
    except InputError as error:
        raise BundleError(f"{path}: does not fit {architecture}: {error}. Train again.") from error
    network = NetworkArrays(plan, layers)
    _check(path, network, architecture)
    return network


def read_description(path: Path) -> Plan:
    """The layers of a `.keras` file and their wiring.

    Raises:
        InputError: it is no such file, or damaged.
        BundleError: it describes another kind of model, or holds layers or classes that are not
            Keras' own.
    """
    content = read_member(path, CONFIG_MEMBER, _MAX_CONFIG_BYTES)
    modules: set[str] = set()

    def seen(part: dict[str, Any]) -> dict[str, Any]:
        """Note every `module` that the description names, wherever it does."""
        if part.get("module") is not None:
            modules.add(str(part["module"]))
        return part

    try:
        document = json.loads(content, object_hook=seen)
        strange = sorted(each for each in modules if not _is_keras(each))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {CONFIG_MEMBER} is no JSON ({error})") from error
    if strange:
        raise BundleError(
            f"{path}: names code of {strange[0]!r}; wanted Keras' own layers and no other code. "
            "Train again with layers of Keras."
        )
    plan = read_plan(document)
    if unknown := unknown_layers(plan):
        raise BundleError(
            f"{path}: holds layers of the kind {', '.join(unknown)}, which this version can't run."
        )
    return plan


def _is_keras(module: str) -> bool:
    return module == "keras" or module.startswith("keras.")


def _check(path: Path, network: NetworkArrays, architecture: Architecture) -> None:
    """See that the network is of that architecture.

    Raises:
        BundleError: it is not.
    """
    units, plan = architecture.hidden_units, network.plan
    shape = plan.layers[0].settings.get("batch_shape")
    size = architecture.size
    plan.layer(POOL_LAYER)
    hidden, output = ([a.shape for a in network.of(name)] for name in (HIDDEN_LAYER, OUTPUT_LAYER))
    wanted = [(network.width, units), (units,), (units, 1), (1,)]
    if hidden + output != wanted or shape != [None, size, size, 3]:
        raise BundleError(
            f"{path}: does not fit {architecture}: found images of {shape} and a head of "
            f"{hidden + output}, wanted {[None, size, size, 3]} and {wanted}. Train again."
        )
