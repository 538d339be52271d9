"""What must be known of a network beside its own description: sizes, names of its head's layers.

Knows neither Keras nor any engine; both build from it.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_SIZE = 32
"""Backbones halve their input five times, pixels."""

POOL_LAYER = "pool"
"""Global average pooling of the last feature map: where the backbone ends and the head begins."""

HIDDEN_LAYER = "head_hidden"
OUTPUT_LAYER = "head_probability"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network in a few words; stored in `bundle.json`.

    Attributes:
        name: of the backbone, as `--backbone` takes it.
        size: side of its input, pixels.
        dropout: share of pooled features dropped in training.
        hidden_units: width of the hidden layer.
    """

    name: str = "densenet121"
    size: int = 224
    dropout: float = 0.4
    hidden_units: int = 256
