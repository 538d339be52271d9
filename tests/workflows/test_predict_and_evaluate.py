"""`predict` and `evaluate` around a fake model: rows, files, codes, whatever the inputs."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.config import PreprocessConfig, StressConfig, TrainConfig, to_toml
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.images.lungs import find_lungs, lung_box, match_framing
from pneumoscope.images.phantom import draw
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.storage import temporary_beside

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32),
    threshold=OperatingPoint(0.5, "for the test", "nothing"),
    calibration=Calibration("none", 1.0, 0.0),
)


class MeanBackend:
    """Logit: the mean of the input's first channel."""

    def run(self, batch: np.ndarray) -> Outputs:
        means = batch[..., 0].mean((1, 2)).astype(np.float32)
        cams = np.ones((len(batch), 2, 2), np.float32)
        return Outputs(means, cams, np.zeros((len(batch), 4), np.float32))


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Predictor, "load", lambda model, *_, **__: Predictor(MANIFEST, MeanBackend())
    )


def xray(path: Path, level: int) -> Path:
    grey = np.full((40, 48), level, np.uint8)
    grey[10:20, 8:30] += 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path, "PNG")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def json_of(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> dict[str, Any]:
    """The one JSON document on stdout, with nothing at all on stderr."""
    assert run([*map(str, arguments), "--json", "-q"]) == code
    out, err = capsys.readouterr()
    assert err == "" or code
    document: dict[str, Any] = json.loads(out)
    return document


def test_every_input_has_one_row_in_input_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = xray(tmp_path / "images" / "b.png", 200)
    xray(tmp_path / "images" / "a" / "dark.png", 10)
    (tmp_path / "images" / "notes.txt").write_text("text")
    table = tmp_path / "list.csv"
    table.write_text("path\nimages/b.png\ngone.png\n")
    asked = [good, tmp_path / "none.png", tmp_path / "images", table, good]
    out = tmp_path / "new" / "p.csv"
    document = json_of(capsys, "predict", *asked, "--out", out)
    rows = rows_of(out)
    assert [Path(row["path"]).name for row in rows] == [
        *("b.png", "none.png", "dark.png", "b.png", "notes.txt", "b.png", "gone.png", "b.png")
    ]
    assert [row["reason"] for row in rows] == [
        *("", "not_found", "", "", "not_an_image", "", "not_found", "")
    ]
    assert document["counts"] == {"ok": 5, "refused": 1, "error": 2}
    assert [row["path"] for row in document["predictions"]] == [row["path"] for row in rows]


def test_heatmaps_of_equal_names_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [xray(tmp_path / name / "x.png", 90) for name in ("a", "b")]
    json_of(capsys, "predict", *images, "--heatmaps", tmp_path / "maps")
    found = sorted((tmp_path / "maps").iterdir())
    assert len(found) == 2
    with Image.open(found[0]) as image:
        assert image.size == (48, 40)


def test_names_that_are_odd_or_no_utf8_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a b,c.png", 'q"uote.png', "ü肺.png", "new\nline.png", "\x1b[31mred.png", "=1+1.png"]
    images = [xray(tmp_path / "f" / name, 80 + k) for k, name in enumerate(names)]
    try:
        images.append(xray(tmp_path / "f" / os.fsdecode(b"caf\xe9.png"), 99))
    except OSError:  # a file system that takes UTF-8 alone
        images.append(tmp_path / "f" / os.fsdecode(b"caf\xe9.png"))
    out = tmp_path / "p.csv"
    asked = [*map(str, images), "--heatmaps", str(tmp_path / "maps")]
    assert run(["predict", *asked, "--out", str(out), "-q"]) == 0
    rows = rows_of(out)
    assert [Path(row["path"]).name for row in rows] == [*names, "caf\\udce9.png"]
    assert len(list((tmp_path / "maps").iterdir())) == sum(row["status"] == "ok" for row in rows)
    capsys.readouterr()
    assert run(["predict", *map(str, images), "-q"]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert len(text.splitlines()) == len(images) + 3
    assert "\x1b" not in text
    assert json_of(capsys, "predict", *images)["counts"]["ok"] >= len(names)


@pytest.mark.parametrize("option", ["--out", "--heatmaps"])
def test_a_file_in_place_of_a_folder_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    path = xray(tmp_path / "x.png", 90)
    monkeypatch.setattr(
        Predictor, "load", lambda model, *_, **__: pytest.fail("worked before it looked")
    )
    place = tmp_path / "x.png" / ("p.csv" if option == "--out" else "maps")
    document = json_of(capsys, "predict", path, option, place, code=2)
    assert "wanted a folder" in document["error"]["message"]
    if option == "--out":
        (tmp_path / "p.csv").mkdir()
        json_of(capsys, "predict", path, option, tmp_path / "p.csv", code=2)


def labelled(folder: Path, labels: list[int], split: str = "") -> Path:
    """A manifest of images, in an order that is not that of their names."""
    lines = []
    for k, label in enumerate(labels):
        xray(folder / f"{9 - k}.png", 60 + 90 * label + k)
        lines.append(f"{9 - k}.png,{label},p{k},{split}")
    table = folder / "data.csv"
    table.write_text("\n".join(["path,label,patient,split", *lines]) + "\n")
    return table


@pytest.mark.parametrize("labels", [[1], [0], [1, 1], [0, 1], [1, 0, 1, 0]], ids=str)
def test_tiny_and_one_class_data_are_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[int]
) -> None:
    data, out = labelled(tmp_path / "d", labels), tmp_path / "e"
    document = json_of(capsys, "evaluate", data, "--out", out, "--split", "all")
    assert document == json.loads((out / "metrics.json").read_text()) | {"out": str(out)}
    assert (document["n"], document["positives"]) == (len(labels), sum(labels))
    both = len(set(labels)) == 2
    assert (document["metrics"]["auc"]["value"] is not None) == both
    assert (document["metrics"]["accuracy"]["value"]) is not None
    assert (out / "report.html").exists()
    predictions, truth = rows_of(out / "predictions.csv"), rows_of(out / "labels.csv")
    assert [Path(row["path"]).name for row in predictions] == [
        f"{9 - k}.png" for k in range(len(labels))
    ]
    assert [Path(row["path"]).name for row in truth] == [
        Path(row["path"]).name for row in predictions
    ]
    assert [row["label"] for row in truth] == [("NORMAL", "PNEUMONIA")[k] for k in labels]


def test_unreadable_images_are_counted_and_stand_in_no_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = labelled(tmp_path / "d", [0, 1, 0, 1], "test"), tmp_path / "e"
    (tmp_path / "d" / "8.png").write_bytes(b"text")
    document = json_of(capsys, "evaluate", data, "--out", out)
    assert (document["n"], document["refused"]) == (3, 1)
    rows = rows_of(out / "predictions.csv")
    assert [row["status"] for row in rows] == ["ok", "refused", "ok", "ok"]
    assert len(rows_of(out / "labels.csv")) == 4
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "8.png" in report
    assert "4 X-rays of 4 patients were evaluated, of which 1 gave no result" in report
    assert "(not an image: 1)." in report
    assert "not an image: 1" in (out / "figures" / "flow.svg").read_text(encoding="utf-8")
    checklist = (out / "checklist.html").read_text(encoding="utf-8")
    assert "Here: not an image (1)." in checklist
    assert "3 X-rays of 3 patients" in checklist
    for k in range(4):
        (tmp_path / "d" / f"{9 - k}.png").write_bytes(b"text")
    failed = json_of(capsys, "evaluate", data, "--out", out, code=3)
    assert "none of 4 images has a prediction" in failed["error"]["message"]


def test_all_takes_every_split_and_test_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("val", "test"):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            xray(tmp_path / "d" / split / name / f"{split}.png", 60 + 90 * label)
    data, out = tmp_path / "d", tmp_path / "e"
    assert json_of(capsys, "evaluate", data, "--out", out)["n"] == 2
    assert json_of(capsys, "evaluate", data, "--out", out, "--split", "all")["n"] == 4
    failed = json_of(capsys, "evaluate", data, "--out", out, "--split", "train", code=3)
    assert "has no train split, found val (2 images), test (2 images)" in failed["error"]["message"]


def test_evaluation_into_a_file_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path / "d", [0, 1], "test")
    (tmp_path / "e").touch()
    failed = json_of(capsys, "evaluate", data, "--out", tmp_path / "e", code=2)
    assert "wanted a folder" in failed["error"]["message"]


