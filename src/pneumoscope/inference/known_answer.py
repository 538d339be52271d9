"""A phantom whose score is known: whether an engine on this machine computes what it should.

The phantom is a drawn X-ray that ships with the package. A bundle states the logit that its network
gave for it, in float32, when the bundle was written; the logit does not change with the calibration
or the threshold. It stands in the bundle's table `known_answer`.
"""

from __future__ import annotations

import hashlib
import io
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
"""The bundle's table."""

NAME = "phantom.png"

EXACT_LOGIT = 1e-3
EXACT_PROBABILITY = 1e-4
"""What float32 may differ by, between engines and processors."""

EXPORTED = "f32, exported"
"""The precision of an exported graph, which resizes images itself."""

EXPORTED_PROBABILITY = 1e-3

LOWER_PROBABILITY = 0.05
"""What bfloat16 and int8 may differ by at least; else twice what their certificate measured."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One engine's score of the phantom beside the stated one.

    Attributes:
        engine: what computed it, in words.
        precision: what it computed in.
        stated: the probability that the bundle's logit gives with its calibration.
        found: the probability that was computed; `None` without an answer.
        allowed: what they may differ by.
        right: whether they agree.
        seconds: it took.
    """

    engine: str
    precision: str
    stated: float
    found: float | None
    allowed: float
    right: bool
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@cache
def phantom_content() -> bytes:
    """The phantom, a PNG of 256 × 256 grey pixels."""
    return (resources.files("pneumoscope") / "models" / NAME).read_bytes()


def known_table(logit: float) -> dict[str, Any]:
    """What a bundle keeps: the logit, and of which phantom."""
    digest = np.frombuffer(hashlib.sha256(phantom_content()).digest(), np.uint8)
    return {"logit": np.array([logit], np.float64), "phantom": digest}


def stated_logit(table: Table | None) -> float | None:
    """The logit of a bundle's table; `None` if it has none, or one of another phantom."""
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
    """An engine's logit beside the stated one.

    Args:
        manifest: whose calibration and certificates count.
        stated: logit of the bundle.
        found: logit that was computed; `None` without an answer.
        engine: what computed it, in words.
        precision: what it computed in.
        seconds: it took.
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
    right = abs(got - wanted) <= allowed and (not exact or abs(found - stated) <= EXACT_LOGIT)
    return KnownAnswer(engine, precision, wanted, got, allowed, right, seconds)


def drawn_phantom() -> bytes:
    """The phantom drawn anew: how the shipped file was made."""
    from PIL import Image

    from pneumoscope.images.phantom import draw

    pixels = draw(7, "known-3", number=1, label=0, size=256).pixels
    stream = io.BytesIO()
    grey = Image.fromarray((pixels * 255).round().astype(np.uint8))
    grey.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
