"""What is computed once per view is what the network would have computed in every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph import runner
from pneumoscope.graph.architecture import BACKBONE_WIDTH, BOUNDARIES
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.training import extractor as extractors
from pneumoscope.training.extractor import (
    EngineExtractor,
    KerasExtractor,
    SquareExtractor,
    frozen_extractor,
)
from pneumoscope.training.features import BATCH
from pneumoscope.training.network import build_backbone, build_tail, initialise_randomly
from support.small_network import small_network

PREPROCESSOR = Preprocessor(PreprocessConfig(size=64))


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def backbone_of(seed: int) -> object:
    backbone = build_backbone(64)
    initialise_randomly(backbone, seed)
    return backbone


@pytest.fixture(scope="module")
def backbone(small: None):  # type: ignore[no-untyped-def]
    return backbone_of(0)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    squares = np.random.default_rng(3).random((BATCH, 64, 64), np.float32)
    return PREPROCESSOR.normalise(squares)


@pytest.fixture(params=[KerasExtractor, EngineExtractor])
def made_by(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return request.param


def test_pooled_features_are_the_means_of_the_last_map(backbone, batch, made_by) -> None:
    extractor = made_by(backbone)
    assert (extractor.shape, extractor.kind, extractor.noun) == ((1024,), "<f2", "features")
    found = extractor(batch)
    assert found.dtype == np.float32
    wanted = np.asarray(backbone.predict_on_batch(batch)).mean((1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("block", "side"), [("conv5", 2), ("conv4", 4)])
def test_the_tail_goes_on_where_the_trunk_ends(
    backbone, batch, made_by, block: str, side: int
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


def test_an_image_is_the_same_in_any_batch(backbone, batch, made_by) -> None:
    """A resumed run computes what is missing, in other batches than an unbroken one."""
    extractor = made_by(backbone, BOUNDARIES["conv5"])
    first = extractor(batch)
    shifted = extractor(np.roll(batch, 11, axis=0))
    np.testing.assert_array_equal(first, np.roll(shifted, -11, axis=0))


def test_fingerprints_tell_weights_boundaries_and_engines_apart(backbone) -> None:
    made = [
        kind(*arguments)
        for kind in (KerasExtractor, EngineExtractor)
        for arguments in (
            (backbone,),
            (backbone, BOUNDARIES["conv5"]),
            (backbone, BOUNDARIES["conv4"]),
            (backbone_of(1),),
            (backbone_of(1), BOUNDARIES["conv5"]),
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
    [("auto", True, "bf16"), ("auto", False, "f32"), ("f32", True, "f32"), ("bf16", False, "bf16")],
)
def test_the_engine_is_chosen_by_the_machine(
    backbone, precision: str, fast: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = frozenset({"BF16"} if fast else ())
    monkeypatch.setattr(extractors, "capabilities", lambda: has)
    monkeypatch.setattr(extractors, "has_gpu", lambda: False)
    found = frozen_extractor(backbone, None, precision)
    assert isinstance(found, EngineExtractor)
    assert f" {wanted} " in f"{found.fingerprint} "
    monkeypatch.setattr(extractors, "has_gpu", lambda: True)
    assert isinstance(frozen_extractor(backbone, None, precision), KerasExtractor)


def test_nothing_is_compiled_before_a_row_is_wanted(
    backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(runner, "compile_model", never)
    extractor = EngineExtractor(backbone, BOUNDARIES["conv5"])
    assert extractor.shape == (2, 2, 6)
    assert extractor.fingerprint


def test_squares_are_kept_as_they_are_to_the_grey_level() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    extractor = SquareExtractor(16)
    assert (extractor.shape, extractor.kind) == ((16, 16), "u1")
    square = extractor.prepare(levels, PREPROCESSOR)
    assert square.dtype == np.uint8
    np.testing.assert_array_equal(square, np.arange(256).reshape(16, 16))
    between = extractor.prepare(levels + np.float32(0.4 / 255) * (levels < 1), PREPROCESSOR)
    np.testing.assert_array_equal(between, square)  # rounded, not cut off
    batch = square[None]
    assert extractor(batch) is batch
