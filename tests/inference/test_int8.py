"""int8: ranges in a table give nearly the same outputs; NNCF measures them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.openvino import build_model, convolutions_of
from pneumoscope.graph.writer import Ranges, largest_per_output
from pneumoscope.inference import engine
from pneumoscope.inference.bundle import Bundle, write_revised
from pneumoscope.inference.certificates import PrecisionCertificate, measure_ranges
from pneumoscope.inference.engine import INT8_TABLE, OpenVinoBackend
from pneumoscope.inference.predictor import Predictor
from support.small_bundle import small_bundle

SIZE = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "model", size=SIZE)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((8, SIZE, SIZE, 3)).astype(np.float32)


def networks(bundle: Bundle) -> list[Any]:
    return [read_network(path, bundle.manifest.architecture) for path in bundle.weights]


def wide(bundle: Bundle, high: float) -> Ranges:
    """From 0 to `high` for every convolution but the first, whose input is below 0 too."""
    count = len(convolutions_of(build_model(networks(bundle), SIZE, 1)))
    low, ends = np.zeros(count, np.float32), np.full(count, high, np.float32)
    low[0] = ends[0] = np.nan
    return Ranges(low, ends)


def test_a_graph_with_ranges_rounds_every_convolution_that_has_one(bundle: Bundle) -> None:
    ranges = wide(bundle, 6.0)
    rounded = convolutions_of(build_model(networks(bundle), SIZE, 1, ranges=ranges))
    kinds = [[n.input_value(k).get_node().get_type_name() for k in (0, 1)] for n in rounded]
    assert "FakeQuantize" not in kinds[0]
    assert kinds[1:] == [["FakeQuantize", "FakeQuantize"]] * (len(ranges.low) - 1)
    assert len(kinds) > 4


def test_int8_predicts_nearly_alike_and_ranges_decide(bundle: Bundle, images: np.ndarray) -> None:
    exact = OpenVinoBackend(networks(bundle), SIZE).run(images)
    near = OpenVinoBackend(networks(bundle), SIZE, ranges=wide(bundle, 6.0))
    assert near.precision == "int8"
    found = near.run(images)
    scale = float(np.abs(exact.embeddings).max())
    apart = np.abs(found.embeddings - exact.embeddings).max()
    assert 0 < apart < 0.1 * scale
    narrow = OpenVinoBackend(networks(bundle), SIZE, ranges=wide(bundle, 0.1)).run(images)
    assert np.abs(narrow.embeddings - exact.embeddings).max() > 5 * apart


def test_nncf_measures_ranges_on_the_images(bundle: Bundle, images: np.ndarray) -> None:
    pytest.importorskip("nncf")
    found = measure_ranges(networks(bundle), SIZE, images, flip=False)
    finite = np.isfinite(found.low)
    assert len(found.low) == len(wide(bundle, 1.0).low)
    assert finite.sum() >= len(found.low) - 1
    assert (found.low[finite] < found.high[finite]).all()
    larger = measure_ranges(networks(bundle), SIZE, 2 * images, flip=False)
    assert (larger.high[finite] > found.high[finite]).mean() > 0.5
    exact = OpenVinoBackend(networks(bundle), SIZE).run(images)
    rounded = OpenVinoBackend(networks(bundle), SIZE, ranges=found).run(images)
    assert np.abs(rounded.logits - exact.logits).max() < 0.2 * max(1.0, float(np.ptp(exact.logits)))


def test_ranges_go_through_a_bundles_table(bundle: Bundle, tmp_path: Path) -> None:
    ranges = wide(bundle, 6.0)
    written = write_revised(
        tmp_path / "model", bundle, bundle.manifest, "card", {INT8_TABLE: ranges.as_table()}
    )
    table = written.table(INT8_TABLE)
    assert table is not None
    found = Ranges.from_table(table)
    np.testing.assert_array_equal(found.low, ranges.low)
    np.testing.assert_array_equal(found.high, ranges.high)
    again = write_revised(tmp_path / "none", written, bundle.manifest, "card", {INT8_TABLE: None})
    assert again.table(INT8_TABLE) is None


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"low": np.zeros(3)},
        {"low": np.zeros(3), "high": np.ones(2)},
        {"low": np.ones(3), "high": np.ones(3)},
        {"low": np.array([0.0, np.nan]), "high": np.ones(2)},
    ],
)
def test_a_table_of_something_else_is_rejected(table: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="int8"):
        Ranges.from_table(table)


def test_ranges_of_another_network_are_rejected(bundle: Bundle) -> None:
    ranges = wide(bundle, 6.0)
    with pytest.raises(BundleError, match="found ranges of"):
        build_model(networks(bundle), SIZE, 1, ranges=Ranges(ranges.low[1:], ranges.high[1:]))


def test_a_kernel_of_zeros_has_a_width_all_the_same() -> None:
    kernel = np.zeros((2, 3, 1, 1), np.float32)
    kernel[1, 2] = -4.0
    np.testing.assert_array_equal(largest_per_output(kernel).ravel(), [1.0, 4.0])


def test_a_bundle_runs_in_what_it_is_certified_for(
    bundle: Bundle, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "fast_precisions", lambda: ("f32", "int8"))
    assert Predictor.load(bundle.folder).precision == "f32"
    with pytest.raises(UsageError, match="no certificate"):
        Predictor.load(bundle.folder, "int8")
    passed = replace(bundle.manifest, certificates=(PrecisionCertificate("int8", "f32"),))
    without = write_revised(tmp_path / "without", bundle, passed, "card")
    with pytest.raises(BundleError, match="has no int8 table"):
        Predictor.load(without.folder)
    table = {INT8_TABLE: wide(bundle, 6.0).as_table()}
    certified = write_revised(tmp_path / "with", bundle, passed, "card", table)
    assert Predictor.load(certified.folder).precision == "int8"
    assert Predictor.load(certified.folder, "f32").precision == "f32"
    rounded = OpenVinoBackend.load(certified, "auto").run(images)
    exact = OpenVinoBackend.load(certified).run(images)
    assert np.abs(rounded.logits - exact.logits).max() > 0
