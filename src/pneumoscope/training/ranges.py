"""How far a frozen backbone's activations reach on its training images, for features in int8.

Comes in: training records, how they are preprocessed, the backbone's arrays. Goes out: `Ranges`,
kept in the cache, so that the same run finds the same ones without a pass. Knows no engine.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.graph.measured import count_convolutions, measure_ends, ranges_between
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import version
from pneumoscope.graph.precision import Floats, Ranges
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.records import ImageRecord
from pneumoscope.training.features import BATCH, read_listed
from pneumoscope.training.store import ArrayStore

_LOGGER = logging.getLogger(__name__)

MOST_IMAGES = 96
"""Images that are looked at: whole batches, and ends are means, which hardly move behind it."""


def training_ranges(
    records: Sequence[ImageRecord],
    preprocess: PreprocessConfig,
    cache: Path,
    network: NetworkArrays,
    floats: Floats,
) -> Ranges | None:
    """The ranges for int8 on some of `records`, evenly spread, as they are.

    Args:
        records: of the training images.
        preprocess: how they are preprocessed.
        cache: folder for what is computed once.
        network: the backbone's arrays.
        floats: what is computed in while they are measured.

    Returns:
        The ranges; `None` where none of the images can be read.

    Raises:
        InputError: the network yields what is no finite number.
        OSError: the cache can't be written.
    """
    preprocessor = Preprocessor(preprocess)
    step = max(len(records) / MOST_IMAGES, 1.0)
    some = [records[int(k * step)] for k in range(min(len(records), MOST_IMAGES))]
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
    digest = hashlib.sha256(f"{version()} {floats} {preprocessor.fingerprint()}".encode())
    for record in records:
        digest.update(f"|{record.sha256}".encode())
    for name, arrays in sorted(network.layers.items()):
        digest.update(name.encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _batches(
    records: Sequence[ImageRecord], preprocessor: Preprocessor
) -> Iterator[NDArray[np.float32]]:
    """Preprocessed images in batches of exactly `BATCH`; the last one is filled up."""
    images: list[NDArray[Any]] = []
    for record in records:
        try:
            images.append(preprocessor.normalise(preprocessor.grey(read_listed(record).pixels)))
        except ImageRefusedError:  # computing the features tells of it
            continue
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        yield np.stack(part + [part[-1]] * (BATCH - len(part)))
