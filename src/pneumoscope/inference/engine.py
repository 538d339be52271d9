"""Inference engines: the `Backend` protocol, and its OpenVINO and Keras implementations.

A backend takes preprocessed batches and returns logits, Grad-CAM maps and embeddings.
`OpenVinoBackend` needs no training framework; it keeps compiled graphs in the cache folder, so
later starts are fast. `KerasBackend` is the reference. Tests use a small fake backend.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import DeviceChoice
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import OUTPUTS, build_model, capabilities, has_graphics
from pneumoscope.graph.precision import Device, Floats, Precision, Ranges, fast_here
from pneumoscope.graph.runner import Runner, images_per_request
from pneumoscope.inference.bundle import Bundle
from pneumoscope.inference.certificates import Choice, choose_precision, floats_for
from pneumoscope.inference.prediction_graph import build_inference_graph
from pneumoscope.storage import cache_folder, claim_folder

_LOGGER = logging.getLogger(__name__)
INT8_TABLE = "int8"
"""Name of the bundle's table of activation ranges for int8."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs for a batch, float32: logits (n,), cams (n, h, w) ≥ 0, embeddings (n, c)."""

    logits: NDArray[np.float32]
    cams: NDArray[np.float32]
    embeddings: NDArray[np.float32]


class Backend(Protocol):
    """An engine with a loaded model."""

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The model's outputs for preprocessed images, float32 (n, size, size, 3).

        Must be safe to call from several threads.
        """


class KerasBackend:
    """The reference: the Keras networks themselves, on any Keras backend.

    Args:
        networks: one network, or several of the same architecture whose probabilities are averaged.
        flip: also run every image's left-right mirror image, and average over both.
    """

    def __init__(self, networks: Any | Sequence[Any], *, flip: bool = False) -> None:
        members = networks if isinstance(networks, Sequence) else (networks,)
        self._graphs = [build_inference_graph(network) for network in members]
        self._flip = flip
        self._lock = threading.Lock()

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Run all networks on preprocessed images, float32 (n, size, size, 3), and average them.

        For several passes (networks, or flip) the logit is that of the mean probability, and the
        map is the mean of all maps, aligned with the unflipped image. The embedding is that of the
        first network on the unflipped image, because networks do not share their feature spaces.
        """
        with self._lock:
            passes = [_forward(graph, batch) for graph in self._graphs]
            if self._flip:
                mirrored = np.ascontiguousarray(batch[:, :, ::-1])
                for graph in self._graphs:
                    out = _forward(graph, mirrored)
                    passes.append(Outputs(out.logits, out.cams[:, :, ::-1], out.embeddings))
        if len(passes) == 1:
            return passes[0]
        return Outputs(
            logit_of_mean(np.stack([out.logits for out in passes])),
            np.mean([out.cams for out in passes], axis=0, dtype=np.float32),
            passes[0].embeddings,
        )


