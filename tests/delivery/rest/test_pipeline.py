"""Images of many requests in passes: each has its own result, or its own error."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.rest import pipeline as module
from pneumoscope.delivery.rest.pipeline import PASSES, Pipeline
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from support.fake_service import MANIFEST, xray_png

FLAWED = 20
"""Grey of the image that the engine can't score."""


class SlowBackend:
    """Logit: the mean. Waits at a gate; fails with a pass that holds the flawed image."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads = 0
        self.gate = threading.Event()

    def run(self, batch: np.ndarray) -> Outputs:
        self.threads += 1
        assert self.threads == 1, "two threads at once"
        assert self.gate.wait(30)
        self.sizes.append(len(batch))
        self.threads -= 1
        means = batch.mean((1, 2, 3)).astype(np.float32)
        if FLAWED in self.levels(batch):
            raise RuntimeError("flawed")
        ones = np.ones((len(batch), 2, 2), np.float32)
        return Outputs(means, ones, ones[:, 0])

    def levels(self, batch: np.ndarray) -> list[int]:
        """The grey of each image's upper left corner, out of ImageNet's red."""
        greys = np.round((batch[:, 0, 0, 0] * 0.229 + 0.485) * 255)
        return [int(grey) for grey in greys]


def pipeline_of(backend: SlowBackend, readers: int = 2) -> tuple[Pipeline, Predictor]:
    predictor = Predictor(MANIFEST, backend)
    return Pipeline(predictor.adapted(LimitsConfig(), PASSES), readers), predictor


def test_each_gets_its_own_result_from_few_passes() -> None:
    backend = SlowBackend()
    pipeline, predictor = pipeline_of(backend)
    images = [xray_png(40 + 5 * k) for k in range(30)]
    first = pipeline.submit(images[0], "first")
    while backend.threads == 0:
        time.sleep(0.001)
    asked = [pipeline.submit(image, f"{k}") for k, image in enumerate(images)]
    backend.gate.set()
    assert first.result(30).prediction.path == "first"
    results = [future.result(30).prediction for future in asked]
    assert backend.sizes == [1, 16, 8, 4, 1, 1]
    assert results == [predictor.predict_bytes(f, f"{k}").prediction for k, f in enumerate(images)]


def test_a_pass_waits_for_images_that_are_being_read_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = SlowBackend()
    backend.gate.set()
    pipeline, _ = pipeline_of(backend)
    prepare = Predictor.prepare_bytes
    seconds = 0.01

    def slowly(self: Predictor, content: bytes, name: str, **how: bool) -> object:
        time.sleep(seconds)
        return prepare(self, content, name, **how)

    monkeypatch.setattr(Predictor, "prepare_bytes", slowly)
    monkeypatch.setattr(module, "LONGEST_WAIT", 30.0)
    wait(pipeline.submit(xray_png(), f"{k}") for k in range(16))
    assert backend.sizes == [16]
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    seconds = 0.5
    wait(pipeline.submit(xray_png(), f"{k}") for k in range(8))
    assert max(backend.sizes[1:]) < 8


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever never stops asking must not make a queue grow."""
    backend = SlowBackend()
    backend.gate.set()
    pipeline, _ = pipeline_of(backend)
    submitted = 0
    submit = pipeline._engine.submit

    def counted(*work: Any) -> Future[Any]:
        nonlocal submitted
        submitted += 1
        return submit(*work)

    monkeypatch.setattr(pipeline._engine, "submit", counted)
    futures = [pipeline.submit(xray_png(), f"{k}") for k in range(200)]
    wait(futures, 30)
    assert all(future.done() for future in futures)
    assert submitted <= len(backend.sizes)
    assert pipeline._engine._work_queue.qsize() == 0


def test_an_error_is_that_of_its_image_and_no_one_waits_for_ever() -> None:
    backend = SlowBackend()
    pipeline, _ = pipeline_of(backend)
    levels = [FLAWED if k == 2 else 60 + k for k in range(8)]
    asked = [pipeline.submit(xray_png(level), f"{level}") for level in levels]
    asked.append(pipeline.submit(b"text", "text"))
    backend.gate.set()
    assert [outcome(future) for future in asked] == [
        "flawed" if level == FLAWED else "ok" for level in levels
    ] + ["refused"]


def outcome(future: Future[Result]) -> str:
    try:
        return future.result(30).prediction.status
    except RuntimeError as error:
        return str(error)


def test_a_defect_of_a_reader_reaches_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SlowBackend()
    backend.gate.set()
    pipeline, _ = pipeline_of(backend)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "prepare_bytes", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.submit(xray_png(), "image").result(30)
    assert pipeline.submit(xray_png(), "image").result(30).prediction.status == "ok"
    assert backend.sizes == [1]


def test_what_is_cancelled_or_comes_after_the_end_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = SlowBackend()
    pipeline, _ = pipeline_of(backend, readers=1)
    read: list[str] = []
    going = threading.Event()

    def prepare(_: Predictor, content: bytes, name: str, **how: bool) -> object:
        read.append(name)
        assert going.wait(30)
        raise KeyError(name)

    monkeypatch.setattr(Predictor, "prepare_bytes", prepare)
    first, second, third = (pipeline.submit(xray_png(), name) for name in "abc")
    while not read:
        time.sleep(0.001)
    assert not first.cancel()
    assert second.cancel()
    pipeline.close()
    going.set()
    wait([first, third], 30)
    assert third.cancelled()
    assert read == ["a"]


def test_sizes_are_made_ready() -> None:
    backend = SlowBackend()
    backend.gate.set()
    predictor = Predictor(MANIFEST, backend).adapted(LimitsConfig(), PASSES)
    predictor.warm_up()
    assert backend.sizes == list(reversed(PASSES))
