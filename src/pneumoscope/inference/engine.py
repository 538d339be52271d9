"""Inference engines: the `Backend` protocol, and its OpenVINO and Keras implementations.

A backend takes preprocessed batches and returns logits, Grad-CAM maps and embeddings.
`OpenVinoBackend` needs no training framework; it keeps compiled graphs in the cache folder, so
later starts are fast. `KerasBackend` is the reference. Tests use a small fake backend.

`write_prediction` writes the graph of an exported model with a `Writer`: from grey pixels through
preprocessing (`images/preprocess.py`), network and calibration to the outputs. Images are resized
by a matrix product on either side, because engines differ in their resize operations, and some lack
antialiasing, but all agree on products. `build_inference_graph` makes the Keras graph of a trained
network with the same outputs; `load_model` gives the network alone, to those who go on in Keras.

Grad-CAM (Selvaraju et al., ICCV 2017) weights each channel of the last feature map A, (h, w, c), by
the mean over positions of the gradient of the logit. Behind global average pooling this gradient is
the same at every position: (1 / hw) times the gradient of the head at the pooled features. For
Dense(ReLU) → Dense(1) that is W1 (w2 where the hidden unit is active). So no backward pass is
needed, and an exported graph can compute the map too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.config import DeviceChoice, PreprocessConfig
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, POOL_LAYER
from pneumoscope.graph.network import NetworkArrays, write_average
from pneumoscope.graph.openvino import OUTPUTS, build_model, capabilities, has_graphics
from pneumoscope.graph.runner import Runner, images_per_request
from pneumoscope.graph.writer import (
    Device,
    Floats,
    Node,
    Precision,
    Ranges,
    Writer,
    fast_here,
)
from pneumoscope.images.preprocess import IMAGENET_DEVIATION, IMAGENET_MEAN, LEAST_DEVIATION
from pneumoscope.inference.bundle import Bundle, BundleManifest, load_bundle, load_networks
from pneumoscope.inference.certificates import Choice, choose_precision, floats_for
from pneumoscope.keras_loading import load_keras
from pneumoscope.storage import cache_folder, claim_folder

EXPORTED_OUTPUTS = ("probability", "heatmap", "embedding")

_LEAST = np.full(1, 1e-12, np.float32)
"""Lower limit of divisors."""

_LOGGER = logging.getLogger(__name__)
INT8_TABLE = "int8"
"""Name of the bundle's table of activation ranges for int8."""


@dataclass(frozen=True, slots=True)
class PredictionNodes(Generic[Node]):
    """The nodes of `EXPORTED_OUTPUTS`, and the side of the heatmap."""

    probability: Node
    heatmap: Node
    embedding: Node
    side: int

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        """The nodes in the order of `EXPORTED_OUTPUTS`."""
        return self.probability, self.heatmap, self.embedding


def write_prediction(
    to: Writer[Node], manifest: BundleManifest, networks: Sequence[NetworkArrays], pixels: Node
) -> PredictionNodes[Node]:
    """Write the graph from grey pixels, uint8 (n, h, w) of any size, to `EXPORTED_OUTPUTS`.

    The probability (n,) is calibrated. The heatmap (n, m, m) is Grad-CAM on the network's coarse
    grid, scaled to a peak of 1, and all 0 where nothing indicates pneumonia. The embedding is
    (n, c).
    """
    config = manifest.preprocessing
    grey = to.combine("divide", to.as_float(pixels), _number(to, 255.0))
    images = _normalise(to, _fit(to, grey, config), config)
    outputs = write_average(to, networks, images, config.size, flip=manifest.flip)
    cam = outputs.cam
    straight = to.combine("multiply", outputs.logit, _number(to, manifest.calibration.slope))
    shifted = to.combine("add", straight, _number(to, manifest.calibration.intercept))
    peak = to.combine("maximum", to.reduce("max", cam, (1, 2), keep=True), to.constant(_LEAST))
    heatmap = to.combine("divide", cam, peak)
    return PredictionNodes(to.apply("sigmoid", shifted), heatmap, outputs.embedding, outputs.side)


def _number(to: Writer[Node], value: float) -> Node:
    return to.constant(np.full(1, value, np.float32))


def _fit(to: Writer[Node], grey: Node, config: PreprocessConfig) -> Node:
    """Resize grey (n, h, w) to the square (n, size, size), as `Preprocessor.grey` does."""
    size = _number(to, config.size)
    height, width = to.length(grey, 1), to.length(grey, 2)
    rows, columns = size, size
    if config.fit == "pad":
        longest = to.combine("maximum", height, width)
        rows, columns = (_shown(to, side, longest, size) for side in (height, width))
    above = _taps(to, height, rows, config.size)
    beside = _taps(to, width, columns, config.size, turned=True)
    return to.product(to.product(above, grey), beside)


def _shown(to: Writer[Node], side: Node, longest: Node, size: Node) -> Node:
    """Pixels of the square that a side of the image takes: its share, rounded, at least 1."""
    share = to.combine("divide", to.combine("multiply", side, size), longest)
    return to.combine("maximum", to.apply("round", share), _number(to, 1.0))


