from __future__ import annotations

import json
from pathlib import Path

import pytest

from pneumoscope.cli.app import run
from pneumoscope.data.index import index
from support import public_data_sets as owners


def test_the_manifest_is_one_that_evaluate_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owners.nih(tmp_path / "nih")
    out = tmp_path / "nih" / "manifest.csv"
    assert run(["data", "adopt", "nih", str(tmp_path / "nih"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "NIH ChestX-ray14 (Wang et al. 2017, doi:10.1109/CVPR.2017.369)" in told
    assert "left out  1: other finding than normal or pneumonia" in told
    assert f"next      pneumoscope evaluate {out} --out evaluation" in told
    dataset = index(out)
    assert [(r.label, r.patient, r.split) for r in dataset.records] == [
        (0, "1", None),
        (1, "1", None),
        (1, "2", None),
        (0, "4", None),
    ]
    first = dataset.records[0]
    assert first.extra == {
        "age": "4",
        "sex": "F",
        "view": "AP",
        "finding": "No Finding",
        "labelled_by": "program on reports",
        "official_split": "train",
    }


def test_splits_can_be_kept_and_the_manifest_may_lie_above(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owners.nih(tmp_path / "nih")
    arguments = ["data", "adopt", "nih", str(tmp_path / "nih"), "--splits", "keep", "--json"]
    assert run([*arguments, "--out", str(tmp_path / "m.csv")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == {"NORMAL": 2, "PNEUMONIA": 2}
    assert document["patients"] == 3
    assert document["left_out"]["image file not found"] == 1
    assert [r.split for r in index(tmp_path / "m.csv").records] == [
        "train",
        "train",
        "test",
        "test",
    ]


def test_images_without_patients_are_each_their_own(tmp_path: Path) -> None:
    owners.vindr(tmp_path)
    out = tmp_path / "m.csv"
    assert run(["data", "adopt", "vindr-pcxr", str(tmp_path), "--out", str(out), "-q"]) == 0
    records = index(out).records
    assert len({record.patient for record in records}) == len(records) == 5


def test_what_is_asked_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = owners.nih(tmp_path / "nih")
    for arguments, code, told in (
        (["mimic", str(folder), "--out", str(folder / "m.csv")], 2, "wanted one of rsna, nih"),
        (["nih", str(folder), "--out", str(folder)], 2, "is a folder, wanted a file"),
        (["nih", str(folder), "--out", str(folder / "m.csv"), "--max-age", "900"], 2, "max_age"),
        (
            ["nih", str(folder), "--out", str(folder / "m.csv"), "--columns", "label=dx"],
            2,
            "--columns label=dx: is for csv, nih does not read it",
        ),
        (
            ["csv", str(folder), "--out", str(folder / "m.csv"), "--uncertain", "normal"],
            2,
            "--uncertain normal: is for chexpert, csv does not read it",
        ),
        (["nih", str(tmp_path / "none"), "--out", str(tmp_path / "m.csv")], 3, "found no table"),
    ):
        assert run(["data", "adopt", *arguments]) == code
        assert told in capsys.readouterr().err


def test_one_class_alone_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owners.lines(tmp_path / "t.csv", "path,label", "a.png,normal")
    owners.png(tmp_path / "a.png")
    assert run(["data", "adopt", "csv", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 0
    assert "No PNEUMONIA image is left" in capsys.readouterr().out


def test_splits_of_other_names_are_rejected_or_kept_as_the_owners_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A held-out image without a split would be one to train on."""
    rows = ("a.png,normal,Training", "b.png,pneumonia,holdout", "c.png,normal,")
    owners.lines(tmp_path / "t.csv", "path,label,fold", *rows)
    for name in "abc":
        owners.png(tmp_path / f"{name}.png")
    out = tmp_path / "out" / "m.csv"
    arguments = ["data", "adopt", "csv", str(tmp_path), "--out", str(out)]
    assert run([*arguments, "--splits", "keep"]) == 3
    told = capsys.readouterr().err
    assert "row 2: found the split 'holdout' in the column 'fold'; wanted one of train" in told
    assert not out.exists()
    assert run(arguments) == 0
    found = index(out).records
    assert [record.extra["official_split"] for record in found] == ["train", "holdout", ""]
    assert {record.split for record in found} == {None}


def test_a_manifest_may_lie_anywhere(tmp_path: Path) -> None:
    """A read-only data set can't hold its manifest: paths are absolute then."""
    images, place = tmp_path / "images", tmp_path / "mine"
    owners.lines(images / "t.csv", "path,label", "a.png,normal", "b.png,pneumonia")
    for name in ("a", "b"):
        owners.png(images / f"{name}.png")
    images.chmod(0o555)
    try:
        manifest = place / "m.csv"
        assert run(["data", "adopt", "csv", str(images), "--out", str(manifest)]) == 0
    finally:
        images.chmod(0o755)
    found = [record.path for record in index(manifest).records]
    assert found == [images / "a.png", images / "b.png"]
