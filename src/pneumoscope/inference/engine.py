"""The engine that answers: a bundle's networks compiled by OpenVINO. No training framework.

Comes in: a bundle. Goes out: a `Backend`. Compiled graphs are kept in the cache folder, so that
the next start is fast. Knows nothing of files, thresholds or calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.openvino import OUTPUTS, build_model, compile_model
from pneumoscope.graph.stored import NetworkArrays, read_network
from pneumoscope.inference.backends import Outputs
from pneumoscope.inference.bundle import Bundle
from pneumoscope.storage import cache_folder, claim_folder

_LOGGER = logging.getLogger(__name__)


class OpenVinoBackend:
    """Networks in float32 on the processor, one compiled graph per batch size that is asked for.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        flip: as in the bundle.
        cache: folder for compiled graphs; `None` keeps none.
    """

    def __init__(
        self,
        networks: Sequence[NetworkArrays],
        size: int,
        *,
        flip: bool = False,
        cache: Path | None = None,
    ) -> None:
        self._networks = tuple(networks)
        self._size = size
        self._flip = flip
        self._cache = cache
        self._compiled: dict[int, Any] = {}

    @classmethod
    def load(cls, bundle: Bundle) -> OpenVinoBackend:
        """The engine with the networks of a bundle.

        Raises:
            BundleError: the weights are damaged, or not those of the bundle's architecture.
        """
        manifest = bundle.manifest
        networks = [read_network(path, manifest.architecture) for path in bundle.weights]
        size, flip = manifest.architecture.size, manifest.flip
        return cls(networks, size, flip=flip, cache=_writable(cache_folder() / "graphs"))

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The outputs for preprocessed images, float32 (n, size, size, 3)."""
        found = self._graph(len(batch))(np.ascontiguousarray(batch))
        # Copies: the engine writes its next answers into the same memory.
        return Outputs(*(np.array(found[name], np.float32) for name in OUTPUTS))

    def _graph(self, batch: int) -> Any:
        if batch not in self._compiled:
            try:
                model = build_model(self._networks, self._size, batch, flip=self._flip)
            except RuntimeError as error:  # shapes that don't fit together
                raise BundleError(
                    f"the weights are not those of DenseNet121 for {self._size} pixels: {error} "
                    "Copy the bundle again or train again."
                ) from error
            self._compiled[batch] = compile_model(model, "f32", self._cache)
            _LOGGER.debug("graph compiled for batches of %d", batch)
        return self._compiled[batch]


def _writable(folder: Path) -> Path | None:
    """The folder if files can be made in it: answers don't wait for a cache to be repaired."""
    try:
        claim_folder(folder)
    except (OSError, UsageError) as error:
        _LOGGER.info("compiled graphs are not kept, every start takes longer: %s", error)
        return None
    return folder
