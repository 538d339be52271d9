"""A network's weights as arrays by layer, read without Keras.

Comes in: a weights file of a bundle. Goes out: `NetworkArrays`, float32. Does not know what the
layers compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError, InputError
from pneumoscope.graph.architecture import BACKBONE_WIDTH, HIDDEN_LAYER, OUTPUT_LAYER, Architecture
from pneumoscope.graph.weight_file import open_weight_file, read_array

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NetworkArrays:
    """The arrays of every layer that has any, in Keras' order and layout.

    Of a convolution (height, width, in, out); of batch normalisation gamma, beta, moving mean and
    moving variance, each (channels,); of a dense layer (in, out) and (out,).
    """

    layers: Mapping[str, tuple[FloatArray, ...]]

    def of(self, name: str) -> tuple[FloatArray, ...]:
        """The arrays of a layer.

        Raises:
            BundleError: there is no such layer.
        """
        if name not in self.layers:
            raise BundleError(
                f"the weights have no layer {name!r}; wanted those of DenseNet121 and its head. "
                "Copy the bundle again or train again."
            )
        return self.layers[name]


def read_network(path: Path, architecture: Architecture) -> NetworkArrays:
    """Read a weights file of a bundle.

    Raises:
        BundleError: it is damaged, would fill the memory, holds what is no finite number, or is
            not of that architecture.
    """
    try:
        with open_weight_file(path) as stored:
            layers = {
                name: tuple(read_array(path, name, each) for each in datasets)
                for name, datasets in stored.by_name.items()
            }
    except InputError as error:
        raise BundleError(f"{path}: does not fit {architecture}: {error}. Train again.") from error
    network = NetworkArrays(layers)
    units = architecture.hidden_units
    wanted = [(BACKBONE_WIDTH, units), (units,), (units, 1), (1,)]
    found = [array.shape for name in (HIDDEN_LAYER, OUTPUT_LAYER) for array in network.of(name)]
    if found != wanted:
        raise BundleError(
            f"{path}: does not fit {architecture}: found a head of {found}, wanted {wanted}. "
            "Train again."
        )
    return network
