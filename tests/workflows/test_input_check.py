"""The check is made by `train` and `input-check`, lies in the bundle, is obeyed afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.config import FitConfig, IntervalConfig, PreprocessConfig, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.graph.archive import read_network
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.images.read import GreyImage, read_image
from pneumoscope.inference.bundle import Bundle, InputCheck, load_bundle
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.input_check import METHOD, TABLE, statistics_of
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT
from pneumoscope.records import ImageRecord
from pneumoscope.workflows import input_check as checking
from pneumoscope.workflows.input_check import (
    Precomputed,
    card_with_check,
    embedding_predictor,
    scored_by_record,
)
from pneumoscope.workflows.scoring import score_all
from pneumoscope.workflows.train import TrainedRun, train
from support.known import known
from support.small_bundle import small_bundle
from support.small_network import small_network

SIDE = 48


@pytest.fixture(scope="module", autouse=True)
def few_are_enough() -> Iterator[None]:
    with small_network(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "LEAST_IMAGES", 50)
        patch.setattr(checking, "WHOLE", checking.Effort(1500, 6))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checked")


@pytest.fixture(scope="module")
def phantoms(folder: Path) -> Path:
    return write_phantoms(folder / "phantoms", 120, 1, size=64)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return small_bundle(folder / "bundle", size=SIDE)


@pytest.fixture(scope="module")
def others(folder: Path) -> list[Path]:
    """A page of noise and an inverted phantom."""
    stream = np.random.default_rng(0)
    place = folder / "others"
    place.mkdir()
    Image.fromarray(stream.integers(0, 256, (64, 64), np.uint8)).save(place / "noise.png")
    return [place / "noise.png"]


def document(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*map(str, words), "--json", "-q"]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_command_gives_a_bundle_its_check(
    bundle: Bundle,
    phantoms: Path,
    others: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    found = document(capsys, "input-check", phantoms, "--model", bundle.folder, "--out", out)
    made = load_bundle(out)
    check = made.manifest.input_check
    assert (check.method, check.images) == (METHOD, found["images"])
    assert check.limits == found["limits"]
    assert found["refused"]["val"] == check.refused <= 0.1
    assert 0 <= found["refused"]["test"] <= 0.2
    assert made.weights[0].read_bytes() == bundle.weights[0].read_bytes()
    assert (made.folder / f"{TABLE}.npz").stat().st_size < 1_500_000
    card = made.card.read_text(encoding="utf-8")
    assert card.startswith("A card.")
    assert f"{check.patients} held-out patients" in card
    rows = document(capsys, "predict", *others, "--model", out, code=3)["predictions"]
    assert [row["reason"] for row in rows] == ["not_a_chest_xray"]
    assert rows[0]["input_score"] > 1
    rows = document(capsys, "predict", *others, "--model", out, "--no-input-check")["predictions"]
    assert [(row["status"], row["input_score"]) for row in rows] == [("ok", None)]
    images = sorted((phantoms / "test").rglob("*.png"))
    counts = document(capsys, "predict", *images, "--model", out)["counts"]
    assert counts["refused"] == round(found["refused"]["test"] * len(images))
    evaluated = document(capsys, "evaluate", phantoms, "--model", out, "--out", tmp_path / "e")
    assert evaluated["refused"] == counts["refused"]
    assert "input check   gaussians of" in _text(capsys, "info", "--model", out)


def _text(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    capsys.readouterr()
    assert run([*map(str, words), "-q"]) == 0
    return capsys.readouterr().out


def test_without_out_nothing_is_written_and_too_few_are_no_check(
    bundle: Bundle, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    text = _text(capsys, "input-check", phantoms, "--model", bundle.folder)
    assert "not saved" in text
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before
    few = write_phantoms(tmp_path / "few", 20, 2, size=64)
    next((few / "train").rglob("*.png")).write_bytes(b"no image")
    error = document(capsys, "input-check", few, "--model", bundle.folder, code=3)["error"]
    message = error["message"]
    assert re.search(r"found \d+ readable images in train \(wanted at least 50\) and", message)
    assert re.search(r"and \d patients in val \(wanted at least 10\)\. Give the train", message)
    assert message.endswith("RUN/split.csv")
    words = ["input-check", few, "--model", bundle.folder, "--out", few]
    assert "is not a bundle" in document(capsys, *words, code=2)["error"]["message"]


def test_embeddings_are_those_of_the_whole_bundle(folder: Path, phantoms: Path) -> None:
    several = small_bundle(folder / "several", size=SIDE, members=2, flip=True)
    image = next(phantoms.rglob("*.png"))
    quick, whole = embedding_predictor(several), Predictor.load(several.folder)
    one, other = (known(p.predict_file(image).embedding) for p in (quick, whole))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_section_of_a_card_is_replaced_not_repeated() -> None:
    card = "# Model\n\nText.\n\n## Input check\n\nold words\n\n## Citation\n\nA paper.\n"
    once = card_with_check(card, InputCheck(METHOD, {}, 1500, 367, 0.006, 0.004))
    assert "old words" not in once
    assert once.index("Text.") < once.index("## Input check") < once.index("## Citation")
    assert once.endswith("## Citation\n\nA paper.\n")
    assert "1,500 training images" in once
    again = card_with_check(once, InputCheck())
    assert again.count("## Input check") == again.count("## Citation") == 1
    first = card_with_check("# Model\n", InputCheck())
    assert first.startswith("# Model\n\n## Input check\n\nThis")
    assert "1,500" not in again
    assert "every readable image gets a prediction" in again


def test_training_makes_the_check_and_evaluates_what_passes(
    phantoms: Path, others: list[Path], tmp_path: Path
) -> None:
    config = TrainConfig(
        weights="none",
        views=1,
        keep_val=True,
        preprocess=PreprocessConfig(size=SIDE),
        fit=FitConfig(epochs=2),
        interval=IntervalConfig(resamples=50),
    )
    finished: TrainedRun = train(phantoms, tmp_path / "run", config)
    check = finished.bundle.manifest.input_check
    assert check.method == METHOD
    metrics = json.loads((finished.folder / "evaluation" / "metrics.json").read_text())
    held_out = len(list((phantoms / "val").rglob("*.png")))
    assert metrics["n"] + metrics["refused"] == held_out
    assert metrics["refused"] == round(check.refused * held_out)
    predictor = Predictor.load(finished.folder)
    assert predictor.predict_file(others[0]).prediction.status == "refused"
    assert "## Input check" in finished.bundle.card.read_text(encoding="utf-8")


def test_a_model_without_a_check_is_announced_in_training_and_prediction(
    others: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    few = write_phantoms(tmp_path / "few", 36, 2, size=64)
    settings: dict[str, Any] = {"preprocess": {"size": SIDE}, "interval": {"resamples": 50}}
    finished = train(
        *(few, tmp_path / "run"), weights="none", views=1, keep_val=True, epochs=1, **settings
    )
    images, patients = (
        len({(r.patient, r.path)[kind == "train"] for r in index(few).subset(kind).records})
        for kind in ("train", "val")
    )
    assert images < 50
    assert patients < 10
    assert caplog.messages[-1] == (
        f"no input check: {images} training images, wanted at least 50 and {patients} validation "
        "patients, wanted at least 10. This model predicts for any picture."
    )
    model = finished.folder
    error = document(capsys, "input-check", few, "--model", model, code=3)["error"]
    assert error["message"].endswith("Train on more images.")
    words = f"{model} has no input check: it predicts for any picture."
    for option, times in (("--input-check", 1), ("--no-input-check", 0)):
        capsys.readouterr()
        assert run(["predict", *map(str, others), "--model", str(model), option]) == 0
        assert " ".join(capsys.readouterr().err.split()).count(words) == times


def test_known_embeddings_are_taken_and_only_for_images_as_they_are(
    bundle: Bundle, phantoms: Path
) -> None:
    images = sorted((phantoms / "train").rglob("*.png"))
    records = [ImageRecord(p, k % 2, str(k)) for k, p in enumerate(images)]
    predictor = embedding_predictor(bundle)
    told = {p: known(predictor.predict_file(p).embedding) for p in images}
    asked: list[Path] = []

    def lookup(record: ImageRecord) -> Precomputed | None:
        asked.append(record.path)
        return Precomputed(told[record.path]) if int(record.patient) % 3 else None

    parts = records[:60], records[60:]
    effort = checking.Effort(60, 5)
    plain, table = checking.with_input_check(predictor, *parts, effort=effort)
    quick, same = checking.with_input_check(predictor, *parts, lookup=lookup, effort=effort)
    assert len(asked) == len(images)  # once each, and for no copy
    assert (plain.method, plain.images, quick.images) == (METHOD, 60, 60)
    assert plain.limits == pytest.approx(quick.limits, rel=0.05)
    np.testing.assert_allclose(table["embedding.means"], same["embedding.means"], atol=1e-3)
    wrong = {path: embedding + 5 for path, embedding in told.items()}
    _, moved = checking.with_input_check(
        predictor, *parts, lookup=lambda record: Precomputed(wrong[record.path]), effort=effort
    )
    assert not np.allclose(table["embedding.means"], moved["embedding.means"], atol=1e-1)


def test_what_results_hold_is_not_read_again(
    bundle: Bundle, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((phantoms / "train").rglob("*.png"))[:80]
    records = [ImageRecord(p, k % 2, str(k)) for k, p in enumerate(images)]
    parts, effort = (records[:60], records[60:]), checking.Effort(60, 5)
    size = bundle.manifest.architecture.size
    engine = OpenVinoBackend([read_network(bundle.weights[0], bundle.manifest.architecture)], size)
    plain = checking.with_input_check(Predictor(bundle.manifest, engine), *parts, effort=effort)
    looking = Predictor(bundle.manifest, engine, looks=True)
    scored = score_all(records[60:], looking, "validation", SILENT)
    read: list[Path] = []

    def counted(path: Path) -> GreyImage:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(checking, "read_image", counted)
    predictor, lookup = Predictor(bundle.manifest, engine), scored_by_record(scored)
    check, table = checking.with_input_check(predictor, *parts, lookup=lookup, effort=effort)
    assert check == plain[0]
    for name, values in plain[1].items():
        np.testing.assert_array_equal(values, table[name])
    assert len(read) == 60 + 5  # what copies are made of
    statistics = statistics_of(check, table)
    whole = Predictor(bundle.manifest, engine, statistics=statistics)
    later = [result.prediction for result in scored.checked_by(whole).results]
    assert later == [one.prediction for one in whole.predict_files(images[60:])]
    assert {p.input_score is not None for p in later} == {True}


def test_unreadable_images_are_left_out(bundle: Bundle, phantoms: Path) -> None:
    images = sorted((phantoms / "train").rglob("*.png"))[:60]
    records = [ImageRecord(p, k % 2, str(k)) for k, p in enumerate(images)]
    gone = [ImageRecord(phantoms / f"gone-{k}.png", 0, f"g{k}") for k in range(60)]
    predictor = embedding_predictor(bundle)
    check, table = checking.with_input_check(predictor, records, gone)
    assert (check, table) == (InputCheck(), {})
    check, table = checking.with_input_check(predictor, [*records, *gone], records)
    assert check.method == METHOD
    assert set(table) >= {"embedding.means", "thumbnail.axes"}
