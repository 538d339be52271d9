"""Images of many threads run together: each has its own answer, or its own error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pneumoscope.delivery.rest.gather import SIZES, GatheringBackend
from pneumoscope.inference.backends import Outputs

BAD = -1.0


class SlowBackend:
    """Logit: the mean. Waits until enough threads wait for it; refuses batches with a bad image."""

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
        if (means == BAD).any():
            raise RuntimeError("bad")
        ones = np.ones((len(batch), 2, 2), np.float32)
        return Outputs(means, ones * means[:, None, None], ones[:, 0] * means[:, None])


def image(value: float) -> np.ndarray:
    return np.full((1, 4, 4, 3), value, np.float32)


def gathered(values: list[float]) -> tuple[list[object], SlowBackend]:
    """What each of as many threads gets that ask while the engine is busy with a first one."""
    inner = SlowBackend()
    backend = GatheringBackend(inner)

    def ask(value: float) -> object:
        try:
            return float(backend.run(image(value)).logits[0])
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(len(values) + 1) as pool:
        first = pool.submit(ask, 1000.0)
        while inner.threads == 0:
            pass
        asked = [pool.submit(ask, value) for value in values]
        while len(backend._waiting) < len(values):
            pass
        inner.gate.set()
        assert first.result() == 1000.0
        return [future.result() for future in asked], inner


def test_each_gets_its_own_answer_from_few_passes() -> None:
    values = [float(k) for k in range(30)]
    found, inner = gathered(values)
    assert found == values
    assert inner.sizes == [1, 16, 8, 4, 1, 1]


def test_an_error_is_that_of_its_image_and_no_one_waits_for_ever() -> None:
    values = [BAD if k == 2 else float(k) for k in range(8)]
    found, _ = gathered(values)
    assert found == ["bad" if value == BAD else value for value in values]


def test_whole_batches_pass_through_and_sizes_are_made_ready() -> None:
    inner = SlowBackend()
    inner.gate.set()
    backend = GatheringBackend(inner)
    batch = np.concatenate([image(1.0), image(2.0), image(3.0)])
    assert backend.run(batch).logits.tolist() == [1.0, 2.0, 3.0]
    backend.warm_up(4)
    assert inner.sizes == [3, *SIZES]
    with pytest.raises(RuntimeError):
        backend.run(image(BAD))
    assert backend.run(image(5.0)).cams.shape == (1, 2, 2)
