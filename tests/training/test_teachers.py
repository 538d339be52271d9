"""A bundle as a teacher gives the logits and heatmaps of its predictions, or is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.cli.app import run
from pneumoscope.errors import BundleError, UsageError
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.predictor import Predictor
from pneumoscope.storage import sha256_of_file
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.guidance import load_teachers
from pneumoscope.training.network import with_head
from support.small_bundle import small_bundle
from support.small_network import small_network


def test_a_teacher_predicts_what_its_bundle_predicts(tmp_path: Path) -> None:
    small_bundle(tmp_path / "one", seed=3)
    small_bundle(tmp_path / "two" / "model", seed=5, members=2, size=96)
    with small_network():
        first, *others = load_teachers((str(tmp_path / "one"), str(tmp_path / "two")))
    assert [each.preprocess.size for each in (first, *others)] == [64, 96, 96]
    predictor = Predictor.load(tmp_path / "one", "f32", input_check=False)
    images = np.random.default_rng(0).random((3, 64, 64), np.float32)
    batch = (images - 0.485) / 0.229
    inputs = np.stack([batch, (images - 0.456) / 0.224, (images - 0.406) / 0.225], -1)
    logits, heatmaps = (np.asarray(each) for each in first.model.predict(inputs, verbose=0))
    results = list(predictor.predict_images((f"{k}", image) for k, image in enumerate(images)))
    for k, result in enumerate(results):
        assert result.logit is not None
        assert result.cam is not None
        assert logits[k, 0] == pytest.approx(result.logit, abs=1e-3)
        shape = heatmaps[k] / max(heatmaps[k].max(), 1e-9)
        np.testing.assert_allclose(shape, result.cam / max(result.cam.max(), 1e-9), atol=1e-2)
    assert not first.model.trainable_variables


def test_no_weight_of_a_teacher_has_the_name_of_another(tmp_path: Path) -> None:
    """On Torch, Keras would not clear the gradients of all weights of one name."""
    small_bundle(tmp_path / "one")
    small_bundle(tmp_path / "two", members=2)
    with small_network():
        student = with_head(build_backbone(64), Architecture(), 0)
        teachers = load_teachers((str(tmp_path / "one"), str(tmp_path / "two")))
    models = [student, *(teacher.model for teacher in teachers)]
    paths = [weight.path for model in models for weight in model.weights]
    assert len(set(paths)) == len(paths) > 4 * 20


def test_what_is_no_bundle_or_was_changed_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--teacher .*nothing: holds no bundle\.json"):
        load_teachers((str(tmp_path / "nothing"),))
    bundle = small_bundle(tmp_path / "changed")
    with bundle.weights[0].open("ab") as stream:
        stream.write(b"x")
    with small_network(), pytest.raises(BundleError, match="its SHA-256 differs from that in"):
        load_teachers((str(tmp_path / "changed"),))


def test_train_learns_from_a_teacher_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = write_phantoms(tmp_path / "phantoms", 60, 3, size=80)
    small_bundle(tmp_path / "teacher")
    config = tmp_path / "config.toml"
    config.write_text(
        "[preprocess]\nsize = 64\n[fit]\nbatch_size = 8\n[guidance]\nlungs = 0.5\n"
        "[scratch]\nsizes = [48, 64]\nshares = [0.5, 0.5]\n[interval]\nresamples = 50\n"
    )
    arguments = ["train", str(data), "--out", "run", "--recipe", "scratch", "--weights", "none"]
    arguments += ["--config", str(config), "--epochs", "2", "--keep-val", "--json", "-q"]
    with small_network():
        assert run([*arguments, "--teacher", "teacher"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["epochs"] == 2
    written = (tmp_path / "run" / "config.toml").read_text()
    assert f'"{tmp_path / "teacher"}"' in written
    manifest = json.loads((tmp_path / "run" / "model" / "bundle.json").read_text())
    digest = sha256_of_file(tmp_path / "teacher" / "bundle.json")
    assert manifest["teachers"] == [f"teacher (bundle.json SHA-256 {digest})"]
    card = (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    assert "distilled from 1 teacher model:" in card
    assert "heatmap energy outside the lungs penalised (weight 0.5)" in card
    frozen = ["train", str(data), "--out", "other", "--weights", "none", "--teacher", "teacher"]
    assert run([*frozen, "--recipe", "frozen", "-q"]) == 2
    assert "which trains the whole network" in capsys.readouterr().err
