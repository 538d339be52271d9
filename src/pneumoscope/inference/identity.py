"""Which model gave an answer: a fingerprint of all that its probabilities depend on.

Comes in: a manifest. Goes out: a hex digest. The threshold is no part of it: the same
probabilities can be cut anywhere.
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
