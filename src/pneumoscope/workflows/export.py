"""`export`: a model as a graph for other programs, certified on labelled images if wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pneumoscope.data.index import index
from pneumoscope.delivery.certificate import Certificate, certify
from pneumoscope.delivery.export import (
    ABOUT,
    CERTIFICATE,
    GRAPH_FILES,
    ExportedModel,
    Target,
    check_folder,
    missing_parts,
    write_export,
)
from pneumoscope.errors import InputError
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress
from pneumoscope.storage import write_json

FAILED = InputError.exit_code


def run_export(
    model: str, target: Target, out: Path, check: Path | None, progress: Progress
) -> tuple[dict[str, Any], str, int]:
    """Write the export of `model` to `out`, and measure it on `check`.

    Returns:
        A document, a text, and the exit code: 3 if the certificate's limits are passed. The export
        is there then too, with the certificate that says so.

    Raises:
        UsageError: no such model, or `out` holds something else.
        MissingError: the format's library is not installed.
        DataError: no image of `check` could be read.
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
    about = json.loads((out / ABOUT).read_text())
    document = {
        "out": str(out),
        "graph": str(graph),
        "input_check": about["input_check"],
        "abstention": about["abstention"],
        "certificate": certificate and certificate.to_json(),
    }
    failed = certificate is not None and bool(certificate.failures)
    return document, _text(graph, out, missing_parts(about), certificate), FAILED if failed else 0


def _text(graph: Path, out: Path, missing: list[str], certificate: Certificate | None) -> str:
    lines = [f"graph        {graph}", f"example      {out / 'example.py'}"]
    lines += [f"note         {told}" for told in missing]
    if certificate is None:
        lines.append("certificate  none: give --check DATA to measure that it answers alike")
        return "\n".join(lines)
    correlation = certificate.heatmap_correlation
    lines += [
        f"certificate  {out / CERTIFICATE}: {'FAILED' if certificate.failures else 'passed'}",
        f"  images                           {certificate.images}",
        f"  largest difference, probability  {certificate.largest_difference:.2g}",
        f"  mean difference                  {certificate.mean_difference:.2g}",
        f"  decisions changed                {certificate.decisions_changed}",
        f"  AUC before, after                {_shown(certificate.auc_before)}, "
        f"{_shown(certificate.auc_after)}",
        f"  least heatmap correlation        {_shown(correlation)}",
        *(f"  {failure}" for failure in certificate.failures),
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"
