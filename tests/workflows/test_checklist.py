from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import IntervalConfig, TrainConfig
from pneumoscope.errors import Reason
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.evaluation.evaluate import Evaluation, evaluate
from pneumoscope.inference.bundle import (
    Abstention,
    BundleManifest,
    InitialWeights,
    OperatingPoint,
    TrainingData,
)
from pneumoscope.records import Dataset, ImageRecord, Split
from pneumoscope.report.content import Refusals
from pneumoscope.workflows.documentation import card_text, checklist_facts, flow_of


def records(split: Split, count: int) -> list[ImageRecord]:
    return [
        ImageRecord(
            Path(f"/x/{split}{k}.png"),
            k % 2,
            f"{split}-{k // 2}",
            split,
            subtype="virus" if k % 2 else "",
            extra={"age": str(2 + k) if k else "002Y", "sex": "F" if k % 4 else "M", "view": ""},
        )
        for k in range(count)
    ]


@pytest.fixture
def whole() -> Dataset:
    return Dataset(Path("/x"), (*records("train", 20), *records("test", 12)), ("Odd thing.",))


@pytest.fixture
def evaluation(whole: Dataset) -> Evaluation:
    own = whole.subset("test").records[:10]
    labels = np.array([record.label for record in own])
    return evaluate(
        labels,
        np.where(labels == 1, 0.8, 0.3) + np.linspace(0, 0.1, 10),
        [record.patient for record in own],
        0.5,
        "fixed at 0.5",
        IntervalConfig(resamples=20),
        refused=2,
        subtypes=[record.subtype for record in own],
    )


REJECTIONS = (Refusals(Reason.NOT_AN_IMAGE, 2, ("a",)),)
MANIFEST = BundleManifest(
    pneumoscope_version="9.9",
    members=2,
    training_data=TrainingData("f" * 64, 20, 10, 10),
    initial_weights=InitialWeights("random (seed 3)", "a" * 64),
)


def test_the_flow_counts_what_was_found_and_what_became_of_it(
    whole: Dataset, evaluation: Evaluation
) -> None:
    flow = flow_of(whole, whole.subset("test"), "test", "images", evaluation, REJECTIONS)
    assert (flow.found.name, flow.found.images, flow.found.patients) == ("images", 32, 16)
    assert [(c.name, c.images) for c in flow.elsewhere] == [("split train", 20)]
    assert (flow.evaluated.images, flow.evaluated.patients) == (12, 6)
    assert flow.refused == (("not an image", 2),)
    assert (flow.scored.images, flow.scored.patients) == (10, 5)
    assert flow.matrix == evaluation.confusion_matrix
    everything = flow_of(whole, whole, "all", "images", evaluation, ())
    assert everything.elsewhere == ()
    assert everything.evaluated.images == 32


def test_answers_come_from_the_run(whole: Dataset, evaluation: Evaluation) -> None:
    chosen = whole.subset("test")
    flow = flow_of(whole, chosen, "test", "images", evaluation, REJECTIONS)
    answers = checklist_facts(flow, whole, chosen, evaluation, MANIFEST, TrainConfig(seed=7))
    for fact, part in {
        "data": "images: 32 X-rays of 16 patients. Odd thing.",
        "missing": "Here: not an image (2).",
        "partitions": "train: 10 NORMAL and 10 PNEUMONIA X-rays of 10 patients; test: 6 NORMAL",
        "disjoint": "No patient is in two splits",
        "characteristics": "age known for 12, median 7.5 (2 to 13); sex F 9, M 3.",
        "software": "numpy",
        "initial": "random (seed 3); SHA-256 aaaaaaaaaaaaaaaa….",
        "ensemble": "2 networks, probabilities averaged.",
        "threshold": "0.5: fixed at 0.5.",
        "training": "Recipe frozen, weights imagenet",
        "selection": "The weights of the epoch with the best validation AUC were kept",
        "imbalance": "Classes weighted to equal frequency",
        "sample": "10 X-rays of 5 patients, 5 with pneumonia (50.0 %)",
        "performance": "AUC 1.000",
        "crosstab": "Called PNEUMONIA: 5 with it, 0 without. Called NORMAL: 5 without, 0 with it.",
        "subgroups": "Sensitivity by subtype: virus 1.000",
        "specification": "made by pneumoscope 9.9",
    }.items():
        assert part in answers[fact], (fact, answers[fact])  # type: ignore[index]
    assert "seed 7" in answers["training"]
    assert answers["updating"] == "None."
    assert answers["indeterminate"].startswith("The model does not abstain")


def test_what_calibration_was_chosen_on_and_what_is_indeterminate(
    whole: Dataset, evaluation: Evaluation
) -> None:
    """No claim that the evaluated images were not used, where they were or may have been."""
    manifest = replace(
        MANIFEST,
        calibration=Calibration("platt", 0.9, 0.1),
        threshold=OperatingPoint(0.5, "fixed at 0.5", "validation; fitted to 40 images of a site"),
        abstention=Abstention("band", 0.3, 0.7, "5 % errors"),
    )
    chosen = whole.subset("test")
    val = flow_of(whole, chosen, "val", "images", evaluation, ())
    test = flow_of(whole, chosen, "test", "images", evaluation, ())
    own = checklist_facts(val, whole, chosen, evaluation, manifest, TrainConfig())
    later = checklist_facts(test, whole, chosen, evaluation, manifest, IntervalConfig())
    assert later["updating"] == (
        "Calibration by platt: slope 0.900, intercept 0.100 on the logit, chosen on validation; "
        "fitted to 40 images of a site."
    )
    assert own["updating"] == f"{later['updating']} These are the evaluated images."
    assert own["indeterminate"].startswith(
        "A result is indeterminate from 0.3 to below 0.7 (5 % errors). All metrics"
    )


def test_the_card_counts_the_patients_of_the_results(
    whole: Dataset, evaluation: Evaluation
) -> None:
    card = card_text("images", whole, MANIFEST, TrainConfig(), evaluation, 3)
    assert "10 X-rays of 5 patients" in card


def test_what_the_run_does_not_know_is_left_out(whole: Dataset, evaluation: Evaluation) -> None:
    chosen = Dataset(whole.root, whole.subset("test").records)
    flow = flow_of(chosen, chosen, "all", "images", evaluation, ())
    bare = BundleManifest()
    answers = checklist_facts(flow, chosen, chosen, evaluation, bare, IntervalConfig())
    for fact in ("training", "selection", "imbalance", "initial", "partitions", "disjoint"):
        assert fact not in answers
    assert all(answers.values())
