"""`export` writes a model as an ONNX or OpenVINO graph; `upgrade` converts an older bundle.

`export --check` measures the agreement of the graph with the model on labelled images. Before
schema 4 a bundle held only the weights of a DenseNet121; `upgrade` loads them into the network and
saves it whole, with the same predictions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.data.index import index
from pneumoscope.delivery.export import (
    ABOUT,
    CERTIFICATE,
    GRAPH_FILES,
    Certificate,
    ExportedModel,
    Target,
    certify,
    check_folder,
    missing_parts,
    write_export,
)
from pneumoscope.errors import BundleError, InputError, UsageError
from pneumoscope.graph.archive import open_weight_file, read_array
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, MANIFEST, OUTPUT_LAYER, Architecture
from pneumoscope.inference.bundle import (
    SCHEMA_VERSION,
    check_bundle_target,
    load_bundle,
    write_bundle,
)
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.reading import read_json
from pneumoscope.storage import write_json
from pneumoscope.training.backbones import build_backbone, leaves
from pneumoscope.training.network import HeadWeights, build_network

FAILED = InputError.exit_code

_NETWORK = "densenet121"
"""The only architecture before schema 4."""


def run_export(
    model: str, target: Target, out: Path, check: Path | None, progress: Progress
) -> tuple[dict[str, Any], str, int]:
    """Export `model` to `out`, and measure its agreement with the model on `check`.

    Returns:
        A document, a text, and the exit code: 3 if the limits of the certificate are exceeded. The
        export and the failed certificate are written in that case, too.

    Raises:
        UsageError: no such model, or `out` holds something else.
        MissingError: the library of the format is not installed.
        DataError: no image of `check` can be read.
    """
    bundle = load_bundle(model)
    check_folder(out)
    records = index(check, progress=progress).records if check else ()
    write_export(out, bundle, target)
    certificate = None
    if check:
        predictor = Predictor(bundle.manifest, OpenVinoBackend.load(bundle))
        exported = ExportedModel(out)
        certificate = certify(records, predictor, exported, progress=progress)
        write_json(out / CERTIFICATE, certificate.to_json())
    graph = out / GRAPH_FILES[target]
    about = read_json(out / ABOUT)
    document = {
        "out": str(out),
        "graph": str(graph),
        "input_check": about["input_check"],
        "abstention": about["abstention"],
        "ages": about["ages"],
        "certificate": certificate and certificate.to_json(),
    }
    failed = certificate is not None and bool(certificate.failures)
    return document, _text(graph, out, missing_parts(about), certificate), FAILED if failed else 0


def _text(graph: Path, out: Path, missing: list[str], certificate: Certificate | None) -> str:
    lines = [f"graph        {graph}", f"example      {out / 'example.py'}"]
    lines += [f"note         {note}" for note in missing]
    if certificate is None:
        lines.append("certificate  none: give --check DATA to measure its agreement with the model")
        return "\n".join(lines)
    correlation = certificate.heatmap_correlation
    lines += [
        f"certificate  {out / CERTIFICATE}: {'FAILED' if certificate.failures else 'passed'}",
        f"  images                           {certificate.images}",
        f"  unreadable, left out             {certificate.refused}",
        f"  rounded to 8 bits                {certificate.rounded}",
        f"  largest difference, probability  {_small(certificate.largest_difference)}",
        f"  mean difference                  {_small(certificate.mean_difference)}",
        f"  largest where rounded to 8 bits  {_small(certificate.largest_rounded_difference)}",
        f"  decisions changed                {certificate.decisions_changed}",
        f"  AUC before, after                {_shown(certificate.auc_before)}, "
        f"{_shown(certificate.auc_after)}",
        f"  least heatmap correlation        {_shown(correlation)}",
        *(f"  {failure}" for failure in certificate.failures),
    ]
    return "\n".join(lines)


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def run_upgrade(model: str, out: Path) -> tuple[dict[str, Any], str]:
    """Convert a bundle of an older schema and write it to `out`; the original is not changed.

    Raises:
        UsageError: no such model, it has the current schema, or `out` holds something else.
        ExtraMissingError: Keras is not installed.
        BundleError: the model is damaged.
    """
    old = load_bundle(model, oldest=1)
    found = old.manifest.schema_version
    if found == SCHEMA_VERSION:
        raise UsageError(
            f"--model {model}: has the current schema version {found}. It needs no upgrade."
        )
    check_bundle_target(out)
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
        BundleError: the weights are damaged or of another architecture.
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