def logit_of_mean(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logit of the mean probability over the first axis: logits (m, n) → (n,).

    Computed in float64 without forming probabilities, because float64 has no numbers between
    1 - 1e-16 and 1. NaN where a logit is not finite.
    """
    each = logits.astype(np.float64)
    finite = np.isfinite(each).all(axis=0)
    each = np.where(finite, each, 0.0)
    log_p = np.logaddexp.reduce(-np.logaddexp(0.0, -each), axis=0)
    log_q = np.logaddexp.reduce(-np.logaddexp(0.0, each), axis=0)
    return np.where(finite, log_p - log_q, np.nan).astype(np.float32)


def _forward(graph: Any, batch: NDArray[np.float32]) -> Outputs:
    out = graph.predict_on_batch(batch)
    return Outputs(
        np.asarray(out["logit"], np.float32),
        np.asarray(out["cam"], np.float32),
        np.asarray(out["embedding"], np.float32),
    )


class OpenVinoBackend:
    """Networks compiled by OpenVINO, with one graph per batch size.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        flip: also run mirror images, as the bundle states.
        cache: folder of compiled graphs; `None` disables caching.
        floats: floating-point type, where int8 is not used.
        ranges: activation ranges; if given, convolutions are computed in int8.
        device: device to run on.
    """

    def __init__(
        self,
        networks: Sequence[NetworkArrays],
        size: int,
        *,
        flip: bool = False,
        cache: Path | None = None,
        floats: Floats = "f32",
        ranges: Ranges | None = None,
        device: Device = "CPU",
    ) -> None:
        self._networks = tuple(networks)
        self._size = size
        self._flip = flip
        self._floats: Floats = floats
        self._ranges = ranges
        part = images_per_request(size, self.precision)
        self._runner = Runner(self._build, OUTPUTS, floats, cache, part, device)

    @classmethod
    def load(
        cls, bundle: Bundle, precision: Choice = "f32", device: DeviceChoice = "CPU"
    ) -> OpenVinoBackend:
        """Load the networks of a bundle.

        Args:
            bundle: from `load_bundle`.
            precision: arithmetic; `auto` is the fastest that the bundle's certificates allow on
                this processor.
            device: `CPU`, `GPU` (one that OpenVINO supports; float32 only, because certificates
                apply to processors), or `auto`: a GPU if there is one.

        Raises:
            BundleError: the weights are damaged or have another architecture, or the table for
                certified int8 is missing.
            UsageError: the bundle or the device does not allow the precision, or the device does
                not exist.
        """
        manifest = bundle.manifest
        chosen_device = choose_device(device)
        fast = fast_precisions() if chosen_device == "CPU" else ("f32",)
        chosen = choose_precision(precision, manifest.certificates, fast)
        networks = [read_network(path, manifest.architecture) for path in bundle.weights]
        _LOGGER.debug("inference runs in %s", chosen)
        return cls(
            networks,
            manifest.architecture.size,
            flip=manifest.flip,
            cache=writable_graph_cache(),
            floats=floats_for(chosen, manifest.certificates, fast),
            ranges=_ranges(bundle) if chosen == "int8" else None,
            device=chosen_device,
        )

    @property
    def precision(self) -> Precision:
        """Precision of the computation."""
        return "int8" if self._ranges is not None else self._floats

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """The outputs for preprocessed images, float32 (n, size, size, 3)."""
        return Outputs(*self._runner(batch))

    def _build(self, images: int) -> Any:
        try:
            return build_model(
                self._networks, self._size, images, flip=self._flip, ranges=self._ranges
            )
        except RuntimeError as error:  # shapes that don't match
            raise BundleError(
                f"the network can't be built for {self._size} pixels: {error} "
                "Copy the bundle again or train again."
            ) from error


def choose_device(asked: DeviceChoice) -> Device:
    """Choose the device.

    Raises:
        UsageError: a GPU was requested and OpenVINO detects none.
    """
    if asked == "CPU" or (asked == "auto" and not has_graphics()):
        return "CPU"
    if asked == "GPU" and not has_graphics():
        raise UsageError(
            "--device GPU: OpenVINO detects no GPU that it supports. Install its driver, or use "
            "--device CPU."
        )
    return "GPU"


def fast_precisions() -> tuple[Precision, ...]:
    """Precisions that this processor has instructions for, slowest first."""
    return fast_here(capabilities())


def _ranges(bundle: Bundle) -> Ranges:
    table = bundle.table(INT8_TABLE)
    if table is None:
        raise BundleError(
            f"{bundle.folder}: is certified for int8 but has no {INT8_TABLE} table, wanted both. "
            "Use --precision f32, or certify it again: pneumoscope certify DATA --model MODEL."
        )
    return Ranges.from_table(table)


def writable_graph_cache() -> Path | None:
    """The folder for compiled graphs; `None` if it can't be written.

    Inference continues without the cache in that case.
    """
    try:
        claim_folder(folder := cache_folder() / "graphs")
    except (OSError, UsageError) as error:
        _LOGGER.info("compiled graphs are not cached, so every start takes longer: %s", error)
        return None
    return folder
