"""Extractors: what is computed once per view, as rows for the feature store on disk.

An extractor computes the frozen part of the network (`EngineExtractor` by OpenVINO,
`KerasExtractor`) or stores the decoded image (`SquareExtractor`). Its fingerprint is part of the
cache key, so rows of different engines never mix.

`training_ranges` measures the activation ranges that int8 needs on some training images. The ranges
are cached, so a repeated run gets the same ranges without another pass.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_frozen_part, capabilities, version
from pneumoscope.graph.runner import (
    Runner,
    count_convolutions,
    images_per_request,
    measure_ends,
    ranges_between,
)
from pneumoscope.graph.writer import Floats, Ranges, fast_here
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.records import ImageRecord, evenly_spread
from pneumoscope.training.backbones import arrays_of
from pneumoscope.training.features import BATCH, ArrayStore, Extractor, read_listed
from pneumoscope.training.network import build_feature_model, build_trunk
from pneumoscope.training.runtime import describe_runtime, has_gpu

Measure = Callable[[NetworkArrays, Floats], Ranges | None]
"""Measures a backbone's activation ranges for int8, computing in these floats; `None` where no
image can be read."""

_LOGGER = logging.getLogger(__name__)
MOST_IMAGES = 96
"""Images measured, in full batches. Ends are means over images and hardly change beyond it."""


def frozen_extractor(
    backbone: Any, boundary: str | None, precision: str, measure: Measure | None = None
) -> Extractor:
    """The fastest extractor of a frozen part: Keras on a GPU, else OpenVINO.

    Args:
        backbone: made by `build_backbone`.
        boundary: name of the layer where the frozen part ends; `None` for pooled features.
        precision: `f32`, `bf16`, `int8`, or `auto`, the fastest that the processor supports. int8
            applies to pooled features only, and needs `measure`. Activations at a boundary are
            computed in bfloat16 or float32, because training continues from them. A GPU computes
            in float32 whatever it is.
        measure: measures the activation ranges for int8.
    """
    if has_gpu():
        if precision in ("bf16", "int8"):
            _LOGGER.warning(
                "features: found %r and a GPU, on which features are computed in float32. To "
                "compute them on the processor, hide the GPU: CUDA_VISIBLE_DEVICES=",
                precision,
            )
        return KerasExtractor(backbone, boundary)
    fast = fast_here(capabilities())
    faster = next(p for p in reversed(fast) if p != "int8")
    floats: Floats = "bf16" if precision != "f32" and "bf16" in (precision, faster) else "f32"
    wanted = precision == "int8" or (precision == "auto" and "int8" in fast)
    ranges = measure(arrays_of(backbone), floats) if wanted and measure and not boundary else None
    return EngineExtractor(backbone, boundary, floats, ranges)


class _FrozenPart:
    """Common part of both engines: half-precision rows of preprocessed images.

    Args:
        engine: name, version and precision of the engine.
        backbone: made by `build_backbone`.
        boundary: name of the layer behind which training begins; `None` for pooled features.
        shape: shape of a row.
    """

    kind = "<f2"

    def __init__(
        self, engine: str, backbone: Any, boundary: str | None, shape: tuple[int, ...]
    ) -> None:
        self.shape = shape
        self.noun = "features" if boundary is None else f"activations ({boundary})"
        self._fingerprint = f"{engine} {arrays_of(backbone).digest()} {boundary or ''}".rstrip()

    @property
    def fingerprint(self) -> str:
        """Engine, version, precision, digest of plan and weights, boundary."""
        return self._fingerprint

    def prepare(self, square: NDArray[np.float32], preprocessor: Preprocessor) -> NDArray[Any]:
        """The network's input, float32 (size, size, 3)."""
        return preprocessor.normalise(square)


