"""Exports predict as their bundle does, from images of any size, and report when they don't."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.export import ExportedModel, Limits, certify, missing_parts, write_export
from pneumoscope.errors import DataError, ExtraMissingError, UsageError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.inference.bundle import Abstention, Bundle, InputCheck, write_revised
from pneumoscope.inference.input_check import (
    METHOD,
    TABLE,
    Gaussian,
    Statistics,
    describe_image,
    fit_statistics,
)
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import ImageRecord
from support.image_files import dicom, encoded, smooth_grey, tiff, xray
from support.known import known
from support.small_bundle import small_bundle

TARGETS = ("onnx", "openvino")
SIZES = ((64, 64), (200, 150), (70, 97), (300, 301), (64, 500))


def xrays(folder: Path) -> list[ImageRecord]:
    """Smooth noise of several sizes, 8-bit grey."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(5)
    records = []
    for number, (height, width) in enumerate(SIZES * 2):
        coarse = generator.integers(0, 256, (9, 7), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        records.append(ImageRecord(path, number % 2, f"p{number}"))
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    return xrays(tmp_path_factory.mktemp("images") / "all")


@pytest.fixture(scope="module", params=["imagenet stretch", "standardise pad flip ensemble"])
def bundle(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    words = request.param.split()
    return small_bundle(
        tmp_path_factory.mktemp("bundle") / "model",
        members=2 if "ensemble" in words else 1,
        flip="flip" in words,
        preprocessing=PreprocessConfig(size=64, normalisation=words[0], fit=words[1]),
        calibration=Calibration("platt", 1.5, -0.25),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_predicts_as_the_bundle_does(
    bundle: Bundle, target: Any, records: list[ImageRecord], tmp_path: Path
) -> None:
    write_export(tmp_path / "out", bundle, target)
    exported, predictor = ExportedModel(tmp_path / "out"), Predictor.load(bundle.folder)
    found = certify(records, predictor, exported)
    assert found.failures == ()
    assert (found.images, found.refused, found.rounded) == (len(records), 0, 0)
    assert known(found.largest_difference) <= 2e-5
    assert found.heatmap_correlation is not None
    assert found.heatmap_correlation > 0.9999
    assert found.auc_before == found.auc_after
    result = predictor.predict_file(records[1].path)
    pixels = np.asarray(Image.open(records[1].path))
    other = exported.predict(pixels)
    np.testing.assert_allclose(other.embedding, known(result.embedding), atol=1e-4)
    assert other.heatmap.max() == pytest.approx(1.0)


def test_the_onnx_file_states_what_it_is(bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write_export(tmp_path / "out", bundle, "onnx")
    props = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert json.loads(props["labels"]) == about["labels"] == ["NORMAL", "PNEUMONIA"]
    assert json.loads(props["threshold"])["value"] == bundle.manifest.threshold.value
    assert props["pneumoscope_version"] == bundle.manifest.pneumoscope_version
    assert (tmp_path / "out" / "MODEL_CARD.md").read_bytes() == bundle.card.read_bytes()


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_gives_the_prediction_of_the_bundle(
    bundle: Bundle, target: Any, records: list[ImageRecord], tmp_path: Path
) -> None:
    write_export(tmp_path / "out", bundle, target)
    image = str(records[1].path)
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "example.py", image],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = Predictor.load(bundle.folder).predict_file(image).prediction
    found = re.search(r"(\w+), probability ([\d.]+) ", done.stdout)
    assert found is not None
    assert found[1] == wanted.prediction
    assert float(found[2]) == pytest.approx(wanted.probability, abs=1e-4)


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files that the example reads as the product does, and files that it must reject."""
    grey = smooth_grey(90, 80).astype(np.uint8)
    image, colour = Image.fromarray(grey), Image.fromarray(np.dstack([grey, grey, grey // 2]))
    alike: dict[str, bytes] = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "TIFF"):
            alike[f"turned-{orientation}.{kind}"] = encoded(image, kind, exif=exif)
    for mode in ("RGB", "CMYK", "P", "1"):
        alike[f"{mode}.tif"] = encoded(colour.convert(mode), "TIFF")
    alike["white-is-zero.tif"] = tiff(grey, photometric=0)
    alike["lossless.webp"] = encoded(colour, "WEBP", lossless=True)
    deep = (grey.astype(np.uint16) * 16).astype(np.uint16)
    rejected = {
        "deep.png": encoded(Image.fromarray(deep), "PNG"),
        "deep.tif": tiff(deep),
        "signed.tif": tiff((grey.astype(np.int16) - 128).astype(np.int8), sample_format=2),
        "float.tif": tiff(grey.astype(np.float32), sample_format=3),
        "clear.png": encoded(Image.fromarray(np.dstack([grey] * 4)), "PNG"),
        "key.png": encoded(image, "PNG", transparency=7),
        "moving.gif": encoded(image, "GIF"),
        "pages.tif": encoded(image, "TIFF", save_all=True, append_images=[image]),
        "blank.png": encoded(Image.new("L", (80, 90), 7), "PNG"),
        "small.png": encoded(image.resize((20, 20)), "PNG"),
        "x.dcm": dicom(xray(grey)),
        "text.jpg": b"no picture",
    }
    for name, content in {**alike, **rejected}.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in alike], [folder / name for name in rejected]


def test_the_example_reads_as_the_product_does_or_rejects(bundle: Bundle, tmp_path: Path) -> None:
    alike, rejected = _pictures(tmp_path)
    write_export(tmp_path / "out", bundle, "openvino")
    command = [sys.executable, str(tmp_path / "out" / "example.py"), *map(str, alike + rejected)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    predictor = Predictor.load(bundle.folder)
    for path, line in zip(alike, told, strict=False):
        wanted = predictor.predict_file(path).prediction.probability
        found = re.search(r"probability ([\d.]+) ", line)
        assert found is not None, line
        assert float(found[1]) == pytest.approx(wanted, abs=1e-4), line
    for path, line in zip(rejected, told[len(alike) :], strict=True):
        assert line.startswith(f"{path}: rejected, "), line


def test_another_models_export_fails_its_certificate(
    bundle: Bundle, records: list[ImageRecord], tmp_path: Path
) -> None:
    other = small_bundle(tmp_path / "other", seed=40, size=64)
    write_export(tmp_path / "out", other, "openvino")
    found = certify(records, Predictor.load(bundle.folder), ExportedModel(tmp_path / "out"))
    assert any("probability" in failure for failure in found.failures)
    assert found.to_json()["passed"] is False


def test_images_of_16_bits_are_counted_apart(
    bundle: Bundle, tmp_path: Path, records: list[ImageRecord]
) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (90, 80)).astype(np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    write_export(tmp_path / "out", bundle, "openvino")
    predictor, exported = Predictor.load(bundle.folder), ExportedModel(tmp_path / "out")
    found = certify([*records, ImageRecord(path, 1, "deep")], predictor, exported)
    assert found.rounded == 1
    assert found.largest_rounded_difference is not None
    assert known(found.largest_difference) <= 2e-5
    strict = certify(
        [ImageRecord(path, 1, "deep")], predictor, exported, Limits(rounded_probability=0.0)
    )
    assert len(strict.failures) == 1
    assert strict.auc_before is None
    # No image holds in 8 bits: nothing was measured, which is not a difference of 0.
    assert strict.largest_difference is strict.mean_difference is None


def test_unreadable_images_are_counted(
    bundle: Bundle, records: list[ImageRecord], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    write_export(tmp_path / "out", bundle, "openvino")
    predictor, exported = Predictor.load(bundle.folder), ExportedModel(tmp_path / "out")
    found = certify([ImageRecord(broken, 0, "b"), *records], predictor, exported)
    assert (found.images, found.refused) == (len(records), 1)
    with pytest.raises(DataError, match="none of 1 images"):
        certify([ImageRecord(broken, 0, "b")], predictor, exported)


def test_a_folder_of_something_else_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ours")
    with pytest.raises(UsageError, match="not an export"):
        write_export(tmp_path, bundle, "openvino")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="holds no"):
        ExportedModel(tmp_path)


def test_an_export_is_replaced_whole(bundle: Bundle, tmp_path: Path) -> None:
    write_export(tmp_path / "out", bundle, "onnx")
    write_export(tmp_path / "out", bundle, "openvino")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "MODEL_CARD.md",
        "example.py",
        "export.json",
        "model.bin",
        "model.xml",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_onnx_it_states_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraMissingError, match=r"pneumoscope\[export\]"):
        write_export(tmp_path / "out", bundle, "onnx")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that rejects, and withholds predictions."""
    folder = tmp_path_factory.mktemp("guarded")
    plain = small_bundle(folder / "plain", size=64)
    rng = np.random.default_rng(0)
    looks = [describe_image(rng.random((64, 64)).astype(np.float32)) for _ in range(40)]
    embeddings = np.stack(
        [
            known(result.embedding)
            for result in Predictor.load(plain.folder).predict_images(_noise(rng))
        ]
    )
    gaussians = fit_statistics(looks, embeddings, np.arange(40) % 2)
    statistics = Statistics(gaussians, dict.fromkeys(gaussians, 1e6))
    manifest = replace(
        plain.manifest,
        input_check=InputCheck(METHOD, dict(statistics.limits), 40, 40),
        abstention=Abstention("band", 0.0, 1.0, "for the test", "nothing"),
        ages=(1, 5),
    )
    tables = {TABLE: statistics.to_table()}
    return write_revised(folder / "model", plain, manifest, "A card.", tables)


def _noise(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    for k in range(40):
        yield f"{k}", rng.random((64, 64)).astype(np.float32)


def _asked(out: Path, image: Path) -> str:
    command = [sys.executable, str(out / "example.py"), str(image)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_the_graph_leaves_out_is_reported_and_can_be_done(
    guarded: Bundle, records: list[ImageRecord], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_export(out, guarded, "openvino")
    about = json.loads((out / "export.json").read_text())
    assert about["abstention"]["in_graph"] is about["input_check"]["in_graph"] is False
    assert (about["abstention"]["low"], about["abstention"]["high"]) == (0.0, 1.0)
    assert about["abstention"]["answer"].startswith("indeterminate (`uncertain` in files) where ")
    assert about["input_check"]["limits"] == guarded.manifest.input_check.limits
    assert about["ages"] == [1, 5]
    rejection, withheld, ages = missing_parts(about)
    assert "the model is for children aged 1–5 years" in ages
    assert "rejects no image, unlike the model" in rejection
    assert "the graph does not abstain" in withheld
    image = records[1].path
    assert ": indeterminate, probability" in _asked(out, image)
    # Half of its own distance allowed: the example prints the distance that the bundle measures.
    embedding = ExportedModel(out).predict(np.asarray(Image.open(image))).embedding
    gaussian = Gaussian.from_arrays(guarded.table(TABLE) or {}, "embedding")
    limit = float(gaussian.distances(embedding[None])[0]) / 2
    about["input_check"]["limits"]["embedding"] = limit
    (out / "export.json").write_text(json.dumps(about))
    assert "rejected, it differs from the training images (input score 2.00)" in _asked(out, image)


def test_a_model_that_rejects_nothing_is_reported_as_such(bundle: Bundle, tmp_path: Path) -> None:
    write_export(tmp_path / "out", bundle, "openvino")
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["input_check"] == about["abstention"] == {"method": "none", "in_graph": False}
    (line,) = missing_parts(about)
    assert "neither does the model" in line
    assert not (tmp_path / "out" / "embedding.npz").exists()
