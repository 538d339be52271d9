"""`Predictor.predict` takes an image in any form, and gives it the probability of its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.data.index import load_dataset
from pneumoscope.errors import DataError, ImageRefusedError, MissingError, Reason, UsageError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import BATCH, Predictor
from pneumoscope.inference.results import COLUMNS

MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32, normalisation="imagenet"),
    threshold=OperatingPoint(0.6, "for the test", ""),
    calibration=Calibration("platt", 2.0, -0.5),
)
GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (48, 40), np.uint8)


class MeanBackend:
    """Logit: the mean of the input's first channel; embedding: that of each channel."""

    def run(self, batch: np.ndarray) -> Outputs:
        means = batch.mean((1, 2)).astype(np.float32)
        return Outputs(means[:, 0], np.ones((len(batch), 2, 2), np.float32), means)


PREDICTOR = Predictor(MANIFEST, MeanBackend())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(GREY).save(path)
    return path


def manifest(path: Path) -> Path:
    table = path.parent.parent / "table.csv"
    table.write_text("path,label\nimages/a.png,NORMAL\n", encoding="utf-8")
    return table


FORMS: dict[str, Any] = {
    "path": lambda path: path,
    "text": str,
    "folder": lambda path: path.parent,
    "pattern": lambda path: path.parent / "*.png",
    "csv": manifest,
    "list": lambda path: [path],
    "generator": lambda path: (each for each in [path]),
    "bytes": lambda path: path.read_bytes(),
    "pillow": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
    "channel": lambda path: np.asarray(Image.open(path))[..., None],
    "batch": lambda path: np.asarray(Image.open(path))[None],
    "uint16": lambda path: np.asarray(Image.open(path)).astype(np.uint16) * 257,
    "float32": lambda path: read_image(path).pixels,
    "float64": lambda path: read_image(path).pixels.astype(np.float64),
    "polars": lambda path: pl.DataFrame({"path": [str(path)], "age": [3]}),
    "column": lambda path: pl.DataFrame({"path": [str(path)]})["path"],
    "dataset": lambda path: load_dataset(manifest(path)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_has_the_probability_of_its_file(file: Path, form: str) -> None:
    wanted = PREDICTOR.predict_file(file)
    results = PREDICTOR.predict(FORMS[form](file))
    assert [result.status for result in results] == ["ok"]
    assert results[0].probability == pytest.approx(wanted.probability, abs=1e-6)
    assert results[0].label == wanted.label == wanted.prediction.prediction


@pytest.mark.parametrize("form", ["pandas", "pandas column"])
def test_pandas_is_taken_too(file: Path, form: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"path": [str(file)], "age": [3]})
    found = PREDICTOR.predict(frame if form == "pandas" else frame["path"])
    assert found[0].probability == PREDICTOR.predict_file(file).probability


def test_colour_is_weighed_as_in_a_file(file: Path) -> None:
    colours = GENERATOR.integers(0, 256, (48, 40, 3), np.uint8)
    Image.fromarray(colours).save(file)
    wanted = PREDICTOR.predict_file(file).probability
    both = PREDICTOR.predict([colours, Image.fromarray(colours)])
    assert [result.probability for result in both] == [wanted, wanted]
    assert len(PREDICTOR.predict(np.stack([colours, colours]))) == 2


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_a_blank_image_has_no_prediction_in_any_form(kind: type[np.generic]) -> None:
    blank = np.zeros((32, 32), kind)
    found = PREDICTOR.predict([blank, GREY])
    assert [result.status for result in found] == ["refused", "ok"]
    assert found[0].reason is not None
    assert found[0].reason.value == "blank"
    with pytest.raises(ImageRefusedError, match=r"all its pixels have one grey \(0\.000\)"):
        PREDICTOR.preprocess(blank)


def test_one_opened_picture_may_be_given_several_times(file: Path) -> None:
    Image.fromarray(GENERATOR.integers(0, 256, (1200, 1200), np.uint8)).save(file)
    wanted = PREDICTOR.predict_file(file).probability
    for _ in range(5):
        results = PREDICTOR.predict([Image.open(file)] * 4)
        assert [result.probability for result in results] == [wanted] * 4


def test_a_picture_of_two_pages_is_rejected_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    of_file = PREDICTOR.predict_file(path)
    with Image.open(path) as picture:
        (of_picture,) = PREDICTOR.predict([picture])
    assert of_file.prediction.reason == of_picture.prediction.reason == Reason.MULTI_FRAME
    assert "of 2 images" in of_picture.prediction.detail


def test_predict_file_takes_a_path_only() -> None:
    with pytest.raises(UsageError, match=r"takes a path, found ndarray; use predict for arrays"):
        PREDICTOR.predict_file(GREY)  # type: ignore[arg-type]


def test_forms_mix_in_order_and_each_has_a_name(file: Path) -> None:
    images = [file, GREY, Image.open(file), "missing.png", b"no image"] * BATCH
    results = PREDICTOR.predict(images)
    assert [result.path for result in results[:5]] == [
        *(str(file), "image-1", str(file), "missing.png", "image-4"),
    ]
    statuses = ["ok", "ok", "ok", "error", "refused"] * BATCH
    assert [result.status for result in results] == statuses
    assert results[3].reason is not None
    assert results[3].reason.value == "not_found"
    assert results[3].label is None
    assert results[3].probability is None
    assert np.isnan(results.probabilities).tolist() == [status != "ok" for status in statuses]
    assert repr(results) == f"<Results: {5 * BATCH} images, {3 * BATCH} with a prediction>"


def test_the_frame_has_the_columns_of_predictions_csv(file: Path) -> None:
    frame = PREDICTOR.predict([file, "missing.png"]).to_frame()
    assert isinstance(frame, pl.DataFrame)
    assert tuple(frame.columns) == COLUMNS
    assert frame["status"].to_list() == ["ok", "error"]
    assert frame["probability"].dtype == pl.Float64
    empty = PREDICTOR.predict([]).to_frame()
    assert (empty.shape, empty.schema) == ((0, len(COLUMNS)), frame.schema)


def test_without_polars_it_is_pandas_and_without_both_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    results = PREDICTOR.predict(file)
    monkeypatch.setitem(sys.modules, "polars", None)
    assert isinstance(results.to_frame(), pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingError, match=r"needs polars or pandas.+pip install polars"):
        results.to_frame()


def test_embeddings_stand_in_the_order_of_the_images(file: Path) -> None:
    found = PREDICTOR.embed([file, "missing.png", GREY])
    assert found.dtype == np.float32
    assert found.shape == (3, 3)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.isnan(found[1]).all()
    with pytest.raises(DataError, match=r"no image that can be read among 1.+missing\.png"):
        PREDICTOR.embed("missing.png")


def test_preprocessed_images_are_the_networks_input(file: Path) -> None:
    batch = PREDICTOR.preprocess([file, GREY])
    assert batch.dtype == np.float32
    assert batch.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(batch[0], batch[1])
    logit = PREDICTOR.predict_file(file).logit
    assert batch[0, ..., 0].mean() == pytest.approx(logit, abs=1e-6)
    with pytest.raises(ImageRefusedError, match=r"missing\.png: not_found"):
        PREDICTOR.preprocess("missing.png")
    with pytest.raises(UsageError, match="found no image"):
        PREDICTOR.preprocess([])


@pytest.mark.parametrize(
    ("images", "fragment"),
    [
        (3, "found int, wanted a path, an array"),
        ([None], "found NoneType"),
        (np.zeros(4), r"shape \(4,\), wanted \(height, width\)"),
        (np.zeros((2, 2, 8, 8, 3)), "wanted"),
        (np.full((8, 8), 2.0), r"wanted grey, floats.+give uint8"),
        (np.full((8, 8), np.nan), "wanted grey, floats"),
        (np.zeros((8, 8, 3)), "wanted grey, floats"),
        (np.zeros((8, 8), np.int64), "array of type int64"),
        (np.zeros((8, 8), bool), "array of type bool"),
        (pl.DataFrame({"file": ["a.png"]}), "columns file, wanted one named 'path'"),
        (pl.DataFrame({"path": ["a.png", None]}), "row 1: found the path None"),
        (Image.new("F", (8, 8)), "mode 'F'.+Give np.asarray.image. as uint8"),
    ],
)
def test_what_is_no_image_is_named(images: Any, fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        PREDICTOR.predict(images)


def test_a_data_set_is_a_collection_of_records_with_a_frame(file: Path) -> None:
    table = file.parent.parent / "set.csv"
    rows = "images/a.png,NORMAL,p1,F\nimages/b.png,PNEUMONIA,p2,M\n"
    Image.fromarray(GREY[::-1]).save(file.with_name("b.png"))
    table.write_text("path,label,patient,sex\n" + rows, encoding="utf-8")
    dataset = load_dataset(table)
    assert len(dataset) == 2
    assert [record.label for record in dataset] == [0, 1]
    frame = dataset.to_frame()
    assert frame.columns == ["path", "label", "patient", "split", "subtype", "sex"]
    assert frame["label"].to_list() == ["NORMAL", "PNEUMONIA"]
    assert frame["sex"].to_list() == ["F", "M"]
    assert dataset.records[0].sha256 == ""
    assert len(load_dataset(table, hash_files=True).records[0].sha256) == 64
    with pytest.raises(DataError, match=r"no image of the split 'test', only of no split \(2\)"):
        load_dataset(table, "test")
    assert len(PREDICTOR.predict(dataset)) == 2
