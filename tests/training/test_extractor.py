"""Extractors compute once per view what the network would compute in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph import runner
from pneumoscope.graph.runner import count_convolutions, measure_ends, ranges_between
from pneumoscope.graph.writer import Ranges
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.overlay import encode_png
from pneumoscope.records import ImageRecord
from pneumoscope.training import extractor as extractors
from pneumoscope.training.backbones import arrays_of, build_backbone
from pneumoscope.training.extractor import (
    EngineExtractor,
    KerasExtractor,
    SquareExtractor,
    frozen_extractor,
    training_ranges,
)
from pneumoscope.training.features import BATCH
from pneumoscope.training.network import build_tail, initialise_randomly
from support.heads import BACKBONE_WIDTH, BOUNDARIES
from support.small_network import small_network

PREPROCESSOR = Preprocessor(PreprocessConfig(size=64))


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def backbone_of(seed: int, name: str = "densenet121") -> Any:
    backbone = build_backbone(64, name)
    initialise_randomly(backbone, seed)
    return backbone


@pytest.fixture(scope="module")
def backbone(small: None) -> Any:
    return backbone_of(0)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    squares = np.random.default_rng(3).random((BATCH, 64, 64), np.float32)
    return PREPROCESSOR.normalise(squares)


@pytest.fixture(scope="module")
def ranges(backbone: Any, batch: np.ndarray) -> Ranges:
    return ranges_between(measure_ends(arrays_of(backbone), 64, [batch], "f32"))


@pytest.fixture(params=[KerasExtractor, EngineExtractor])
def made_by(request: pytest.FixtureRequest) -> type[KerasExtractor | EngineExtractor]:
    kind: type[KerasExtractor | EngineExtractor] = request.param
    return kind


def test_pooled_features_are_the_means_of_the_last_map(
    backbone: Any, batch: np.ndarray, made_by: type[KerasExtractor | EngineExtractor]
) -> None:
    extractor = made_by(backbone)
    assert (extractor.shape, extractor.kind, extractor.noun) == ((1024,), "<f2", "features")
    found = extractor(batch)
    assert found.dtype == np.float32
    wanted = np.asarray(backbone.predict_on_batch(batch)).mean((1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("block", "side"), [("conv5", 2), ("conv4", 4)])
def test_the_tail_goes_on_where_the_trunk_ends(
    backbone: Any,
    batch: np.ndarray,
    made_by: type[KerasExtractor | EngineExtractor],
    block: str,
    side: int,
) -> None:
    extractor = made_by(backbone, BOUNDARIES[block])
    assert extractor.shape == (side, side, 6)
    assert BOUNDARIES[block] in extractor.noun
    activations = extractor(batch)
    tail = build_tail(backbone, BOUNDARIES[block])
    whole = np.asarray(backbone.predict_on_batch(batch))
    assert whole.shape == (BATCH, 2, 2, BACKBONE_WIDTH)
    scale = np.abs(whole).max()
    exact = np.asarray(tail.predict_on_batch(activations))
    np.testing.assert_allclose(exact, whole, atol=1e-5 * scale)
    stored = activations.astype(np.float16).astype(np.float32)  # as the cache has them
    rounded = np.asarray(tail.predict_on_batch(stored))
    np.testing.assert_allclose(rounded, whole, atol=3e-3 * scale)


def test_an_image_is_the_same_in_any_batch(
    backbone: Any, batch: np.ndarray, made_by: type[KerasExtractor | EngineExtractor]
) -> None:
    """A resumed run computes the missing rows in other batches than an uninterrupted one.

    Keras on TensorFlow may share out a batch otherwise: on some processors the last bit differs.
    """
    extractor = made_by(backbone, BOUNDARIES["conv5"])
    first = extractor(batch)
    shifted = np.roll(extractor(np.roll(batch, 11, axis=0)), -11, axis=0)
    last_bits = 2e-7 * np.abs(first).max() if made_by is KerasExtractor else 0.0
    np.testing.assert_allclose(first, shifted, rtol=0, atol=last_bits)


def test_fingerprints_tell_weights_boundaries_and_engines_apart(backbone: Any) -> None:
    made = [
        kind(*arguments)
        for kind in (KerasExtractor, EngineExtractor)
        for arguments in (
            (backbone,),
            (backbone, BOUNDARIES["conv5"]),
            (backbone, BOUNDARIES["conv4"]),
            (backbone_of(1),),
            (backbone_of(1), BOUNDARIES["conv5"]),
            (backbone_of(0, "densenet121-stride16"),),  # the same weights
        )
    ]
    made.append(EngineExtractor(backbone, None, "bf16"))
    prints = [extractor.fingerprint for extractor in made]
    assert len(set(prints)) == len(prints)
    assert KerasExtractor(backbone_of(0)).fingerprint == prints[0]
    assert "keras" in prints[0]
    assert "openvino" in prints[-1]


@pytest.mark.parametrize(
    ("precision", "fast", "wanted"),
    [
        ("auto", ("f32", "bf16"), "bf16"),
        ("auto", ("bf16", "f32"), "f32"),
        ("auto", ("f32",), "f32"),
        ("f32", ("f32", "bf16", "int8"), "f32"),
        ("bf16", ("f32",), "bf16"),
        ("bf16", ("bf16", "f32", "int8"), "bf16"),
        ("auto", ("f32", "bf16", "int8"), "bf16 int8"),
        ("auto", ("bf16", "f32", "int8"), "f32 int8"),
        ("auto", ("f32", "int8"), "f32 int8"),
        ("int8", ("f32",), "f32 int8"),
    ],
)
def test_the_engine_is_chosen_by_the_machine(
    backbone: Any,
    ranges: Ranges,
    precision: str,
    fast: Any,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`fast` is in the order of speed, slowest first."""
    monkeypatch.setattr(extractors, "fast_here", lambda _: fast)
    monkeypatch.setattr(extractors, "has_gpu", lambda: False)
    found = frozen_extractor(backbone, None, precision, lambda *_: ranges)
    assert isinstance(found, EngineExtractor)
    assert f" {wanted} " in f"{found.fingerprint} "
    assert ("int8" in found.fingerprint) == ("int8" in wanted)
    # Never int8 without ranges, nor at a boundary.
    for other in (
        frozen_extractor(backbone, None, precision),
        frozen_extractor(backbone, None, precision, lambda *_: None),
        frozen_extractor(backbone, BOUNDARIES["conv5"], precision, lambda *_: ranges),
    ):
        assert "int8" not in other.fingerprint
    caplog.set_level("WARNING", logger="pneumoscope")
    monkeypatch.setattr(extractors, "has_gpu", lambda: True)
    found = frozen_extractor(backbone, None, precision, lambda *_: ranges)
    assert isinstance(found, KerasExtractor)
    asked = precision in ("bf16", "int8")
    assert (f"features: found {precision!r} and a GPU" in caplog.text) == asked


