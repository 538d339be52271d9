"""A batch is split into parallel requests without changing the results."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pneumoscope.graph.openvino import OpenVinoWriter
from pneumoscope.graph.runner import PART, Runner, images_per_request

built: list[int] = []


def doubled_and_summed(images: int) -> Any:
    built.append(images)
    to = OpenVinoWriter()
    given = to.parameter((images, 3), np.float32, "images")
    twice = to.combine("multiply", given, to.constant(np.full(1, 2.0, np.float32)))
    return to.model(given, {"twice": twice, "sum": to.reduce("sum", given, (1,))})


@pytest.mark.parametrize("count", [1, PART - 1, PART, PART + 1, 4 * PART])
def test_any_batch_comes_out_in_order(count: int) -> None:
    built.clear()
    runner = Runner(doubled_and_summed, ("twice", "sum"), "f32")
    batch = np.random.default_rng(count).random((count, 3)).astype(np.float32)
    for _ in range(2):
        twice, total = runner(batch)
        np.testing.assert_allclose(twice, 2 * batch, rtol=1e-6)
        np.testing.assert_allclose(total, batch.sum(1), rtol=1e-6)
    assert built == [PART if count % PART == 0 else count]  # built once for any number of calls


def test_outputs_stay_when_others_come() -> None:
    runner = Runner(doubled_and_summed, ("twice",), "f32")
    (first,) = runner(np.ones((2 * PART, 3), np.float32))
    runner(np.zeros((2 * PART, 3), np.float32))
    np.testing.assert_array_equal(first, 2.0)


def test_many_may_ask_at_once() -> None:
    runner = Runner(doubled_and_summed, ("twice",), "f32")

    def ask(value: int) -> np.ndarray:
        return runner(np.full((2 * PART, 3), value, np.float32))[0]

    with ThreadPoolExecutor(8) as pool:
        for value, twice in enumerate(pool.map(ask, range(64))):
            np.testing.assert_array_equal(twice, 2 * value)


def test_smaller_batches_share_the_graph_of_larger_ones() -> None:
    built.clear()
    runner = Runner(doubled_and_summed, ("twice",), "f32")
    for count in (4 * PART, 2 * PART, PART, 3 * PART, 4 * PART, PART):
        batch = np.random.default_rng(count).random((count, 3)).astype(np.float32)
        np.testing.assert_allclose(runner(batch)[0], 2 * batch, rtol=1e-6)
    assert built == [PART, PART]  # one for parallel requests, one for a single request


def test_large_images_in_float32_come_in_smaller_requests() -> None:
    built.clear()
    part = images_per_request(224, "f32")
    assert (part, images_per_request(224, "int8"), images_per_request(112, "f32")) == (2, 4, 4)
    runner = Runner(doubled_and_summed, ("twice",), "f32", part=part)
    batch = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(runner(batch)[0], 2 * batch)
    assert built == [part]
