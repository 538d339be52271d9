"""`train` by every recipe, over a small network: its files, its bundle, predictions elsewhere."""

from __future__ import annotations

import csv
import errno
import html
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import (
    FinetuneConfig,
    FitConfig,
    IntervalConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
    from_toml,
)
from pneumoscope.data.index import load_dataset
from pneumoscope.images.perturbation_sweeps import PLAUSIBLE
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.inference import bundle as bundles
from pneumoscope.inference.bundle import load_bundle, load_networks, write_bundle
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import CLASS_NAMES
from pneumoscope.workflows.evaluate import evaluate_model
from pneumoscope.workflows.run_folder import ages_of
from pneumoscope.workflows.seen import add_to_bundle
from pneumoscope.workflows.train import TrainedRun, _outcome, train
from support.known import known
from support.small_network import small_network

CONFIG = TrainConfig(
    weights="none",
    views=2,
    keep_val=True,
    preprocess=PreprocessConfig(size=32),
    fit=FitConfig(epochs=2, batch_size=8, learning_rate=3e-3),
    finetune=FinetuneConfig(head_epochs=2),
    interval=IntervalConfig(resamples=50),
)
SCRATCH = replace(
    CONFIG,
    recipe="scratch",
    preprocess=PreprocessConfig(size=48, normalisation="standardise"),
    fit=FitConfig(epochs=3, batch_size=8, ema=0.9, label_smoothing=0.1, weight_decay=0.01),
    scratch=ScratchConfig(sizes=(32, 48), shares=(0.34, 0.66)),
)
CONFIGS = {
    "conv5": replace(CONFIG, recipe="finetune"),
    "conv4": replace(CONFIG, recipe="finetune", finetune=FinetuneConfig("conv4", head_epochs=1)),
    "all": replace(CONFIG, recipe="finetune", finetune=FinetuneConfig("all", head_epochs=1)),
    "scratch": SCRATCH,
    # Two networks, their mirror images, perturbed copies, half precision: all that is optional.
    "ensemble": replace(CONFIG, seeds=(0, 1), flip=True, perturb_val=True, store="float16"),
}
STAGES = {
    "conv5": ["head", "head", "network", "network"],
    "conv4": ["head", "network", "network"],
    "all": ["head", "network", "network"],
    "scratch": ["network"] * 3,
    "ensemble": ["head"] * 4,
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def phantoms(shared: Path) -> Path:
    return write_phantoms(shared / "phantoms", 40, 1, size=64)


@pytest.fixture(scope="module")
def run_of(shared: Path, phantoms: Path, small: None) -> Callable[[str], TrainedRun]:
    """A run by its name, trained once."""
    runs: dict[str, TrainedRun] = {}

    def get(name: str) -> TrainedRun:
        if name not in runs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
                runs[name] = train(phantoms, shared / name, CONFIGS[name])
        return runs[name]

    return get


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_run_is_whole_by_every_recipe(run_of: Callable[[str], TrainedRun], name: str) -> None:
    run, config = run_of(name), CONFIGS[name]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.toml",
        "evaluation",
        "history.csv",
        "model",
        "report.html",
        "split.csv",
    ]
    stored = from_toml(TrainConfig, run.folder / "config.toml")
    assert stored == replace(config, provenance=stored.provenance)
    manifest = load_bundle(run.folder).manifest
    assert manifest.architecture.size == config.preprocess.size
    assert (manifest.flip, manifest.store) == (config.flip, config.store)
    assert len(load_networks(load_bundle(run.folder))) == (len(config.seeds) or 1)
    metrics = json.loads((run.folder / "evaluation" / "metrics.json").read_text())
    assert metrics["metrics"] == manifest.validation["metrics"]
    assert metrics["refused"] == 0