def test_demo_and_train_leave_a_file_in_their_way_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path / "d", [0, 1] * 4)
    path = tmp_path / "file"
    path.write_text("mine")
    json_of(capsys, "demo", "--out", path, code=2)
    json_of(capsys, "train", data, "--out", path, "--weights", "none", code=2)
    assert path.read_text() == "mine"


def test_a_run_killed_before_its_first_file_can_be_begun_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = labelled(tmp_path / "d", [0, 1] * 4), tmp_path / "run"
    out.mkdir()
    temporary_beside(out / "config.toml").write_text("half")
    asked = ["train", data, "--out", out, "--weights", tmp_path / "absent.h5"]
    failed = json_of(capsys, *asked, code=4)
    assert "absent.h5" in failed["error"]["message"]  # it went on to the weights
    (out / "notes.txt").touch()
    assert "not empty" in json_of(capsys, *asked, code=2)["error"]["message"]


def test_resuming_under_another_configuration_file_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = labelled(tmp_path / "d", [0, 1] * 4), tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text(to_toml(TrainConfig()))
    (tmp_path / "other.toml").write_text("views = 4\n[fit]\nepochs = 3\n")
    asked = ["train", data, "--out", out, "--resume", "--config", tmp_path / "other.toml"]
    failed = json_of(capsys, *asked, code=2)
    assert "the run has fit.epochs = 60, you gave 3" in failed["error"]["message"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_nothing_to_train_on_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    data, out = labelled(tmp_path / "d", [0, 1] * 4, split), tmp_path / "run"
    asked = ["train", data, "--out", out, "--weights", "none", "--keep-val"]
    failed = json_of(capsys, *asked, code=3)
    assert "train" in failed["error"]["message"]
    assert not out.exists()


def test_matched_framing_scores_re_cut_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "e"
    wanted = {}
    for name, label in (("NORMAL", 0), ("PNEUMONIA", 1)):
        for k in range(3):
            path = data / "test" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw(4, f"{name}{k}", k, label, size=96).pixels
            Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
            image = read_image(path).pixels
            lungs = find_lungs(image)
            box = lung_box(lungs) if lungs.quality >= StressConfig().lung_quality else None
            copy = match_framing(image, box, 0.8)
            wanted[path.name, name] = (
                Predictor(MANIFEST, MeanBackend()).predict_image(copy).prediction.probability,
                box is None,
            )
    (data / "test" / "NORMAL" / "broken.png").write_bytes(b"no image")
    matched = ("--framing", "matched", "--framing-share", "0.8")
    document = json_of(capsys, "evaluate", data, "--out", out, *matched)
    assert document["framing"] == {
        "share": 0.8,
        "median_box": sum(mask_out for _, mask_out in wanted.values()),
    }
    assert (document["n"], document["refused"]) == (6, 1)
    for row in rows_of(out / "predictions.csv"):
        path = Path(row["path"])
        if path.name == "broken.png":
            assert row["reason"] == "not_an_image"
        else:
            probability, _ = wanted[path.name, path.parent.name]
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)
    assert "Framing matched: every image was cropped" in (out / "report.html").read_text()
    as_is = json_of(capsys, "evaluate", data, "--out", tmp_path / "as-is")
    assert "framing" not in as_is
    rejected = json_of(capsys, "evaluate", data, "--out", out, *matched[2:], code=2)
    assert "needs --framing matched" in rejected["error"]["message"]
