"""`crossvalidate` on phantoms: who is held out, what is pooled, and going on after a stop."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumoscope.cli.app import run
from pneumoscope.config import (
    CrossValidationConfig,
    FitConfig,
    IntervalConfig,
    PreprocessConfig,
    SplitConfig,
    TrainConfig,
    from_toml,
)
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import TrainingOverlap, training_hashes
from pneumoscope.errors import DataError, SplitLeakError, UsageError
from pneumoscope.graph.bundle_files import SEEN_TABLE
from pneumoscope.images.lungs import MATCHED_SHARES
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import BundleManifest, load_bundle, write_revised
from pneumoscope.inference.results import Result
from pneumoscope.progress import SILENT
from pneumoscope.records import Dataset, ImageRecord, Prediction
from pneumoscope.storage import temporary_beside, write_text
from pneumoscope.workflows.crossvalidate import (
    CrossValidated,
    Fold,
    _Job,
    _pooled,
    _write,
    crossvalidate,
    run_crossvalidation,
)
from pneumoscope.workflows.evaluate import Evaluated, evaluate_model
from pneumoscope.workflows.scoring import MatchedFraming, Scored, evaluate_scored
from pneumoscope.workflows.tracking import Stopwatch
from support.small_network import small_network

CONFIG = TrainConfig(
    weights="none",
    views=1,
    preprocess=PreprocessConfig(size=64),
    fit=FitConfig(epochs=3, batch_size=16),
    interval=IntervalConfig(resamples=100),
)
DIVISION = CrossValidationConfig(folds=3)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def finished(shared: Path, small: None) -> CrossValidated:
    data = write_phantoms(shared / "phantoms", 60, 3, size=80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
        return crossvalidate(data, shared / "cv", CONFIG, DIVISION)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_image_is_scored_once_by_a_model_that_did_not_see_its_patient(
    finished: CrossValidated,
) -> None:
    rows = rows_of(finished.folder / "out_of_fold.csv")
    assert len(rows) == len({row["path"] for row in rows}) == 60
    assert [fold.number for fold in finished.folds] == [1, 2, 3]
    for fold in finished.folds:
        split = rows_of(finished.folder / f"fold-{fold.number}" / "split.csv")
        held_out = {row["patient"] for row in split if row["split"] == "test"}
        seen = {row["patient"] for row in split if row["split"] != "test"}
        assert held_out == {row["patient"] for row in rows if row["fold"] == str(fold.number)}
        assert not held_out & seen
        assert {row["label"] for row in split if row["split"] == "val"} == {"NORMAL", "PNEUMONIA"}


def test_pooled_numbers_are_those_of_the_table(finished: CrossValidated) -> None:
    rows = [row for row in rows_of(finished.folder / "out_of_fold.csv") if row["status"] == "ok"]
    truth = np.array([row["label"] == "PNEUMONIA" for row in rows])
    scores = np.array([float(row["probability"]) for row in rows])
    document = json.loads((finished.folder / "crossvalidation.json").read_text(encoding="utf-8"))
    pooled = document["pooled"]["metrics"]
    assert pooled["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    threshold = document["pooled"]["threshold"]["value"]
    assert threshold == np.median([fold["threshold"] for fold in document["folds"]])
    assert pooled["sensitivity"]["value"] == pytest.approx((scores >= threshold)[truth].mean())
    called = np.array([row["prediction"] == "PNEUMONIA" for row in rows])
    own = document["decided_by_fold_thresholds"]
    assert own["sensitivity"]["value"] == pytest.approx(called[truth].mean())
    assert own["specificity"]["value"] == pytest.approx((~called)[~truth].mean())
    assert own["sensitivity"]["low"] < own["sensitivity"]["high"]
    assert sum(fold["n"] for fold in document["folds"]) == document["pooled"]["n"] == len(rows)
    metrics = json.loads((finished.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"] == pooled
    assert (finished.folder / "report.html").exists()
    # The rows of predictions.csv are those of the confusion matrix, at one threshold.
    assert_rows_fit_the_matrix(finished.folder, threshold)
    assert len({row["threshold"] for row in rows}) > 1  # out_of_fold.csv: each fold's own


def test_a_stopped_run_goes_on_and_another_division_is_rejected(
    finished: CrossValidated, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
    data, out = shared / "phantoms", tmp_path / "cv"
    shutil.copytree(finished.folder, out)
    shutil.rmtree(out / "fold-3")
    before = (out / "fold-1" / "history.csv").stat().st_mtime_ns
    other = replace(CONFIG, seed=4, fit=FitConfig(epochs=1))  # what is not given does not count
    again = crossvalidate(data, out, other, DIVISION, matched=True, resume=True)
    assert (out / "fold-1" / "history.csv").stat().st_mtime_ns == before
    assert again.pooled.metrics == finished.pooled.metrics
    assert_matched_as_evaluate_does(again, tmp_path / "one")
    without = crossvalidate(data, out, CONFIG, DIVISION, resume=True)
    assert set(without.matched) == set(MATCHED_SHARES)  # no folder remains that is not listed
    with pytest.raises(UsageError, match=r"the run has fit.epochs = 3, you gave 1. Leave it out"):
        crossvalidate(data, out, other, DIVISION, resume=True, given=["fit.epochs"])
    (out / "config.toml").unlink()  # as an older version left it
    crossvalidate(data, out, CONFIG, DIVISION, resume=True)
    assert from_toml(TrainConfig, out / "config.toml") == replace(CONFIG, keep_val=True)
    with pytest.raises(UsageError, match="has other images or folds than this command"):
        crossvalidate(data, out, CONFIG, CrossValidationConfig(folds=4), resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        crossvalidate(data, out, CONFIG, DIVISION)
    with pytest.raises(UsageError, match="holds nothing to resume"):
        crossvalidate(data, tmp_path / "new", CONFIG, DIVISION, resume=True)


def assert_rows_fit_the_matrix(folder: Path, threshold: float) -> None:
    matrix = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["confusion_matrix"]
    rows = rows_of(folder / "predictions.csv")
    assert {float(row["threshold"]) for row in rows} == {threshold}
    hits = [row["prediction"] == row["label"] == "PNEUMONIA" for row in rows]
    right = [row["prediction"] == row["label"] == "NORMAL" for row in rows]
    assert (sum(hits), sum(right)) == (matrix["tp"], matrix["tn"])


def assert_matched_as_evaluate_does(found: CrossValidated, folder: Path) -> None:
    """Each fold's cropped images have the predictions that `evaluate --framing matched` gives."""
    assert set(found.matched) == set(MATCHED_SHARES)
    split = found.folder / "splits" / "fold-1.csv"
    evaluate_model(split, folder, found.folder / "fold-1", framing=0.79)
    one = {row["path"]: row["probability"] for row in rows_of(folder / "predictions.csv")}
    every = {
        row["path"]: row["probability"]
        for row in rows_of(found.folder / "matched-0.79" / "predictions.csv")
    }
    assert len(every) == 60
    assert one.items() <= every.items()
    document = json.loads((found.folder / "crossvalidation.json").read_text(encoding="utf-8"))
    for share, evaluation in found.matched.items():
        assert evaluation.threshold == found.pooled.threshold
        here = found.folder / f"matched-{share:g}"
        metrics = json.loads((here / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["framing"]["share"] == share
        assert_rows_fit_the_matrix(here, found.pooled.threshold)
        assert metrics["metrics"] == document["matched"][f"{share:g}"]["metrics"]
        assert "Framing matched" in (here / "report.html").read_text(encoding="utf-8")


def test_each_matched_framing_is_judged_by_its_own_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [k % 2 for k in range(40)]
    records = tuple(
        ImageRecord(tmp_path / f"{k}.png", label, f"p{k}") for k, label in enumerate(labels)
    )

    def scored(right: bool) -> Scored:
        probabilities = [0.9 if label == right else 0.1 for label in labels]
        return Scored(
            records, tuple(Result(Prediction("x", "ok", None, p, "", 0.5)) for p in probabilities)
        )

    seen = TrainingOverlap(40, known=True)
    pages: dict[str, Evaluated] = {}

    def instead(folder: Path, evaluated: Evaluated, **_: object) -> None:
        pages[folder.name] = evaluated

    monkeypatch.setattr("pneumoscope.workflows.crossvalidate.write_evaluation", instead)
    dataset = Dataset(tmp_path, records, ("of the data",))
    job = _Job(tmp_path / "cv", dataset, [1] * 40, CONFIG, DIVISION, SILENT, matched=True)
    for right in (True, False):  # of the scores of whole images; the cropped ones are the others
        matched = {0.79: MatchedFraming(0.79, 0, scored(not right))}
        evaluation = evaluate_scored(scored(right), BundleManifest(), CONFIG.interval)
        fold = Fold(1, scored(right), evaluation, 0.5, seen, matched)
        job.out.mkdir(exist_ok=True)
        _write(job, _pooled(job, [fold], BundleManifest()), BundleManifest(), "x", Stopwatch())
        judged = {
            name: any("scores are lower for PNEUMONIA" in text for text in page.dataset.warnings)
            for name, page in pages.items()
        }
        assert judged == {"cv": not right, "matched-0.79": right}
        assert all(page.dataset.warnings[0] == "of the data" for page in pages.values())
        notes = [text for text in pages["matched-0.79"].dataset.warnings if "Framing" in text]
        assert len(notes) == 1


def test_too_few_patients_and_impossible_folds_are_rejected(shared: Path, tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "few", 12, 1, size=80)
    with pytest.raises(DataError, match=r"--folds 50: .* has images in only \d+ folds"):
        crossvalidate(data, tmp_path / "out", CONFIG, replace(DIVISION, folds=50))
    assert not (tmp_path / "out").exists()
    asked = ["crossvalidate", str(data), "--out", str(tmp_path / "out")]
    assert run([*asked, "--folds", "1", "-q"]) == 2


def test_splits_that_share_patients_do_not_count(shared: Path, tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "leaky", 12, 1, size=80)
    images = sorted((data / "train").rglob("*.*"))
    for image in images[:3]:
        shutil.copy(image, data / "test" / image.parent.name / f"{image.stem}x{image.suffix}")
    with pytest.raises(SplitLeakError):
        index(data)
    assert {record.split for record in index(data, splits=False)} == {None}
    with pytest.raises(DataError, match=r"--folds 50: .* has images in only \d+ folds"):
        crossvalidate(data, tmp_path / "out", CONFIG, replace(DIVISION, folds=50))


def test_what_a_killed_start_leaves_is_no_obstacle(
    finished: CrossValidated, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was not finished, or the folds alone: each is taken by one of the commands."""

    def instead(split: Path, folder: Path, config: TrainConfig, **_: object) -> None:
        shutil.copytree(finished.folder / folder.name, folder)

    monkeypatch.setattr("pneumoscope.workflows.crossvalidate.train", instead)
    out = tmp_path / "cv"
    out.mkdir()
    temporary_beside(out / "folds.csv").touch()

    def killed(path: Path, text: str) -> None:
        if path.name != "folds.csv":
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.workflows.crossvalidate.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            crossvalidate(shared / "phantoms", out, CONFIG, DIVISION)
    assert {path.name for path in out.glob("[!.]*")} == {"folds.csv"}
    found = crossvalidate(shared / "phantoms", out, CONFIG, DIVISION, resume=True)
    assert found.pooled.metrics == finished.pooled.metrics


def test_settings_of_the_split_that_are_not_used_are_reported(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="pneumoscope")
    data = write_phantoms(tmp_path / "few", 12, 1, size=80)
    config = replace(CONFIG, split=SplitConfig(by="block", test=0.2))
    for by in ("random", "block"):
        caplog.clear()
        division = CrossValidationConfig(folds=50, by=by)  # rejected once they are reported
        with pytest.raises(DataError, match="--folds 50"):
            crossvalidate(data, tmp_path / "out", config, division)
        assert "split.test = 0.2 has no effect here" in caplog.text
        assert ("split.by = 'block' has no effect here" in caplog.text) == (by == "random")


def test_each_fold_has_teachers_of_its_own(
    finished: CrossValidated, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were trained without what it holds out."""
    taught: list[tuple[str, ...]] = []

    def instead(split: Path, folder: Path, config: TrainConfig, **_: object) -> None:
        taught.append(config.teachers)
        shutil.copytree(finished.folder / folder.name, folder)

    monkeypatch.setattr("pneumoscope.workflows.crossvalidate.train", instead)
    teachers = (f"{finished.folder}/fold-{{fold}}", "default")
    config = replace(CONFIG, recipe="scratch", teachers=teachers)
    found = crossvalidate(shared / "phantoms", tmp_path / "cv", config, DIVISION)
    assert taught == [(str(finished.folder / f"fold-{k}"), "default") for k in (1, 2, 3)]
    assert found.pooled.metrics == finished.pooled.metrics


def test_held_out_images_that_a_model_was_trained_on_are_reported(
    finished: CrossValidated, shared: Path, tmp_path: Path
) -> None:
    """As its initial weights or a teacher may have been."""
    assert finished.seen.known
    assert not finished.seen.is_optimistic
    out = tmp_path / "cv"
    shutil.copytree(finished.folder, out)
    model = load_bundle(out / "fold-1" / "model")
    every = training_hashes({"train": index(shared / "phantoms").records, "val": ()})
    write_revised(model.folder, model, model.manifest, "", {SEEN_TABLE: every})
    document, text = run_crossvalidation(
        shared / "phantoms",
        out,
        CONFIG,
        DIVISION,
        SILENT,
        matched=False,
        resume=True,
        given=(),
    )
    count = len(finished.folds[0].scored.records)
    said = f"Held-out images: The model was trained on {count} of these 60 images"
    assert text.startswith(said)
    assert document["seen"]["identical"] == count
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["seen"]["identical"] == count
    assert any(caution.startswith(said) for caution in metrics["cautions"])
    assert said in (out / "report.html").read_text(encoding="utf-8")
