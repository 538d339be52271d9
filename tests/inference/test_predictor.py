"""The predictor: order, batches, rejections and decisions, with a small fake backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import Reason, UsageError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.graph.writer import Precision
from pneumoscope.images.read import read_image
from pneumoscope.inference import preparing
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.overlay import LONGEST_SIDE, shrunk
from pneumoscope.inference.predictor import BATCH, Predictor
from support.bad_images import BAD_IMAGES
from support.known import known

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32, normalisation="imagenet"),
    threshold=OperatingPoint(0.6, "for the test", ""),
    calibration=Calibration("platt", 2.0, -0.5),
)


class MeanBackend:
    """Logit: the mean of the input's first channel."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, batch: np.ndarray) -> Outputs:
        self.batches.append(len(batch))
        means = batch[..., 0].mean((1, 2)).astype(np.float32)
        return Outputs(
            means, np.ones((len(batch), 2, 2), np.float32), np.zeros((len(batch), 4), np.float32)
        )


def image_files(folder: Path, count: int) -> list[Path]:
    paths = []
    for k in range(count):
        grey = np.full((40, 48), 10 + k % 200, np.uint8)
        grey[10:20] += 30
        path = folder / f"image-{k:04}.png"
        Image.fromarray(grey).save(path)
        paths.append(path)
    return paths


@pytest.mark.parametrize(("precision", "most"), [("int8", 1), ("bf16", 2), ("f32", 2)])
def test_the_engine_has_as_many_batches_at_once_as_pay(
    precision: Precision, most: int, tmp_path: Path
) -> None:
    running, seen, lock = 0, [], threading.Lock()
    backend = MeanBackend()
    plain = backend.run

    def run(batch: np.ndarray) -> Outputs:
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return plain(batch)

    backend.run = run  # type: ignore[method-assign]
    paths = image_files(tmp_path, 6 * BATCH)
    found = list(Predictor(MANIFEST, backend, precision=precision).predict_files(paths))
    assert len(found) == len(paths)
    assert max(seen) == most


def test_results_in_input_order_whatever_the_company(tmp_path: Path) -> None:
    paths = image_files(tmp_path, 2 * BATCH + 5)
    predictor = Predictor(MANIFEST, MeanBackend())
    together = [a.prediction for a in predictor.predict_files(paths)]
    alone = [predictor.predict_file(path).prediction for path in paths]
    assert together == alone
    assert [p.path for p in together] == [str(path) for path in paths]
    probabilities = [known(p.probability) for p in together]
    assert probabilities == sorted(probabilities)


def test_probability_is_calibrated_and_decided_at_the_threshold(tmp_path: Path) -> None:
    result = Predictor(MANIFEST, MeanBackend()).predict_file(image_files(tmp_path, 1)[0])
    wanted = 1 / (1 + np.exp(-(2.0 * known(result.logit) - 0.5)))
    assert result.prediction.probability == pytest.approx(wanted)
    assert result.prediction.prediction == "NORMAL"
    assert result.prediction.threshold == 0.6
    lenient = replace(MANIFEST, threshold=OperatingPoint(wanted, "exactly there", ""))
    result = Predictor(lenient, MeanBackend()).predict_file(image_files(tmp_path, 1)[0])
    assert (
        result.prediction.prediction == "PNEUMONIA"
    )  # a probability at the threshold counts as positive


def test_bytes_and_file_give_the_same_result(tmp_path: Path) -> None:
    path = image_files(tmp_path, 1)[0]
    predictor = Predictor(MANIFEST, MeanBackend())
    by_file, by_bytes = predictor.predict_file(path), predictor.predict_bytes(path.read_bytes())
    assert by_bytes.prediction.path == "upload"
    assert by_bytes.prediction.probability == by_file.prediction.probability
    assert by_bytes.image is not None
    assert by_bytes.image.pixels.shape == (40, 48)


