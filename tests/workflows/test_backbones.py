"""Other backbones go the whole way: trained by a recipe, predicted with, explained, exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.config import TrainConfig, training_config
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT
from pneumoscope.workflows.export import run_export
from pneumoscope.workflows.train import train

SIZE = 64


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "xrays"
    write_phantoms(folder, 40)
    return folder


def configured(recipe: str, backbone: str) -> TrainConfig:
    base = training_config(recipe)
    return replace(
        base,
        backbone=backbone,
        weights="none",
        views=1,
        keep_val=True,
        preprocess=replace(base.preprocess, size=SIZE),
        fit=replace(base.fit, epochs=1, batch_size=4),
        finetune=replace(base.finetune, head_epochs=1),
        scratch=replace(base.scratch, sizes=(SIZE,), shares=(1.0,)),
        interval=replace(base.interval, resamples=20),
    )


@pytest.mark.parametrize(
    ("recipe", "backbone"),
    [
        ("frozen", "efficientnet-lite0"),
        ("finetune", "mobilenetv3small"),
        ("frozen", "resnet50v2"),
        ("scratch", "mobilenetv2"),
    ],
)
def test_the_whole_way(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, backbone: str
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    run = train(phantoms, tmp_path / "run", configured(recipe, backbone))
    assert run.bundle.manifest.architecture.name == backbone
    predictor = Predictor.load(tmp_path / "run", input_check=False)
    result = predictor.predict_file(next(iter(sorted((phantoms / "test").rglob("*.png")))))
    assert result.prediction.status == "ok"
    assert result.cam is not None
    assert result.cam.shape == (2, 2)
    assert np.isfinite(result.cam).all()
    told, _, code = run_export(
        str(tmp_path / "run"), "onnx", tmp_path / "onnx", phantoms / "test", SILENT
    )
    assert code == 0
    assert told["certificate"]["largest_difference"] < 1e-4
