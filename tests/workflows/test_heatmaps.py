"""Overlays are on disk before their answers are told, in order, and nothing piles up."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png
from pneumoscope.inference.predictor import Answer
from pneumoscope.records import Prediction
from pneumoscope.workflows import heatmaps
from pneumoscope.workflows.heatmaps import with_overlays

CONFIG = PreprocessConfig()
CAM = np.eye(3, dtype=np.float32)


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    film = tmp_path / "film.png"
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(film)
    return Answer(Prediction(str(film), "ok"), logit=0.0, cam=CAM, image=read_image(film))


def named(answer: Answer, name: str) -> Answer:
    return Answer(Prediction(name, "ok"), logit=0.0, cam=answer.cam, image=answer.image)


def test_each_is_on_disk_when_its_answer_comes(answer: Answer, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    names = [f"{k}.png" for k in range(200)]
    told = []
    for found in with_overlays((named(answer, n) for n in names), folder, CONFIG):
        assert (folder / heatmap_name(found.prediction.path)).stat().st_size > 0
        told.append(found.prediction.path)
    assert told == names
    assert answer.image is not None
    wanted = indexed_overlay_png(answer.image.pixels, CAM, CONFIG)
    assert {p.read_bytes() for p in folder.iterdir()} == {wanted}
    assert Image.open(io.BytesIO(wanted)).size == (40, 48)


def test_answers_without_a_map_pass(answer: Answer, tmp_path: Path) -> None:
    refused = Answer(Prediction("x", "refused"))
    found = list(with_overlays([refused, answer], tmp_path, CONFIG))
    assert [each.prediction.status for each in found] == ["refused", "ok"]
    assert len(list(tmp_path.glob("film-*.png"))) == 1


def test_few_wait_at_once(answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmaps, "_MOST_WAITING", 3)
    taken = 0

    def answers() -> Iterator[Answer]:
        nonlocal taken
        for k in range(40):
            taken += 1
            yield named(answer, str(k))

    for told, _ in enumerate(with_overlays(answers(), tmp_path, CONFIG), 1):
        assert taken - told <= 3


def test_a_folder_that_cant_be_written_is_told(answer: Answer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        list(with_overlays([answer], tmp_path / "gone", CONFIG))
    assert not list(tmp_path.glob(".*"))
