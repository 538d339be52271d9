"""`plan` from an evaluation's folder to its files, and to a model that predicts by it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.evaluation.calibration import Calibration, sigmoid
from pneumoscope.inference.bundle import (
    OperatingPoint,
    load_bundle,
    model_fingerprint,
    write_revised,
)
from pneumoscope.inference.certificates import PrecisionCertificate
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import COLUMNS
from pneumoscope.workflows.evaluation_folder import read_evaluation
from pneumoscope.workflows.inspect import run_info


def evaluation(folder: Path, model: str = "", threshold: float = 0.5, split: str = "val") -> Path:
    """An evaluation of 240 images of 120 patients, as `evaluate` leaves it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    labels = np.arange(240) // 2 % 2
    scores = sigmoid(5.0 * (labels - 0.5) + rng.normal(size=240))
    with (folder / "predictions.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(COLUMNS)
        rows.writerow(["/x/none.png", "error", "not_found", "", "", "", ""])
        for k, score in enumerate(scores):
            rows.writerow([f"/x/{k}.png", "ok", "", repr(float(score)), "", threshold, ""])
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "patient", "split"])
        rows.writerow(["none.png", "NORMAL", "nobody", split])
        for k, label in enumerate(labels):
            rows.writerow([f"{k}.png", ("NORMAL", "PNEUMONIA")[label], f"p{k // 2}", split])
    document: dict[str, Any] = {"threshold": {"value": threshold, "rule": "for the test"}}
    if model:
        document["model"] = {"name": "its model", "fingerprint": model}
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder


def test_a_column_score_of_the_manifest_is_not_the_models(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e")
    wanted = read_evaluation(folder).probabilities
    table = folder / "predictions.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"score,{head}", *(f"0.5,{row}" for row in rows)]) + "\n")
    assert read_evaluation(folder).probabilities.tolist() == wanted.tolist()


def planned(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> dict[str, Any]:
    """The document on stdout."""
    assert run(["plan", *map(str, arguments), "--resamples", "40", "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The default model's weights with a plain calibration and a threshold of 0.5."""
    given = load_bundle("default")
    manifest = replace(
        given.manifest,
        calibration=Calibration("none", 1.0, 0.0),
        threshold=OperatingPoint(0.5, "for the test", "nothing"),
    )
    return write_revised(tmp_path / "bundle", given, manifest, "# A card\n").folder


def test_files_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "e")
    out = tmp_path / "out"
    told = planned(capsys, folder, "--prevalence", 0.1, "--min-sensitivity", 0.9, "--out", out)
    written = json.loads((out / "plan.json").read_text())
    assert told == written | {"out": str(out)}
    assert (told["n"], told["patients"], told["positives"]) == (240, 120, 120)
    assert told["prevalence"] == {"value": 0.1, "given": True}
    with (out / "plan.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(told["thresholds"])
    for row, other in zip(rows, told["thresholds"], strict=True):
        assert float(row["threshold"]) == other["threshold"]
        assert float(row["sensitivity_low"]) == other["sensitivity"]["low"]
        ppv = other["ppv"]["value"]
        assert (row["ppv"] == "") if ppv is None else (float(row["ppv"]) == ppv)
    chosen = told["chosen"]
    assert chosen["threshold"] in [row["threshold"] for row in told["thresholds"]]
    assert told["holds"]["limit"] >= 0.9
    assert chosen["sensitivity"]["value"] > 0.9
    assert told["current"]["threshold"] == 0.5
    assert told["verify"]["sensitivity"]["least"] == 0.9
    assert "binomial" in told["verify"]["formula"]
    page = (out / "plan.html").read_text()
    assert f"{chosen['threshold']:.4f}" in page
    assert not (folder / "plan.json").exists()


def test_files_lie_beside_the_evaluation_and_a_run_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluation(tmp_path / "run" / "evaluation", split="test")
    told = planned(capsys, tmp_path / "run")
    assert told["out"] == str(folder)
    assert (folder / "plan.html").is_file()
    assert told["chosen"] is None
    assert told["prevalence"] == {"value": 0.5, "given": False}
    assert any("test split" in note for note in told["notes"])
    assert any("--prevalence" in note for note in told["notes"])


def test_text_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "e")
    options = ["--min-specificity", "0.9", "--prevalence", "0.2", "--sets", "0.9"]
    assert run(["plan", str(folder), *options, "--resamples", "40"]) == 0
    text = capsys.readouterr().out
    assert "specificity at least 0.9 with 95% confidence" in text
    assert "false alarms per 1000" in text
    assert "to verify specificity above 0.900" in text
    assert "indeterminate from" in text


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--min-sensitivity", "0.9", "--threshold", "0.4"], 2, "wanted one of them"),
        (["--band", "0.1", "--sets", "0.9"], 2, "wanted one of them"),
        (["--prevalence", "0"], 2, "--prevalence"),
        (["--prevalence", "nan"], 2, "--prevalence"),
        (["--threshold", "1.5"], 2, "--threshold"),
        (["--apply", "made"], 2, "no change was requested"),
        (["--min-sensitivity", "0.9999"], 3, "Evaluate on more patients"),
        (["--confidence", "0.2", "--min-sensitivity", "0.9"], 2, "confidence"),
    ],
)
def test_what_can_not_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    told = planned(capsys, evaluation(tmp_path / "e"), *options, code=code)
    assert words in told["error"]["message"]
    assert not (tmp_path / "e" / "plan.json").exists()


def test_folders_that_are_no_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "metrics.json" in planned(capsys, tmp_path, code=2)["error"]["message"]
    folder = evaluation(tmp_path / "e")
    whole = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(whole.replace("7.png", "8.png", 1))
    assert "same order" in planned(capsys, folder, code=3)["error"]["message"]
    (folder / "labels.csv").write_text(whole.replace("7.png,PNEUMONIA", "7.png,SICK"))
    assert "can't be understood" in planned(capsys, folder, code=3)["error"]["message"]
    (folder / "labels.csv").write_text("path,label\n")
    assert "no row" in planned(capsys, folder, code=3)["error"]["message"]
    (folder / "metrics.json").write_text("{")
    assert "can't be read" in planned(capsys, folder, code=3)["error"]["message"]


def test_certificates_compared_decisions_at_the_old_threshold_and_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    plain = load_bundle(bundle)
    manifest = replace(plain.manifest, certificates=(PrecisionCertificate("bf16"),))
    certified = write_revised(tmp_path / "certified", plain, manifest, "# A card\n")
    assert certified.manifest.certificates
    folder = evaluation(tmp_path / "e", model_fingerprint(certified.manifest))
    made = tmp_path / "made"
    planned(capsys, folder, "--threshold", 0.7, "--model", certified.folder, "--apply", made)
    assert load_bundle(made).manifest.certificates == ()


def test_apply_writes_a_model_that_predicts_by_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    mark = model_fingerprint(load_bundle(bundle).manifest)
    folder = evaluation(tmp_path / "e", mark)
    made = tmp_path / "made"
    options = ["--min-sensitivity", 0.9, "--band", 0.1, "--model", bundle, "--apply", made]
    told = planned(capsys, folder, *options)
    found = load_bundle(made).manifest
    assert found.threshold.value == told["chosen"]["threshold"]
    assert found.threshold.rule == told["chosen"]["rule"]
    assert found.threshold.chosen_on == "240 images of 120 patients (val)"
    assert found.abstention.method == "band"
    assert found.abstention.low == told["abstention"]["low"]
    assert found.validation["threshold"]["value"] == found.threshold.value
    adjusted = "the images that the model was adjusted on"
    assert found.validation["on"] == adjusted  # they are not its validation images
    author = Author.of(found)
    assert any(text.startswith(f"sensitivity on {adjusted} 0.") for text in author.statements)
    assert "metrics       on validation" in run_info(str(bundle))[1]
    assert f"metrics       on {adjusted}" in run_info(str(made))[1]
    assert told["applied"]["threshold"]["value"] == found.threshold.value
    assert model_fingerprint(found) == mark  # the same probabilities
    weights = [path.name for path in bundle.iterdir() if path.suffix == ".h5"]
    for name in weights:
        assert (made / name).read_bytes() == (bundle / name).read_bytes()
    card = (made / "MODEL_CARD.md").read_text()
    assert card.startswith("# A card\n")
    assert f"Threshold {found.threshold.value:.4f}" in card
    assert "`uncertain` is predicted from" in card
    # What was made can be planned for again; another threshold takes the band away.
    again = tmp_path / "again"
    planned(capsys, folder, "--threshold", 0.7, "--model", made, "--apply", again)
    assert load_bundle(again).manifest.abstention.method == "none"
    assert load_bundle(again).manifest.threshold.value == 0.7


def test_only_the_model_that_was_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    options = ["--threshold", 0.4, "--model", bundle, "--apply", tmp_path / "made"]
    wrong = evaluation(tmp_path / "wrong", "f" * 64)
    told = planned(capsys, wrong, *options, code=3)
    assert "its model" in told["error"]["message"]
    older = evaluation(tmp_path / "older", threshold=0.6)
    assert "of another model" in planned(capsys, older, *options, code=3)["error"]["message"]
    unnamed = evaluation(tmp_path / "unnamed")
    notes = planned(capsys, unnamed, *options)["notes"]
    assert any("does not name its model" in note for note in notes)
    other = tmp_path / "taken"
    other.mkdir()
    (other / "thesis.txt").write_text("mine", encoding="utf-8")
    options[-1] = other
    assert "is not a bundle" in planned(capsys, unnamed, *options, code=2)["error"]["message"]
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


class BrightBackend:
    """Logit: how bright the image is."""

    def run(self, batch: np.ndarray) -> Outputs:
        logits = 6 * batch[..., 0].mean((1, 2)).astype(np.float32)
        count = len(batch)
        return Outputs(logits, np.ones((count, 2, 2), np.float32), np.zeros((count, 4), np.float32))


def test_recalibration_changes_the_scale_and_no_decision(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = replace(
        load_bundle(bundle).manifest, preprocessing=PreprocessConfig(size=32, fit="pad")
    )
    monkeypatch.setattr(
        Predictor, "load", lambda model, *_, **__: Predictor(manifest, BrightBackend())
    )
    rng = np.random.default_rng(1)
    for k in range(
        90
    ):  # a site where the brighter have pneumonia, but much less surely than stated
        level = rng.uniform(60, 190)
        positive = rng.random() < sigmoid(np.array((level - 140) / 40))
        path = tmp_path / "site" / ("PNEUMONIA" if positive else "NORMAL") / f"f{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = rng.normal(level, 5, (40, 40)).clip(0, 255)
        Image.fromarray(grey.astype(np.uint8)).save(path)
    folder = evaluation(tmp_path / "e", model_fingerprint(load_bundle(bundle).manifest))
    made = tmp_path / "made"
    options = ["--recalibrate", tmp_path / "site", "--model", bundle, "--apply", made]
    told = planned(capsys, folder, *options)
    assert "Local recalibration" in (folder / "plan.html").read_text()
    sample = told["recalibration"]
    assert sample["images"] == 90
    assert sample["seen"]["images"] == 90
    assert not sample["seen"]["known"]
    (note,) = [note for note in told["notes"] if note.startswith("Calibration sample: ")]
    assert "not known whether the model was trained on some of these images" in note
    words = "Calibration sample: It is not known whether the model"
    assert words in (folder / "plan.html").read_text()
    assert sample["changed"]
    assert sample["log_loss_gain"]["low"] > 0
    found = load_bundle(made).manifest
    assert found.calibration.to_dict() == sample["calibration"]
    assert found.calibration.slope < 1.0
    # The same images are called as before: on the new scale at the carried threshold.
    assert found.threshold.value == pytest.approx(float(found.calibration.apply(0.0)))
    assert "site" in found.threshold.chosen_on
    plain = planned(capsys, folder)
    for rate in ("sensitivity", "specificity"):
        assert told["current"][rate]["value"] == plain["current"][rate]["value"]
    assert "Calibration fitted to 90 images" in (made / "MODEL_CARD.md").read_text()
