"""Which model predicted: a fingerprint of what probabilities depend on, a digest of everything.

Two models of one fingerprint give the same probabilities; they may cut them elsewhere. Two of one
digest are the same in every word.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from pneumoscope.graph.bundle_files import NETWORK_SUFFIX
from pneumoscope.inference.bundle import BundleManifest


def model_fingerprint(manifest: BundleManifest) -> str:
    """SHA-256 over weights' hashes, preprocessing, architecture, flip and calibration."""
    weights = {n: h for n, h in manifest.files.items() if n.endswith(NETWORK_SUFFIX)}
    told = {
        "weights": weights,
        "preprocessing": asdict(manifest.preprocessing),
        "architecture": asdict(manifest.architecture),
        "flip": manifest.flip,
        "calibration": manifest.calibration.to_dict(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def manifest_digest(manifest: BundleManifest) -> str:
    """Hex SHA-256 over all of a manifest: threshold, input check and abstention too."""
    text = json.dumps(asdict(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
