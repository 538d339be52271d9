"""Overlays are on disk before their answers are told."""

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
def answer(tmp_path: Path) -> Result:
    film = tmp_path / "film.png"
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(film)
    return Result(Prediction(str(film), "ok"), logit=0.0, cam=CAM, image=read_image(film))


def test_each_is_on_disk_when_its_answer_comes(answer: Result, tmp_path: Path) -> None:
    """In order, and refused ones between them have none."""
    folder, films = tmp_path / "maps", []
    folder.mkdir()
    for k in range(3 * BATCH):
        films.append(tmp_path / f"{k}.png")
        films[-1].write_bytes(b"text" if k == 5 else (tmp_path / "film.png").read_bytes())
    predictor, told = fake_predictor(), []
    write = overlay_writer(folder, predictor.manifest.preprocessing)
    for found in predictor.predict_files(films, keep=thinned, each=write):
        told.append(found.prediction.path)
        there = (folder / heatmap_name(told[-1])).exists()
        assert there == (found.prediction.status == "ok") == (told[-1] != str(films[5]))
    assert told == [str(film) for film in films]
    assert len(list(folder.iterdir())) == len(films) - 1


def test_it_is_the_picture_of_the_answer(answer: Result, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    overlay_writer(folder, CONFIG)(answer)
    assert answer.image is not None
    wanted = indexed_overlay_png(answer.image.pixels, CAM, CONFIG)
    assert [p.read_bytes() for p in folder.iterdir()] == [wanted]
    assert Image.open(io.BytesIO(wanted)).size == (40, 48)


def test_answers_without_a_map_have_no_picture(tmp_path: Path) -> None:
    overlay_writer(tmp_path, CONFIG)(Result(Prediction("x", "refused")))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cant_be_written_is_told(answer: Result, tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    gone = overlay_writer(tmp_path / "gone", CONFIG)
    with pytest.raises(OSError, match="No such file"):
        list(fake_predictor().predict_files([film], keep=thinned, each=gone))
    assert not list(tmp_path.glob(".*"))
