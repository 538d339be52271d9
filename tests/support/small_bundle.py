"""Bundles of the stand-in network, every weight random, for what only needs some model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.inference.bundle import Bundle, BundleManifest, write_bundle
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import HeadWeights, build_network, initialise_randomly
from support.heads import BACKBONE_WIDTH
from support.small_network import small_network

UNITS = 8


def random_network(seed: int, size: int) -> Any:
    """DenseNet121 (or, within `small_network`, the stand-in) with a head of `UNITS`."""
    backbone = build_backbone(size)
    initialise_randomly(backbone, seed)
    generator = np.random.default_rng(seed)
    for layer in backbone.layers:
        weights = layer.get_weights()
        if len(weights) == 4:  # scale and variance about 1, shift and mean about 0
            pairs = zip((1.0, 0.0, 0.0, 1.0), weights, strict=True)
            layer.set_weights([n + 0.2 * generator.uniform(-1, 1, w.shape) for n, w in pairs])

    def random(*shape: int) -> np.ndarray:
        return (0.2 * generator.standard_normal(shape)).astype(np.float32)

    head = HeadWeights(random(BACKBONE_WIDTH, UNITS), random(UNITS), random(UNITS, 1), random(1))
    return build_network(backbone, Architecture(size=size, hidden_units=UNITS), head)


def manifest_for(size: int, **values: Any) -> BundleManifest:
    """A manifest of such a network."""
    base = BundleManifest(architecture=Architecture(size=size, hidden_units=UNITS))
    preprocessing = replace(base.preprocessing, size=size)
    return replace(base, **{"preprocessing": preprocessing, **values})


def small_bundle(
    folder: Path, *, seed: int = 0, members: int = 1, size: int = 64, **values: Any
) -> Bundle:
    """A bundle of as many stand-ins; `values` go into its manifest."""
    with small_network():
        networks = [random_network(seed + k, size) for k in range(members)]
    return write_bundle(folder, networks, manifest_for(size, **values), "A card.")
