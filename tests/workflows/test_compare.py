"""`compare`: two fake models on the same images, the verdict, the exit code, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.config import PreprocessConfig
from pneumoscope.inference.bundle import Abstention, BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32), threshold=OperatingPoint(0.5, "for the test", "")
)


class CornerBackend:
    """Logit: brightness of one half of the image, less a shift."""

    def __init__(self, half: int, shift: float = 0.0) -> None:
        self._half, self._shift = half, shift

    def run(self, batch: np.ndarray) -> Outputs:
        rows = batch[:, :16, :, 0] if self._half == 0 else batch[:, 16:, :, 0]
        logits = 8 * rows.mean((1, 2)).astype(np.float32) - self._shift
        count = len(batch)
        return Outputs(logits, np.ones((count, 2, 2), np.float32), np.zeros((count, 4), np.float32))


MODELS: dict[str, tuple[BundleManifest, Any]] = {
    "upper": (MANIFEST, CornerBackend(0)),
    "lower": (MANIFEST, CornerBackend(1)),
    "higher": (
        replace(MANIFEST, threshold=OperatingPoint(0.9, "for the test", "")),
        CornerBackend(0),
    ),
}


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: Predictor(*MODELS[model]))


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images: the upper half separates the classes, the lower half is noise."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(160):
        positive = k % 2
        upper = 150 + 40 * (positive - 0.5) + rng.normal(0, 12)
        grey = np.empty((40, 40))
        grey[:20], grey[20:] = upper, rng.uniform(110, 190)
        grey += rng.normal(0, 4, grey.shape)
        path = folder / ("PNEUMONIA" if positive else "NORMAL") / f"image-{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def compared(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int) -> dict[str, Any]:
    assert run(["compare", *map(str, arguments), "--resamples", "60", "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_same_model_passes_where_margins_allow(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ["--sensitivity-margin", 0.1, "--specificity-margin", 0.1]
    told = compared(capsys, "upper", "upper", xrays, "--out", tmp_path, *wide, code=0)
    assert told["passed"]
    assert told["n"] == 160
    assert told["flipped"] == []
    assert told == json.loads((tmp_path / "compare.json").read_text()) | {"out": str(tmp_path)}
    page = (tmp_path / "compare.html").read_text()
    assert "The new model passes" in page
    assert "This page contains X-rays" not in page
    # With the narrow margins of the defaults 80 of a class are too few to show it.
    told = compared(capsys, "upper", "upper", xrays, "--out", tmp_path, code=3)
    assert [check["name"] for check in told["checks"] if not check["passed"]] == [
        "sensitivity",
        "specificity",
    ]


def test_a_worse_model_does_not(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = compared(capsys, "upper", "lower", xrays, "--out", tmp_path, code=3)
    assert not told["passed"]
    assert told["differences"]["two_sided"]["auc"]["high"] < -0.1
    assert told["auc"]["p"] < 1e-6
    everyone = told["disagreement"]["all"]
    assert everyone["only_old"] > everyone["only_new"]
    assert everyone["only_old"] + everyone["only_new"] == len(told["flipped"])
    # Newly wrong predictions come first.
    wrong = [row["new"]["prediction"] != row["label"] for row in told["flipped"]]
    assert wrong == sorted(wrong, reverse=True)
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<img") == 12 * 3
    assert "now wrong" in page
    assert "is lower by more than 0.01" in page


def test_the_old_threshold_is_carried_over(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = compared(capsys, "upper", "higher", xrays, "--out", tmp_path, code=3)
    assert told["thresholds"] == [0.5, 0.9]
    assert told["new"]["sensitivity"]["value"] < told["old"]["sensitivity"]["value"]
    assert told["carried"] == told["old"]
    assert told["carried_differences"]["two_sided"]["sensitivity"]["value"] == 0.0
    models = told["models"]
    assert (models["old"]["name"], models["new"]["name"]) == ("upper", "higher")
    assert len(models["old"]["fingerprint"]) == 64
    assert models["new"]["abstention"]["uncertain"] == 0
    assert not told["seen"]["old"]["known"]
    page = (tmp_path / "compare.html").read_text()
    words = "model: It is not known whether the model was trained on some of these images"
    assert page.count(words) == 2
    assert "indeterminate" not in (tmp_path / "compare.html").read_text()


def test_withheld_predictions_are_reported(
    xrays: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    band = replace(MANIFEST, abstention=Abstention("band", 0.4, 0.6, "for the test", ""))
    monkeypatch.setitem(MODELS, "band", (band, CornerBackend(0)))
    predictor = Predictor(*MODELS["band"])
    results = [predictor.predict_file(path).prediction for path in sorted(xrays.rglob("*.png"))]
    wanted = [result.prediction for result in results].count("uncertain")
    assert 0 < wanted < 160
    told = compared(capsys, "upper", "band", xrays, "--out", tmp_path, code=3)
    assert told["models"]["old"]["abstention"]["uncertain"] == 0
    assert told["models"]["new"]["abstention"]["uncertain"] == wanted
    assert told["n"] == 160
    page = (tmp_path / "compare.html").read_text()
    assert "Abstention (indeterminate results)" in page
    run(["compare", "upper", "band", str(xrays), "--out", str(tmp_path), "--resamples", "40"])
    (line,) = [
        one for one in capsys.readouterr().out.splitlines() if one.startswith("indeterminate")
    ]
    assert line.split()[1:3] == ["–", str(wanted)]


def test_only_images_that_both_scored_count(
    xrays: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Choosy(CornerBackend):
        def run(self, batch: np.ndarray) -> Outputs:
            found = super().run(batch)
            found.logits[found.logits < np.quantile(found.logits, 0.2)] = np.nan
            return found

    monkeypatch.setitem(MODELS, "choosy", (MANIFEST, Choosy(0)))
    told = compared(capsys, "upper", "choosy", xrays, "--out", tmp_path, code=3)
    assert told["n"] + told["answered_by_one"]["old"] == 160
    assert told["answered_by_one"] == {"old": 160 - told["n"], "new": 0}
    assert told["n"] < 140


def test_text_reports_the_verdict(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "upper", "lower", str(xrays), "--out", str(tmp_path)]
    assert run([*arguments, "--resamples", "40"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "not passed" in lines
    assert any(line.startswith("auc ") and "not passed: is lower" in line for line in lines)


def test_a_split_that_is_not_there(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,label,patient,split"]
    for path in sorted(xrays.rglob("*.png")):
        rows.append(f"{path},{path.parent.name},{path.stem},val")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    asked = ["upper", "upper", tmp_path / "split.csv", "--out", tmp_path / "out"]
    assert "no test split" in compared(capsys, *asked, code=3)["error"]["message"]
    assert compared(capsys, *asked, "--split", "val", code=3)["n"] == 160
