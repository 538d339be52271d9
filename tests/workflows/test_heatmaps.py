"""Overlays are on disk before their results are given."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png, thinned
from pneumoscope.inference.predictor import BATCH
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction
from pneumoscope.workflows.predict import overlay_writer
from support.fake_service import fake_predictor

CONFIG = PreprocessConfig()
CAM = np.eye(3, dtype=np.float32)


@pytest.fixture
def result(tmp_path: Path) -> Result:
    xray = tmp_path / "image.png"
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(xray)
    return Result(Prediction(str(xray), "ok"), logit=0.0, cam=CAM, image=read_image(xray))


def test_each_is_on_disk_when_its_result_comes(result: Result, tmp_path: Path) -> None:
    """In order, and rejected ones between them have none."""
    folder, images = tmp_path / "maps", []
    folder.mkdir()
    for k in range(3 * BATCH):
        images.append(tmp_path / f"{k}.png")
        images[-1].write_bytes(b"text" if k == 5 else (tmp_path / "image.png").read_bytes())
    predictor, told = fake_predictor(), []
    write = overlay_writer(folder, predictor.manifest.preprocessing)
    for found in predictor.predict_files(images, keep=thinned, each=write):
        told.append(found.prediction.path)
        there = (folder / heatmap_name(told[-1])).exists()
        assert there == (found.prediction.status == "ok") == (told[-1] != str(images[5]))
    assert told == [str(image) for image in images]
    assert len(list(folder.iterdir())) == len(images) - 1


def test_it_is_the_picture_of_the_result(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    overlay_writer(folder, CONFIG)(result)
    assert result.image is not None
    wanted = indexed_overlay_png(result.image.pixels, CAM, CONFIG)
    assert [p.read_bytes() for p in folder.iterdir()] == [wanted]
    assert Image.open(io.BytesIO(wanted)).size == (40, 48)


def test_results_without_a_map_have_no_picture(tmp_path: Path) -> None:
    overlay_writer(tmp_path, CONFIG)(Result(Prediction("x", "refused")))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cant_be_written_is_reported(result: Result, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    gone = overlay_writer(tmp_path / "gone", CONFIG)
    with pytest.raises(OSError, match="No such file"):
        list(fake_predictor().predict_files([image], keep=thinned, each=gone))
    assert not list(tmp_path.glob(".*"))