def _taps(to: Writer[Node], length: Node, shown: Node, size: int, *, turned: bool = False) -> Node:
    """The matrix (size, length) that resizes one side; (length, size) if `turned`.

    Row i holds the weights of the source pixels in target pixel i. They form a triangle around the
    target's position in the source, as wide as the reduction and at least one pixel, with sum 1
    (bilinear with antialiasing, as in Pillow). Rows in the margin of a padded side are 0.
    """
    target_axis, source_axis = ((1, -1), (-1, 1)) if turned else ((-1, 1), (1, -1))
    margin = to.combine("subtract", _number(to, size), shown)
    first = to.apply("floor", to.combine("divide", margin, _number(to, 2.0)))
    middles = np.arange(size, dtype=np.float32).reshape(target_axis) + np.float32(0.5)
    place = to.combine("subtract", to.constant(middles), first)
    step = to.combine("divide", length, shown)
    reach = to.combine("maximum", step, _number(to, 1.0))
    source = to.reshape(to.counted(length), source_axis)
    source = to.combine("add", source, _number(to, 0.5))
    distance = to.apply("abs", to.combine("subtract", source, to.combine("multiply", place, step)))
    near = to.combine("subtract", _number(to, 1.0), to.combine("divide", distance, reach))
    weights = to.apply("relu", near)
    total = to.reduce("sum", weights, (0,) if turned else (1,), keep=True)
    weights = to.combine("divide", weights, to.combine("maximum", total, to.constant(_LEAST)))
    inside = to.combine(
        "multiply",
        to.apply("step", place),
        to.apply("step", to.combine("subtract", shown, place)),
    )
    return to.combine("multiply", weights, inside)


def _normalise(to: Writer[Node], square: Node, config: PreprocessConfig) -> Node:
    """Normalise the square (n, size, size) to the network's channels (n, 3, size, size)."""
    one = to.reshape(square, (-1, 1, config.size, config.size))
    if config.normalisation == "imagenet":
        mean, deviation = (_per_channel(each) for each in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        centred = to.combine("subtract", one, to.constant(mean))
        return to.combine("divide", centred, to.constant(deviation))
    centred = to.combine("subtract", one, to.reduce("mean", one, (2, 3), keep=True))
    squares = to.combine("multiply", centred, centred)
    deviation_of = to.apply("sqrt", to.reduce("mean", squares, (2, 3), keep=True))
    held = to.combine("maximum", deviation_of, _number(to, LEAST_DEVIATION))
    standard = to.combine("divide", centred, held)
    return to.concatenate([standard] * 3, 1)


def _per_channel(values: Sequence[float]) -> Float32Array:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def build_inference_graph(network: Any) -> Any:
    """A model from images (n, s, s, 3) to `logit` (n,), `cam` (n, h, w) ≥ 0, `embedding` (n, c).

    The map is Grad-CAM of the pneumonia logit, unscaled; the embedding is the pooled features.
    """
    keras = load_keras()
    feature_map = network.get_layer(POOL_LAYER).input
    logit, cam, embedding = _closed_form_head(network)(feature_map)
    return keras.Model(
        network.input, {"logit": logit, "cam": cam, "embedding": embedding}, name="inference"
    )


def _closed_form_head(network: Any) -> Any:
    keras = load_keras()
    ops = keras.ops
    hidden, hidden_bias = network.get_layer(HIDDEN_LAYER).get_weights()
    output, output_bias = network.get_layer(OUTPUT_LAYER).get_weights()

    class ClosedFormHead(keras.layers.Layer):  # type: ignore[misc, name-defined]
        """The head and its gradient in closed form."""

        def build(self, input_shape: Any) -> None:
            self.hidden = self._constant(hidden)
            self.hidden_bias = self._constant(hidden_bias)
            self.output_kernel = self._constant(output)
            self.output_bias = self._constant(output_bias)

        def _constant(self, value: np.ndarray[Any, Any]) -> Any:
            weight = self.add_weight(shape=value.shape, initializer="zeros", trainable=False)
            weight.assign(value)
            return weight

        def call(self, feature_map: Any) -> tuple[Any, Any, Any]:
            positions = feature_map.shape[1] * feature_map.shape[2]
            embedding = ops.mean(feature_map, axis=(1, 2))
            before = ops.matmul(embedding, self.hidden) + self.hidden_bias
            logit = ops.matmul(ops.relu(before), self.output_kernel) + self.output_bias
            active = ops.cast(before > 0, before.dtype)
            through = active * ops.transpose(self.output_kernel)
            gradient = ops.matmul(through, ops.transpose(self.hidden)) / positions
            weighed = ops.sum(feature_map * gradient[:, None, None, :], axis=-1)
            return logit[:, 0], ops.relu(weighed), embedding

    return ClosedFormHead(name="closed_form_head")


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


def load_model(model: Path | str = "default") -> Any:
    """The trained network as a Keras model.

    It maps preprocessed images, float32 (n, size, size, 3), to probabilities of pneumonia before
    calibration, (n, 1). `Predictor.preprocess` makes its input. The networks of an ensemble, and
    the mirror image of a bundle with `flip`, are averaged in it.

    Args:
        model: a bundle folder, a run folder, or `default`.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
        ExtraMissingError: Keras is not installed.

    Examples:
        >>> model = load_model(run.folder)
        >>> model.predict(predictor.preprocess(image), verbose=0).shape
        (1, 1)
    """
    bundle = load_bundle(model)
    networks = load_networks(bundle)
    flip = bundle.manifest.flip
    if len(networks) == 1 and not flip:
        return networks[0]
    keras = load_keras()
    images = keras.Input(networks[0].input_shape[1:])
    # All networks have the same name, and the parts of a model may not.
    members = [
        keras.Model(network.input, network.output, name=f"member_{number}")
        for number, network in enumerate(networks)
    ]
    passes = [member(images) for member in members]
    if flip:
        mirrored = keras.ops.flip(images, axis=2)
        passes += [member(mirrored) for member in members]
    return keras.Model(images, keras.layers.Average()(passes), name="ensemble")
