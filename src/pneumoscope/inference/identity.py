"""Identity of a model: a fingerprint of its probabilities, and a digest of its whole manifest.

Two models with the same fingerprint give the same probabilities, but may have different thresholds.
Two models with the same digest are identical.
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
    decisive = {
        "weights": weights,
        "preprocessing": asdict(manifest.preprocessing),
        "architecture": asdict(manifest.architecture),
        "flip": manifest.flip,
        "calibration": manifest.calibration.to_dict(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def manifest_digest(manifest: BundleManifest) -> str:
    """Hex SHA-256 over the whole manifest, including threshold, input check and abstention."""
    text = json.dumps(asdict(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