def test_a_model_recognises_its_training_images(
    run_of: Callable[[str], TrainedRun], phantoms: Path, tmp_path: Path
) -> None:
    """The report of an evaluation states whether its images were trained on."""
    run = run_of(next(iter(CONFIGS)))
    table = load_bundle(run.folder).table("seen")
    assert table is not None
    counted = {}
    for split in ("train", "val", "test"):
        found = evaluate_model(run.folder / "split.csv", tmp_path / split, run.folder, split)
        assert found.seen is not None
        counted[split] = found.seen
        page = (tmp_path / split / "report.html").read_text()
        assert found.seen.in_words().replace("'", "&#39;") in page
        document = json.loads((tmp_path / split / "metrics.json").read_text())
        assert document["seen"] == found.seen.to_dict()
    size = {split: seen.images for split, seen in counted.items()}
    assert counted["train"].identical == size["train"]
    assert counted["val"].chosen_on == size["val"]
    assert not counted["test"].is_optimistic
    add_to_bundle(run.folder, run.folder / "split.csv")
    again = load_bundle(run.folder).table("seen")
    assert again is not None
    assert again["0_train_bytes"].tolist() == table["0_train_bytes"].tolist()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_history_reports_seed_and_stage_of_every_epoch(
    run_of: Callable[[str], TrainedRun], name: str
) -> None:
    run = run_of(name)
    rows = rows_of(run.folder / "history.csv")
    columns = ["seed", "stage", "epoch", "learning_rate", "loss", "val_loss", "val_auc", "seconds"]
    assert list(rows[0]) == [*columns, "val_accuracy"]
    assert [row["stage"] for row in rows] == STAGES[name] == [r.stage for r in run.history]
    per_seed = len(rows) // (len(CONFIGS[name].seeds) or 1)
    assert [int(row["seed"]) for row in rows] == [k // per_seed for k in range(len(rows))]
    for row, point in zip(rows, run.history, strict=True):
        assert float(row["val_auc"]) == point.val_auc
    assert 0 <= run.best < len(rows)


@pytest.mark.parametrize("name", ["conv5", "all", "scratch"])
def test_the_bundle_predicts_as_the_run_did(run_of: Callable[[str], TrainedRun], name: str) -> None:
    run = run_of(name)
    rows = rows_of(run.folder / "evaluation" / "predictions.csv")
    results = Predictor.load(run.folder).predict_files([row["path"] for row in rows])
    for row, result in zip(rows, results, strict=True):
        assert result.prediction.probability == pytest.approx(float(row["probability"]), abs=1e-6)
        assert result.prediction.prediction == row["prediction"]


def test_an_ensemble_predicts_with_the_mean_over_members_and_mirror_images(
    run_of: Callable[[str], TrainedRun], phantoms: Path
) -> None:
    run = run_of("ensemble")
    bundle = load_bundle(run.folder)
    assert bundle.manifest.members == 2
    assert bundle.manifest.initial_weights.origin == (
        "random (He-normal, seed 0); random (He-normal, seed 1)"
    )
    xrays = sorted((phantoms / "test").rglob("*.png"))
    preprocessor = Preprocessor(CONFIG.preprocess)
    images = np.stack([preprocessor(read_image(image).pixels) for image in xrays])
    passes = [
        np.asarray(network.predict_on_batch(batch))[:, 0]
        for network in load_networks(bundle)
        for batch in (images, images[:, :, ::-1].copy())
    ]
    assert np.abs(passes[0] - passes[2]).max() > 1e-3  # the members differ
    mean = np.mean(passes, axis=0, dtype=np.float64)
    calibrated = bundle.manifest.calibration.apply(np.log(mean / (1 - mean)))
    results = list(Predictor.load(run.folder).predict_files(xrays))
    found = [known(result.prediction.probability) for result in results]
    np.testing.assert_allclose(found, calibrated, atol=1e-5)


def test_each_network_reports_the_epoch_it_kept(run_of: Callable[[str], TrainedRun]) -> None:
    """Not one epoch of all networks' epochs together."""
    run = run_of("ensemble")
    assert [seed for seed, _, _ in run.members] == list(CONFIGS["ensemble"].seeds)
    assert [epochs for _, _, epochs in run.members] == [2, 2]
    first, second = (f"{best} of 2 (seed {seed})" for seed, best, _ in run.members)
    document, text = _outcome(run)
    assert f"kept epochs of 2 networks: {first}, {second};" in text
    assert [one["best_epoch"] for one in document["networks"]] == [m[1] for m in run.members]
    document, text = _outcome(run_of("conv5"))
    assert f"kept epoch {document['best_epoch']} of 4;" in text


def test_a_member_is_the_network_that_its_seed_trains_alone(
    run_of: Callable[[str], TrainedRun], phantoms: Path, tmp_path: Path
) -> None:
    alone = train(phantoms, tmp_path / "run", replace(CONFIG, seed=1, store="float16"))
    members = load_networks(load_bundle(run_of("ensemble").folder))
    (network,) = load_networks(alone.bundle)
    for mine, theirs in zip(network.get_weights(), members[1].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_perturbed_copies_are_reported(run_of: Callable[[str], TrainedRun]) -> None:
    told = f"each as it is and in {len(PLAUSIBLE)} perturbed copies"
    chosen_on = {name: run_of(name).bundle.manifest.threshold.chosen_on for name in CONFIGS}
    assert chosen_on["ensemble"].endswith(told)
    assert not any("perturbed" in chosen_on[name] for name in CONFIGS if name != "ensemble")


def predict_elsewhere(folders: list[Path], images: list[Path], out: Path) -> None:
    """Runs in a process of its own: the probability of each image by each bundle."""
    with small_network():
        found = [
            [result.prediction.probability for result in Predictor.load(f).predict_files(images)]
            for f in folders
        ]
    out.write_text(json.dumps(found), encoding="utf-8")


def test_a_new_process_gives_the_same_probabilities(
    run_of: Callable[[str], TrainedRun], phantoms: Path, tmp_path: Path
) -> None:
    """Within 1e-6 in float32; in half precision within 2e-3 of the network before it was saved."""
    images = sorted((phantoms / "test").rglob("*.png"))
    exact = [run_of(name).folder for name in ("conv5", "scratch")]
    before = [
        [
            known(result.prediction.probability)
            for result in Predictor.load(folder).predict_files(images)
        ]
        for folder in exact
    ]
    bundle = run_of("scratch").bundle
    half = replace(bundle.manifest, store="float16")
    rounded = write_bundle(tmp_path / "half", load_networks(bundle), half, "card")
    assert rounded.weights[0].stat().st_size < 0.7 * bundle.weights[0].stat().st_size
    out = tmp_path / "probabilities.json"
    process = multiprocessing.get_context("spawn").Process(
        target=predict_elsewhere, args=([*exact, rounded.folder], images, out)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    np.testing.assert_allclose(found[:2], before, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[2], before[1], rtol=0, atol=2e-3)
    assert found[2] != before[1]  # it is another file


def test_a_model_is_for_the_ages_of_its_training_images(
    phantoms: Path, shared: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
    records = load_dataset(phantoms).records
    table = shared / "aged.csv"
    rows = [
        f"{r.path.resolve()},{CLASS_NAMES[r.label]},{r.patient},{r.split},{k % 9}.5"
        for k, r in enumerate(records)
    ]
    table.write_text("\n".join(["path,label,patient,split,age", *rows]) + "\n")
    one = replace(CONFIG, fit=replace(CONFIG.fit, epochs=1))
    run = train(table, shared / "aged", one)
    assert load_bundle(run.folder).manifest.ages == (0, 8)
    assert ages_of(load_dataset(run.folder / "split.csv", "train").records) == (0, 8)
    report = html.unescape((run.folder / "report.html").read_text(encoding="utf-8"))
    assert "the model is for children aged 0–8 years, the ages in the column 'age'" in report
    stated = train(table, shared / "stated", replace(one, ages=(1, 5)))
    assert load_bundle(stated.folder).manifest.ages == (1, 5)
    some = [replace(r, extra={"age": "30"} if k % 9 else {}) for k, r in enumerate(records)]
    assert ages_of(some) == ()
    assert ages_of([replace(r, extra={"age": "360M"}) for r in records]) == (30, 30)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_full_while_a_checkpoint_is_written_loses_one_epoch(
    run_of: Callable[[str], TrainedRun],
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, written = np.savez, []

    def savez(stream: Any, **arrays: Any) -> None:
        written.append(1)
        if len(written) == 3:
            stream.write(b"half a checkpoint")
            full_disk()
        real(stream, **arrays)

    monkeypatch.setattr(np, "savez", savez)
    out = tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        train(phantoms, out, SCRATCH)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-network-0.npz",
        "config.toml",
        "history.csv",
        "split.csv",
    ]
    again = train(phantoms, out, resume=True)
    assert len(written) == 4  # two epochs were kept: the third alone was done again
    whole = run_of("scratch")
    pairs = [load_networks(run.bundle)[0].get_weights() for run in (again, whole)]
    for mine, theirs in zip(*pairs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [replace(row, seconds=0.0) for row in again.history] == [
        replace(row, seconds=0.0) for row in whole.history
    ]


@pytest.mark.parametrize("at", ["save_network", "write_text", "write_json"])
def test_a_disk_full_while_the_bundle_is_written_leaves_the_one_before(
    run_of: Callable[[str], TrainedRun],
    shared: Path,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
    out = tmp_path / "run"
    shutil.copytree(run_of("conv5").folder, out)
    (out / "report.html").unlink()  # as if it had been stopped before its last file
    before = content_of(out / "model")
    with monkeypatch.context() as patch:
        patch.setattr(bundles, at, full_disk)
        with pytest.raises(OSError, match="No space left"):
            train(phantoms, out, resume=True)
    assert content_of(out / "model") == before
    load_bundle(out)
    assert not list(out.glob(".*"))
    # What was trained is kept: going on with free space trains no epoch again.
    checkpoints = [np.load(path)["about"].item() for path in sorted(out.glob("checkpoint-*.npz"))]
    assert [len(json.loads(about)["history"]) for about in checkpoints] == [2, 2]
    if at == "save_network":
        again = train(phantoms, out, resume=True)
        told = [json.loads(about)["history"] for about in checkpoints]
        kept = [row["seconds"] for history in told for row in history]
        assert [row.seconds for row in again.history] == kept
        assert not list(out.glob("checkpoint-*"))
        weights = "model.keras"
        assert content_of(out / "model")[weights] == before[weights]


def test_validation_images_that_the_initial_weights_were_trained_on_are_reported(
    run_of: Callable[[str], TrainedRun], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(shared / "cache"))
    earlier = run_of("ensemble").folder
    swapped = shared / "swapped.csv"
    other = {"train": "val", "val": "train"}
    with swapped.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "patient", "split"])
        for each in load_dataset(earlier / "split.csv"):
            split = other.get(each.split or "", each.split)
            writer.writerow([each.path, each.label, each.patient, split])
    run = train(swapped, shared / "again", replace(CONFIG, weights=str(earlier)))
    metrics = json.loads((run.folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    said = "The initial weights or teachers were trained on "
    assert any(caution.startswith(said) for caution in metrics["cautions"])
    assert said in (run.folder / "report.html").read_text(encoding="utf-8")
