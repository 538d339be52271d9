"""Statistics of drawn chest X-rays, and a backend whose embeddings are coarse thumbnails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pneumoscope.config import PreprocessConfig
from pneumoscope.images.phantom import draw
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.input_check import (
    Statistics,
    choose_limits,
    describe_image,
    fit_statistics,
)

SIDE = 64
KNOWN = BundleManifest(preprocessing=PreprocessConfig(size=SIDE))


def drawn_images(count: int, first: int = 0) -> Iterator[np.ndarray]:
    """Drawn chest X-rays of guests from number `first` on, normal and with pneumonia in turns."""
    for k in range(first, first + count):
        yield draw(1, f"guest-{k}", number=1, label=k % 2, size=SIDE).pixels


def coarse(batch: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) to embeddings (n, 16)."""
    step = batch.shape[1] // 4
    means = batch[..., 0].reshape(len(batch), 4, step, 4, step).mean((2, 4))
    return np.asarray(means.reshape(len(batch), 16), np.float32)


class CoarseBackend:
    """Logit: the mean of the input's first channel; embedding: `coarse`."""

    precision = "f32"

    def run(self, batch: np.ndarray) -> Outputs:
        logits = batch[..., 0].mean((1, 2)).astype(np.float32)
        return Outputs(logits, np.ones((len(batch), 2, 2), np.float32), coarse(batch))


def known_images(count: int = 80, held_out: int = 40) -> Statistics:
    """What drawn images look like; limits let all but one in a hundred of others pass."""
    prepare = Preprocessor(KNOWN.preprocessing)
    looks, rows = [], []
    for image in drawn_images(count + held_out):
        looks.append(describe_image(prepare.grey(image)))
        rows.append(prepare(image))
    embeddings = coarse(np.stack(rows))
    labels = np.arange(count) % 2
    gaussians = fit_statistics(looks[:count], embeddings[:count], labels)
    whole = Statistics(gaussians, dict.fromkeys(gaussians, 1.0))
    distances = whole.shares(looks[count:], embeddings[count:])
    return Statistics(gaussians, choose_limits(distances, 0.01, held_out))
