"""Known-answer test: does an engine on this machine reproduce the stated score of a phantom?

The phantom is a synthetic X-ray in the package. When a bundle is written, the float32 logit of its
network for the phantom is stored in the bundle's table `known_answer`. The logit does not depend on
the calibration or the threshold.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.evaluation.calibration import sigmoid
from pneumoscope.inference.weights_store import Table

if TYPE_CHECKING:
    from pneumoscope.inference.bundle import BundleManifest

TABLE = "known_answer"
"""Name of the bundle's table."""

NAME = "phantom.png"

EXACT_LOGIT = 1e-3
EXACT_PROBABILITY = 1e-4
"""Largest differences in float32 between engines and processors."""

EXPORTED = "f32, exported"
"""Precision of an exported graph, which resizes images itself."""

EXPORTED_PROBABILITY = 1e-3

LOWER_PROBABILITY = 0.05
"""Accepted difference in bfloat16 and int8; more if twice that of their certificate is larger."""

LOWER_LOGIT = 1.0
LOWER_LOGIT_SHARE = 0.2
"""Accepted difference of the uncalibrated logit there: `LOWER_LOGIT`, or this share of the stated
one if that is more. It also tells near 0 and 1, where any two probabilities are close."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """Score of the phantom by one engine, compared with the stated score.

    Attributes:
        engine: name of the engine.
        precision: its precision.
        stated: probability from the bundle's logit and calibration.
        found: computed probability; `None` if the engine gave none.
        allowed: largest accepted difference.
        right: whether they agree.
        seconds: duration.
    """

    engine: str
    precision: str
    stated: float
    found: float | None
    allowed: float
    right: bool
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


@cache
def phantom_content() -> bytes:
    """The phantom, a PNG of 256 × 256 grey pixels."""
    return (resources.files("pneumoscope") / "models" / NAME).read_bytes()


def known_table(logit: float) -> dict[str, Any]:
    """The bundle's table: the logit, and the digest of the phantom."""
    digest = np.frombuffer(hashlib.sha256(phantom_content()).digest(), np.uint8)
    return {"logit": np.array([logit], np.float64), "phantom": digest}


def stated_logit(table: Table | None) -> float | None:
    """The logit in a bundle's table; `None` if it has none, or one of another phantom."""
    if table is None or {"logit", "phantom"} - table.keys():
        return None
    mine = hashlib.sha256(phantom_content()).digest()
    return float(table["logit"][0]) if table["phantom"].tobytes() == mine else None


def compared(
    manifest: BundleManifest,
    stated: float,
    found: float | None,
    *,
    engine: str,
    precision: str,
    seconds: float = 0.0,
) -> KnownAnswer:
    """Compare an engine's logit with the stated one.

    Args:
        manifest: provides calibration and certificates.
        stated: logit in the bundle.
        found: computed logit; `None` if the engine gave none.
        engine: name of the engine.
        precision: its precision.
        seconds: duration.
    """
    calibration = manifest.calibration
    wanted = float(sigmoid(calibration.apply(np.array([stated])))[0])
    if found is None:
        return KnownAnswer(engine, precision, wanted, None, EXACT_PROBABILITY, False, seconds)
    got = float(sigmoid(calibration.apply(np.array([found])))[0])
    exact = precision == "f32"
    by_precision = {"f32": EXACT_PROBABILITY, EXPORTED: EXPORTED_PROBABILITY}
    allowed = by_precision.get(precision, LOWER_PROBABILITY)
    measured = [c.largest_difference for c in manifest.certificates if c.precision == precision]
    if not exact and measured:
        allowed = max(allowed, 2 * max(measured))
    apart = EXACT_LOGIT if exact else max(LOWER_LOGIT, LOWER_LOGIT_SHARE * abs(stated))
    right = abs(got - wanted) <= allowed and abs(found - stated) <= apart
    return KnownAnswer(engine, precision, wanted, got, allowed, right, seconds)
