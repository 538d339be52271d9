"""Who answers: the program, its version, the model; and the UIDs of what it writes.

Comes in: a bundle's manifest. Goes out: `Author`, and UIDs that are the same whenever the same
author writes of the same film. Knows nothing of data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.identity import manifest_digest

MANUFACTURER = "pneumoscope"
RESEARCH_ONLY = "RESEARCH USE ONLY – not for diagnosis"

_FINGERPRINT_DIGITS = 16
"""Of the SHA-256, where it names the model for people (DICOM allows 64 characters)."""

Part = Literal[
    "report",
    "capture",
    "segmentation",
    "report series",
    "capture series",
    "segmentation series",
    "finding",
    "device",
]


@dataclass(frozen=True, slots=True)
class Author:
    """What makes the answers of a run all the same: program, version and model.

    Attributes:
        version: of pneumoscope.
        architecture: name of the network.
        fingerprint: hex SHA-256 of the model's manifest, which holds those of all its files.
        threshold: on the probability.
        rule: how the threshold was chosen.
        precision: what is computed in, "" where nobody says.
        validation: sentences on how far its answers held on validation, if that is known.
        variant: tells apart images that have the same UID and other content; "" for the first.
    """

    version: str
    architecture: str
    fingerprint: str
    threshold: float
    rule: str
    precision: str = ""
    validation: tuple[str, ...] = ()
    variant: str = ""

    @classmethod
    def of(cls, manifest: BundleManifest, precision: str = "") -> Author:
        """The author that answers by the model of `manifest`, computed in `precision`."""
        return cls(
            version=metadata.version("pneumoscope"),
            architecture=manifest.architecture.name,
            fingerprint=manifest_digest(manifest),
            threshold=manifest.threshold.value,
            rule=manifest.threshold.rule,
            precision=precision,
            validation=_validation(manifest.validation),
        )

    @property
    def model_name(self) -> str:
        """The model for people: architecture and the beginning of its fingerprint."""
        return f"{self.architecture} {self.fingerprint[:_FINGERPRINT_DIGITS]}"

    def uid(self, part: Part, subject: str = "") -> str:
        """The UID of a part of what this author writes of `subject`, a UID itself.

        The same part of the same subject has the same UID in every run (PS3.5 9: one UID, one
        object): what is sent again is recognised by whoever has it already.
        """
        from pydicom.uid import generate_uid

        entropy = ["pneumoscope", self.version, self.fingerprint, self.precision, part, subject]
        entropy += [self.variant] if self.variant else []
        return str(generate_uid(entropy_srcs=["\0".join(entropy)]))


def _validation(document: Mapping[str, Any]) -> tuple[str, ...]:
    """`sensitivity on validation 0.92 (0.89 to 0.95)`, of what `metrics.json` holds there."""
    metrics = document.get("metrics")
    if not isinstance(metrics, Mapping):
        return ()
    sentences = []
    for name in ("sensitivity", "specificity", "auc"):
        found = metrics.get(name)
        numbers = (
            [found.get(k) for k in ("value", "low", "high")] if isinstance(found, dict) else []
        )
        if numbers and all(isinstance(number, int | float) for number in numbers):
            value, low, high = numbers
            sentences.append(f"{name} on validation {value:.3f} ({low:.3f} to {high:.3f})")
    return tuple(sentences)
