"""Calibration and threshold from predictions on validation and, if asked for, perturbed copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig, ThresholdConfig, TrainConfig
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.images.lungs import MATCHED_SHARES, match_framing, reliable_box
from pneumoscope.images.perturbation_sweeps import PLAUSIBLE
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, SilentProgress
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.operating_point import with_operating_point
from pneumoscope.workflows.scoring import Scored, score_all
from support.known import known

MANIFEST = BundleManifest(preprocessing=PreprocessConfig(size=32))
PLAIN = TrainConfig()
PERTURBED = TrainConfig(perturb_val=True)


class BrightBackend:
    """Logit: how bright the image is. Keeps what it said, and can be struck dumb."""

    def __init__(self, dumb_above: float = np.inf) -> None:
        self.said: list[float] = []
        self._dumb_above = dumb_above

    def run(self, batch: np.ndarray) -> Outputs:
        logits = 4 * batch[..., 0].mean((1, 2)).astype(np.float32)
        logits[logits > self._dumb_above] = np.nan
        self.said += logits.tolist()
        count = len(batch)
        return Outputs(logits, np.ones((count, 2, 2), np.float32), np.zeros((count, 4), np.float32))


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Twelve images of eight patients, brightness separates the classes perfectly."""
    made = []
    for k in range(12):
        grey = np.random.default_rng(k).normal(150 if k % 2 else 110, 6, (40, 40))
        path = tmp_path / f"image-{k}.png"
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
        made.append(ImageRecord(path, k % 2, f"patient-{k % 8}"))
    return made


def scored_by(backend: BrightBackend, records: list[ImageRecord]) -> tuple[Scored, Predictor]:
    predictor = Predictor(MANIFEST, backend)
    return score_all(records, predictor, "validation", SILENT), predictor


def test_without_copies_validation_alone_decides(records: list[ImageRecord]) -> None:
    backend = BrightBackend()
    scored, predictor = scored_by(backend, records)
    seen = len(backend.said)
    found = with_operating_point(MANIFEST, scored, predictor, PLAIN, SILENT)
    assert len(backend.said) == seen  # nothing was run again
    assert found.threshold.chosen_on == "12 validation images of 8 patients"
    assert found.threshold.rule == "highest balanced accuracy"
    probabilities = found.calibration.apply(scored.logits())
    positive = scored.labels() == 1
    assert probabilities[~positive].max() < found.threshold.value <= probabilities[positive].min()


def test_copies_take_part_in_both_choices(records: list[ImageRecord]) -> None:
    scored, predictor = scored_by(BrightBackend(), records)
    plain = with_operating_point(MANIFEST, scored, predictor, PLAIN, SILENT)
    found = with_operating_point(MANIFEST, scored, predictor, PERTURBED, SILENT)
    assert found.threshold.chosen_on == (
        f"12 validation images of 8 patients, each as it is and in {len(PLAUSIBLE)} perturbed "
        "copies"
    )
    # By hand: every copy of every image, in its patient's name, beside the images themselves.
    logits, labels = list(scored.logits()), [record.label for record in records]
    patients = [record.patient for record in records]
    for record in records:
        pixels = read_image(record.path).pixels
        for perturbation in PLAUSIBLE:
            result = predictor.predict_image(perturbation.apply(pixels, PERTURBED.seed))
            logits.append(result.logit)
            labels.append(record.label)
            patients.append(record.patient)
    wanted = fit_calibration(labels, logits, patients, PERTURBED.seed)
    assert found.calibration.slope == pytest.approx(wanted.slope)
    assert found.calibration.intercept == pytest.approx(wanted.intercept)
    assert (found.calibration, found.threshold.value) != (plain.calibration, plain.threshold.value)


def test_progress_counts_the_copies(records: list[ImageRecord]) -> None:
    counted: list[tuple[str, int]] = []

    class Counting(SilentProgress):
        @contextmanager
        def task(self, title: str, total: int, unit: str) -> Iterator[Any]:
            counted.append((title, total))
            yield self

        def advance(self, count: int = 1, note: str = "") -> None:
            counted.append(("advance", count))

    scored, predictor = scored_by(BrightBackend(), records)
    with_operating_point(MANIFEST, scored, predictor, PERTURBED, Counting())
    total = 12 * len(PLAUSIBLE)
    assert counted == [("copies of validation", total)] + [("advance", 1)] * total


