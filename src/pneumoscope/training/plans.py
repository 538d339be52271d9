"""Conversion of Keras models to the plan and arrays that `graph/` uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.plan import Plan, read_plan


def plan_of(model: Any) -> Plan:
    """The layers of a Keras model and their connections.

    Raises:
        BundleError: it is not a functional model with one input and one output.
    """
    return read_plan(json.loads(model.to_json()))


def arrays_of(model: Any) -> NetworkArrays:
    """A Keras model as plan and arrays, for engines that run without Keras."""
    arrays = {layer.name: tuple(layer.get_weights()) for layer in leaves(model)}
    return NetworkArrays(plan_of(model), {name: each for name, each in arrays.items() if each})


def settle(model: Any) -> None:
    """Let layers recompute the state that depends on their weights, after `set_weights`.

    Keras' `Normalization` computes with copies of its mean and variance.
    """
    for layer in leaves(model):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def leaves(model: Any) -> Iterator[Any]:
    """The layers of a model, with nested models expanded into their layers."""
    for layer in model.layers:
        yield from leaves(layer) if hasattr(layer, "layers") else (layer,)