class EngineExtractor(_FrozenPart):
    """Pooled features of a frozen backbone, or its activations at `boundary`, by OpenVINO.

    Args:
        backbone: made by `build_backbone` for a fixed size.
        boundary: name of the layer behind which training begins; `None` for pooled features.
        precision: floating-point type of the computation; rows are stored in half precision.
        ranges: activation ranges; if given, convolutions are computed in int8.
    """

    def __init__(
        self,
        backbone: Any,
        boundary: str | None = None,
        precision: Floats = "f32",
        ranges: Ranges | None = None,
    ) -> None:
        arrays, size = arrays_of(backbone), backbone.input_shape[1]

        def build(images: int) -> Any:
            return build_frozen_part(arrays, size, images, boundary, ranges)

        # Compiled on first use: it takes seconds, and is not needed if all rows are in the store.
        part = images_per_request(size, "int8" if ranges else precision)
        self._runner = Runner(build, ("rows",), precision, part=part)
        shape = tuple(build(1).output(0).shape)[1:]
        engine = f"openvino {version()} {precision}"
        if ranges is not None:
            engine += f" int8 {_digest(ranges)}"
        super().__init__(engine, backbone, boundary, shape)

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Rows, float32 (n, *shape), of a batch, float32 (n, size, size, 3), with n = `BATCH`."""
        return self._runner(batch)[0]


def _digest(ranges: Ranges) -> str:
    """SHA-256, hex, over both ends of every range."""
    return hashlib.sha256(ranges.low.tobytes() + ranges.high.tobytes()).hexdigest()


class KerasExtractor(_FrozenPart):
    """The same as `EngineExtractor`, computed by Keras in float32.

    Args:
        backbone: made by `build_backbone`.
        boundary: name of the layer behind which training begins; `None` for pooled features.
    """

    def __init__(self, backbone: Any, boundary: str | None = None) -> None:
        self._model = (
            build_feature_model(backbone) if boundary is None else build_trunk(backbone, boundary)
        )
        self._lock = threading.Lock()
        shape = tuple(self._model.output.shape[1:])
        super().__init__(f"{describe_runtime()} f32", backbone, boundary, shape)

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Rows, float32 (n, *shape), of a batch, float32 (n, size, size, 3)."""
        with self._lock:
            out = self._model.predict_on_batch(batch)
        return np.asarray(out, np.float32)


class SquareExtractor:
    """The decoded and resized image, uint8, stored so that no epoch decodes a file again."""

    kind = "u1"
    noun = "decoding"
    fingerprint = "squares u1"

    def __init__(self, size: int) -> None:
        self.shape: tuple[int, ...] = (size, size)

    def prepare(self, square: NDArray[np.float32], preprocessor: Preprocessor) -> NDArray[Any]:
        """Grey values from 0 to 255, rounded."""
        squares: NDArray[Any] = np.rint(square * 255.0).astype(np.uint8)
        return squares

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The batch, unchanged."""
        return batch


def training_ranges(
    records: Sequence[ImageRecord],
    preprocess: PreprocessConfig,
    cache: Path,
    network: NetworkArrays,
    floats: Floats,
) -> Ranges | None:
    """Measure the activation ranges for int8 on evenly spaced, un-augmented training images.

    Args:
        records: the training images.
        preprocess: how they are preprocessed.
        cache: cache folder.
        network: the backbone's arrays.
        floats: floating-point type used while measuring.

    Returns:
        The ranges; `None` where none of the images can be read.

    Raises:
        InputError: the network outputs non-finite numbers.
        OSError: the cache can't be written.
    """
    preprocessor = Preprocessor(preprocess)
    some = evenly_spread(records, MOST_IMAGES)
    shape = (2, count_convolutions(network, preprocess.size))
    store = ArrayStore(cache / "features" / f"ranges-{shape[1]}", "<f4", shape)
    key = _key(some, preprocessor, network, floats)
    if key not in store:
        batches = list(_batches(some, preprocessor))
        if not batches:
            return None
        _LOGGER.debug("ranges for int8: measured on %d images", len(some))
        store.add([key], measure_ends(network, preprocess.size, batches, floats)[None])
    return ranges_between(store.take([key])[0])


def _key(
    records: Sequence[ImageRecord],
    preprocessor: Preprocessor,
    network: NetworkArrays,
    floats: Floats,
) -> bytes:
    parts = (version(), floats, preprocessor.fingerprint(), network.digest())
    images = (record.sha256 for record in records)
    return hashlib.sha256("|".join((*parts, *images)).encode()).digest()


def _batches(
    records: Sequence[ImageRecord], preprocessor: Preprocessor
) -> Iterator[NDArray[np.float32]]:
    """Preprocessed images in batches of exactly `BATCH`; the last batch is padded."""
    images: list[NDArray[Any]] = []
    for record in records:
        try:
            images.append(preprocessor.normalise(preprocessor.grey(read_listed(record).pixels)))
        except ImageRefusedError:  # reported when the features are computed
            continue
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        yield np.stack(part + [part[-1]] * (BATCH - len(part)))