def test_copies_without_a_result_are_left_out(records: list[ImageRecord]) -> None:
    everything = BrightBackend()
    scored, _ = scored_by(everything, records)
    dumb = Predictor(MANIFEST, BrightBackend(dumb_above=scored.logits().max()))
    found = with_operating_point(MANIFEST, scored, dumb, PERTURBED, SILENT)
    whole = with_operating_point(
        MANIFEST, scored, Predictor(MANIFEST, everything), PERTURBED, SILENT
    )
    assert found.calibration != whole.calibration  # it did leave out some
    assert 0 < found.threshold.value < 1


def test_images_that_are_gone_meanwhile_are_left_out(records: list[ImageRecord]) -> None:
    backend = BrightBackend()
    scored, predictor = scored_by(backend, records)
    for record in records[:2]:
        record.path.unlink()
    backend.said.clear()
    with_operating_point(MANIFEST, scored, predictor, PERTURBED, SILENT)
    batches = -(-10 * len(PLAUSIBLE) // 16)
    assert len(backend.said) == 16 * batches  # ten images' copies in whole batches


def test_rejected_images_are_in_neither(records: list[ImageRecord]) -> None:
    records[3].path.write_bytes(b"text")
    scored, predictor = scored_by(BrightBackend(), records)
    found = with_operating_point(MANIFEST, scored, predictor, PERTURBED, SILENT)
    assert found.threshold.chosen_on.startswith("11 validation images of 8 patients")


def test_a_fixed_threshold_stays_fixed(records: list[ImageRecord]) -> None:
    scored, predictor = scored_by(BrightBackend(), records)
    config = TrainConfig(threshold=ThresholdConfig(rule="fixed", target=0.3), perturb_val=True)
    found = with_operating_point(MANIFEST, scored, predictor, config, SILENT)
    assert found.threshold.value == 0.3


def test_every_change_is_a_condition_of_its_own(records: list[ImageRecord]) -> None:
    scored, predictor = scored_by(BrightBackend(), records)
    config = TrainConfig(perturb_val=True, threshold=ThresholdConfig("worst_case"))
    found = with_operating_point(MANIFEST, scored, predictor, config, SILENT)
    assert found.threshold.rule.endswith(f"over {1 + len(PLAUSIBLE)} conditions")
    alone = with_operating_point(
        MANIFEST, scored, predictor, TrainConfig(threshold=config.threshold), SILENT
    )
    assert alone.threshold.rule == "highest minimum of sensitivity and specificity"


def test_matched_copies_replace_the_images_themselves(records: list[ImageRecord]) -> None:
    scored, predictor = scored_by(BrightBackend(), records)
    config = TrainConfig(match_val=True)
    found = with_operating_point(MANIFEST, scored, predictor, config, SILENT)
    assert found.threshold.chosen_on == (
        "12 validation images of 8 patients, each cropped so that the lungs fill 0.63, 0.71, 0.79 "
        "of the frame"
    )
    logits, labels, patients = [], [], []
    for record in records:
        pixels = read_image(record.path).pixels
        for share in MATCHED_SHARES:
            matched = match_framing(pixels, reliable_box(pixels), share)
            logits.append(known(predictor.predict_image(matched).logit))
            labels.append(record.label)
            patients.append(record.patient)
    wanted = fit_calibration(labels, logits, patients, config.seed)
    assert found.calibration.slope == pytest.approx(wanted.slope)
    assert found.calibration.intercept == pytest.approx(wanted.intercept)


def test_matched_copies_are_perturbed_as_well(records: list[ImageRecord]) -> None:
    scored, predictor = scored_by(BrightBackend(), records)
    threshold = ThresholdConfig("worst_case")
    config = TrainConfig(match_val=True, perturb_val=True, threshold=threshold)
    found = with_operating_point(MANIFEST, scored, predictor, config, SILENT)
    count = len(MATCHED_SHARES) + len(PLAUSIBLE)
    assert found.threshold.rule.endswith(f"over {count} conditions")
    assert found.threshold.chosen_on.endswith(f"{len(PLAUSIBLE)} perturbed copies of the 0.71 one")