def test_int8_is_close_to_float_and_another_fingerprint(
    backbone: Any, batch: np.ndarray, ranges: Ranges
) -> None:
    exact, rounded = (EngineExtractor(backbone, None, "f32", r) for r in (None, ranges))
    a, b = exact(batch), rounded(batch)
    assert not np.array_equal(a, b)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    half = Ranges(ranges.low / np.float32(2), ranges.high / np.float32(2))
    assert EngineExtractor(backbone, None, "f32", half).fingerprint != rounded.fingerprint


def test_measured_ends_are_what_the_convolutions_read(backbone: Any, batch: np.ndarray) -> None:
    ends = measure_ends(arrays_of(backbone), 64, [batch[:16], batch[16:]], "f32")
    assert ends.shape == (2, count_convolutions(arrays_of(backbone), 64))
    # The first convolution reads the pixels.
    np.testing.assert_allclose(ends[0, 0], batch.min((1, 2, 3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(ends[1, 0], batch.max((1, 2, 3)).mean(), rtol=1e-5)
    assert (ends[0, 1:] >= 0).all()  # behind an activation
    ranges = ranges_between(ends)
    assert not ranges.has(0)
    assert ranges.has(1)
    flat = ranges_between(np.zeros((2, 3), np.float32))
    assert not any(flat.has(k) for k in range(3))


def test_ranges_are_measured_once_and_named_by_what_they_were_measured_on(
    backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 255, (70, 70), np.uint8)
        content = encode_png(pixels)
        (tmp_path / f"{k}.png").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        records.append(ImageRecord(tmp_path / f"{k}.png", 0, str(k), sha256=sha256))
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return measure_ends(*given)

    monkeypatch.setattr(extractors, "measure_ends", counted)
    arrays, config, cache = arrays_of(backbone), PreprocessConfig(size=64), tmp_path / "cache"
    first = training_ranges(records, config, cache, arrays, "f32")
    again = training_ranges(records, config, cache, arrays, "f32")
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.high, again.high)
    assert len(calls) == 1
    training_ranges(records[:2], config, cache, arrays, "f32")
    training_ranges(records, config, cache, arrays_of(backbone_of(1)), "f32")
    assert len(calls) == 3
    finer = arrays_of(backbone_of(0, "densenet121-stride16"))
    training_ranges(records, config, cache, finer, "f32")
    assert len(calls) == 4
    gone = [replace(record, path=tmp_path / "gone.png", sha256="0") for record in records]
    assert training_ranges(gone, config, cache, arrays, "f32") is None


def test_nothing_is_compiled_before_a_row_is_wanted(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(runner, "compile_model", never)
    extractor = EngineExtractor(backbone, BOUNDARIES["conv5"])
    assert extractor.shape == (2, 2, 6)
    assert extractor.fingerprint


def test_squares_are_kept_as_they_are_to_the_grey_level() -> None:
    levels = (np.arange(256).reshape(16, 16) / 255).astype(np.float32)
    extractor = SquareExtractor(16)
    assert (extractor.shape, extractor.kind) == ((16, 16), "u1")
    square = extractor.prepare(levels, PREPROCESSOR)
    assert square.dtype == np.uint8
    np.testing.assert_array_equal(square, np.arange(256).reshape(16, 16))
    above = (levels + np.float32(0.4 / 255) * (levels < 1)).astype(np.float32)
    between = extractor.prepare(above, PREPROCESSOR)
    np.testing.assert_array_equal(between, square)  # rounded, not truncated
    batch = square[None]
    assert extractor(batch) is batch