def test_a_batch_of_1000_with_100_bad_ones_gives_1000_rows(tmp_path: Path) -> None:
    good = image_files(tmp_path, 50)
    paths: list[Path] = []
    wanted: list[str | None] = []
    for k in range(1000):
        if k % 10 == 3:
            bad = BAD_IMAGES[(k // 10) % len(BAD_IMAGES)]
            folder = tmp_path / f"bad-{k}"
            folder.mkdir()
            try:
                paths.append(bad.build(folder))
            except PermissionError:
                pytest.fail(f"{bad.name} could not be built")
            wanted.append(None)
        else:
            paths.append(good[k % 50])
            wanted.append(str(good[k % 50]))
    backend = MeanBackend()
    predictions = [a.prediction for a in Predictor(MANIFEST, backend).predict_files(paths)]
    assert len(predictions) == 1000
    assert sum(p.status == "ok" for p in predictions) == 900
    for path, expected, prediction in zip(paths, wanted, predictions, strict=True):
        assert prediction.path == str(path)
        assert (prediction.status == "ok") == (expected is not None), prediction
        if expected is None:
            assert prediction.reason is not None
            assert prediction.detail
            assert prediction.probability is None
    assert set(backend.batches) <= {1, BATCH}


def test_no_inputs_no_results() -> None:
    assert list(Predictor(MANIFEST, MeanBackend()).predict_files([])) == []


def test_images_are_kept_only_where_asked_for_and_no_larger_than_overlays(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    grey = np.zeros((LONGEST_SIDE, 2 * LONGEST_SIDE), np.uint8)
    grey[100:300] = 120
    Image.fromarray(grey).save(large)
    predictor = Predictor(MANIFEST, MeanBackend())
    assert next(predictor.predict_files([large])).image is None
    kept = next(predictor.predict_files([large], keep=shrunk)).image
    assert kept is not None
    assert kept.pixels.shape == (LONGEST_SIDE // 2, LONGEST_SIDE)
    whole = predictor.predict_file(large).image
    assert whole is not None
    assert whole.pixels.shape == grey.shape


def slow_reading(monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    def read(path: Path | str, limits: object) -> object:
        reads.append(str(path))
        time.sleep(0.05)
        return read_image(path)

    monkeypatch.setattr(preparing, "read_image", read)


def test_a_reader_who_stops_early_leaves_no_thread_and_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    slow_reading(monkeypatch, reads)
    before = threading.active_count()
    results = Predictor(MANIFEST, MeanBackend()).predict_files(image_files(tmp_path, 100))
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(reads) <= 2 * BATCH + 3 * preparing.threads()


def test_an_interruption_does_not_wait_for_what_is_still_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(MeanBackend):
        def run(self, batch: np.ndarray) -> Outputs:
            raise KeyboardInterrupt

    reads: list[str] = []
    slow_reading(monkeypatch, reads)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(Predictor(MANIFEST, Interrupted()).predict_files(image_files(tmp_path, 100)))
    assert threading.active_count() == before
    assert len(reads) <= 2 * BATCH + 3 * preparing.threads()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_an_error_not_a_probability(
    tmp_path: Path, value: float
) -> None:
    class Broken(MeanBackend):
        def run(self, batch: np.ndarray) -> Outputs:
            return replace(super().run(batch), logits=np.full(len(batch), value, np.float32))

    prediction = Predictor(MANIFEST, Broken()).predict_file(image_files(tmp_path, 1)[0]).prediction
    assert (prediction.status, prediction.reason) == ("error", Reason.INTERNAL_ERROR)
    assert prediction.probability is None
    assert "not finite" in prediction.detail


def test_a_path_given_twice_has_two_rows(tmp_path: Path) -> None:
    path = image_files(tmp_path, 1)[0]
    predictions = [
        a.prediction for a in Predictor(MANIFEST, MeanBackend()).predict_files([path] * 2)
    ]
    assert predictions[0] == predictions[1]


def test_decoded_images_are_scored_as_their_files_are(tmp_path: Path) -> None:
    paths = image_files(tmp_path, BATCH + 3)
    backend = MeanBackend()
    predictor = Predictor(MANIFEST, backend)
    named = ((str(path), read_image(path).pixels) for path in paths)  # taken once, as it comes
    decoded = list(predictor.predict_images(named))
    assert backend.batches == [BATCH, BATCH]
    assert [a.prediction for a in decoded] == [a.prediction for a in predictor.predict_files(paths)]
    assert decoded[0].image is None
    assert decoded[0].embedding is not None
    alone = predictor.predict_image(read_image(paths[5]).pixels, str(paths[5]))
    assert alone.prediction == decoded[5].prediction
    assert predictor.predict_image(read_image(paths[5]).pixels).prediction.path == "image"
    assert list(predictor.predict_images([])) == []


def test_decoded_images_are_taken_two_batches_ahead_at_most(tmp_path: Path) -> None:
    taken = []

    def endless() -> Iterator[tuple[str, np.ndarray]]:
        while True:
            taken.append(1)
            yield "image", np.eye(32, dtype=np.float32)

    results = Predictor(MANIFEST, MeanBackend()).predict_images(endless())
    next(results)
    assert len(taken) == 2 * BATCH


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32)),
        np.zeros((32, 32, 3), np.float32),
        np.full((32, 32), 255, np.float32),
        np.full((32, 32), -0.1, np.float32),
        np.full((32, 32), np.nan, np.float32),
        np.zeros((0, 32), np.float32),
    ],
    ids=["uint8", "float64", "rgb", "to 255", "negative", "nan", "empty"],
)
def test_an_array_that_is_no_grey_image_is_no_probability(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"wanted|expected"):
        Predictor(MANIFEST, MeanBackend()).predict_image(image, "image")
