"""Heads of networks, and names and sizes of DenseNet121, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, Architecture
from pneumoscope.training.network import HeadWeights

BACKBONE_WIDTH = 1024
BOUNDARIES = {"conv5": "pool4_pool", "conv4": "pool3_pool"}


def get_head(network: Any) -> HeadWeights:
    """The head weights of a network of `build_network`."""
    hidden = network.get_layer(HIDDEN_LAYER).get_weights()
    output = network.get_layer(OUTPUT_LAYER).get_weights()
    return HeadWeights(hidden[0], hidden[1], output[0], output[1])


def empty_head(architecture: Architecture) -> HeadWeights:
    """A head of zeros."""
    units = architecture.hidden_units
    return HeadWeights(
        np.zeros((BACKBONE_WIDTH, units), np.float32),
        np.zeros(units, np.float32),
        np.zeros((units, 1), np.float32),
        np.zeros(1, np.float32),
    )
