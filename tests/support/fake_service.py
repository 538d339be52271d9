"""A model for the server that is none: its output is the mean grey, and it can be made to wait."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope.config import LimitsConfig, PreprocessConfig, ServeConfig
from pneumoscope.delivery.rest.app import build_app
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32),
    threshold=OperatingPoint(0.5, "for the test", "nothing"),
    calibration=Calibration("none", 1.0, 0.0),
    validation={"curves": {"histogram": {"normal": [9, 1], "pneumonia": [1, 9]}}},
)


LIMITS = LimitsConfig(max_pixels=4_000_000)


class MeanBackend:
    """Logit: the mean of the input's first channel.

    Attributes:
        gate: closed, every image waits.
        begun: how many came to the engine.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0

    def run(self, batch: np.ndarray) -> Outputs:
        self.begun += 1
        assert self.gate.wait(30)
        means = batch[..., 0].mean((1, 2)).astype(np.float32)
        cams = np.arange(4 * len(batch), dtype=np.float32).reshape(-1, 2, 2)
        return Outputs(means, cams, np.zeros((len(batch), 4), np.float32))


def fake_predictor(backend: MeanBackend | None = None) -> Predictor:
    return Predictor(MANIFEST, backend or MeanBackend())


def fake_app(backend: MeanBackend | None = None, keys: tuple[str, ...] = (), **limits: Any) -> Any:
    """The whole application around the fake model."""
    return build_app(fake_predictor(backend), ServeConfig(**limits), LIMITS, keys)


def xray_png(level: int = 120, side: int = 48) -> bytes:
    """A picture that can be scored."""
    grey = np.full((side, side - 8), level, np.uint8)
    grey[side // 4 : side // 2, 8 : side // 2] += 20
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()
