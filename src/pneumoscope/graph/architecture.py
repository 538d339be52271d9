"""What must be known of a network to build it: sizes and names of layers.

Knows neither Keras nor any engine; both build from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

BACKBONE_WIDTH = 1024
"""Channels of DenseNet121's last feature map, and so the width of the pooled features."""

LEAST_SIZE = 32
"""DenseNet121 halves its input five times, pixels."""

HIDDEN_LAYER = "head_hidden"
OUTPUT_LAYER = "head_probability"

BOUNDARIES = MappingProxyType({"conv5": "pool4_pool", "conv4": "pool3_pool"})
"""Block → the layer before it, where a frozen trunk ends if training begins with that block."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What must be known to build the network again; stored in `bundle.json`."""

    name: str = "densenet121"
    size: int = 224
    dropout: float = 0.4
    hidden_units: int = 256
