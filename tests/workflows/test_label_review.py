from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.data.audit import audit
from pneumoscope.data.index import index
from pneumoscope.errors import DataError
from pneumoscope.progress import SILENT
from pneumoscope.workflows.data import pictures_of, probabilities_for, run_audit

HEADER = "path,status,reason,probability,prediction,threshold,input_score\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """55 images of each class that differ plainly, one of them under the wrong label."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 120, 40)
    for label in ("NORMAL", "PNEUMONIA"):
        (root / label).mkdir()
        for k in range(55):
            upside_down = (label == "PNEUMONIA") != (label == "NORMAL" and k == 7)
            column = ramp[::-1] if upside_down else ramp
            grey = column[:, None] + rng.normal(60, 12, (40, 40))
            Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(root / label / f"{k}.png")
    return root


def write(path: Path, rows: str, header: str = HEADER) -> Path:
    path.write_text(header + rows, encoding="utf-8")
    return path


def test_the_image_under_the_wrong_label_is_found_and_pictured(
    folder: Path, tmp_path: Path
) -> None:
    document, text = run_audit(folder, tmp_path / "out", SILENT)
    doubts = document["evidence"]["labels"]["doubts"]
    assert [doubt["path"] for doubt in doubts] == ["NORMAL/7.png"]
    assert "NORMAL/7.png is labelled NORMAL" in text
    assert json.loads((tmp_path / "out/audit.json").read_text())["evidence"] == (
        json.loads(json.dumps(document["evidence"]))
    )
    html = (tmp_path / "out/audit.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 1
    dataset = index(folder)
    pictures = pictures_of(audit(dataset), dataset)
    with Image.open(io.BytesIO(pictures["NORMAL/7.png"])) as picture:
        assert picture.size == (40, 40)


def test_names_that_are_not_utf_8_are_escaped(folder: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "caf\udce9", tmp_path / "out"
    shutil.copytree(folder, root)
    (root / "NORMAL/7.png").rename(root / "NORMAL/\udce9.png")
    (root / "NORMAL/broken\udce9.png").write_bytes(b"no image")
    (root / "NORMAL/link\udce9.png").symlink_to(root / "nowhere\udce9")
    assert run(["data", "audit", str(root), "--out", str(out), "-q"]) == 0
    document = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert document["root"].endswith(r"caf\udce9")
    assert document["unreadable"][0]["path"] == r"NORMAL/broken\udce9.png"
    (doubt,) = document["evidence"]["labels"]["doubts"]
    assert doubt["path"] == doubt["patient"] == r"NORMAL/\udce9.png"
    html = (out / "audit.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 1
    assert r"NORMAL/\udce9.png" in html


def test_predictions_judge_and_pictures_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    rows = ""
    for label, usual in (("NORMAL", 0.1), ("PNEUMONIA", 0.9)):
        for k in range(55):
            probability = 0.03 if (label, k) == ("PNEUMONIA", 9) else usual
            rows += f"{folder / label / f'{k}.png'},ok,,{probability},{label},0.5,\n"
    table = write(tmp_path / "p.csv", rows)
    out = tmp_path / "out"
    arguments = ["data", "audit", str(folder), "--out", str(out), "--predictions", str(table)]
    assert run([*arguments, "--no-pictures", "-q"]) == 0
    found = json.loads((out / "audit.json").read_text())["evidence"]["labels"]
    assert found["source"] == "predictions"
    assert [doubt["path"] for doubt in found["doubts"]] == ["PNEUMONIA/9.png"]
    assert "<img" not in (out / "audit.html").read_text(encoding="utf-8")


def test_predictions_are_found_by_path_or_by_a_name_that_is_one_images(
    folder: Path, tmp_path: Path
) -> None:
    one = folder / "NORMAL/3.png"
    (tmp_path / "NORMAL").mkdir()
    (tmp_path / "PNEUMONIA").mkdir()
    for name in ("NORMAL/a.png", "PNEUMONIA/b.png", "PNEUMONIA/a.png"):
        (tmp_path / name).write_bytes(one.read_bytes())
    rows = "elsewhere/b.png,ok,,0.7,PNEUMONIA,0.5,\nelsewhere/a.png,ok,,0.2,NORMAL,0.5,\n"
    rows += f"{tmp_path / 'NORMAL/a.png'},refused,blank,,,,\n"
    found = probabilities_for(index(tmp_path), write(tmp_path / "p.csv", rows))
    assert found == {tmp_path / "PNEUMONIA/b.png": 0.7}


def test_predictions_are_found_by_a_path_with_parent_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    up = os.path.relpath(folder, tmp_path)
    assert up.startswith("..")
    rows = f"{up}/NORMAL/3.png,ok,,0.2,NORMAL,0.5,\n"  # each class has an image of this name
    found = probabilities_for(index(Path(up)), write(tmp_path / "p.csv", rows))
    assert found == {folder / "NORMAL/3.png": 0.2}


def test_too_few_predictions_for_a_review_are_noted(folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"{folder / 'NORMAL' / f'{k}.png'},ok,,0.1,NORMAL,0.5,\n" for k in range(20))
    document, text = run_audit(folder, None, SILENT, write(tmp_path / "p.csv", rows))
    assert document["evidence"]["labels"] is None
    assert "20 NORMAL and 0 PNEUMONIA; wanted at least 50 of each" in text


@pytest.mark.parametrize(
    ("header", "rows", "told"),
    [
        ("path,probability\n", "a,0.5\n", "lacks the column 'status'"),
        (
            HEADER,
            "elsewhere.png,ok,,0.7,PNEUMONIA,0.5,\n",
            "has a probability for none of the 110 images",
        ),
        (HEADER, "0.png,ok,,1.7,PNEUMONIA,0.5,\n", "found the probability '1.7' for 0.png"),
        (HEADER, "0.png,ok,,,PNEUMONIA,0.5,\n", "found the probability ''"),
    ],
)
def test_files_that_are_no_predictions(
    folder: Path, tmp_path: Path, header: str, rows: str, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        probabilities_for(index(folder), write(tmp_path / "p.csv", rows, header))


def test_a_missing_file_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        probabilities_for(index(folder), tmp_path / "none.csv")
