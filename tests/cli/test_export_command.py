"""`export` from the command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.delivery.export import Limits
from pneumoscope.images.phantom.folder import write_phantoms
from support.small_bundle import small_bundle


def test_export_certifies_itself_and_reports_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_bundle(tmp_path / "model").folder
    data = write_phantoms(tmp_path / "xrays", 8)
    out = tmp_path / "out"
    command = ["export", "--to", "openvino", "--out", str(out), "--model", str(model)]
    assert run([*command, "--check", str(data), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    written = json.loads((out / "certificate.json").read_text())
    assert document["certificate"] == written
    assert written["passed"]
    assert written["images"] == 8
    assert run(command) == 0
    assert not (out / "certificate.json").exists()
    text = capsys.readouterr().out
    assert "give --check DATA" in text
    assert "every readable image is scored" in text
    assert document["input_check"] == {"method": "none", "in_graph": False}


def test_an_export_that_predicts_otherwise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_bundle(tmp_path / "model").folder
    data = write_phantoms(tmp_path / "xrays", 4)
    out = tmp_path / "out"
    monkeypatch.setattr(Limits.__init__, "__defaults__", (-1.0, 0.02, 2.0, 0.001, 0.99))
    command = ["export", "--to", "openvino", "--out", str(out), "--model", str(model)]
    assert run([*command, "--check", str(data)]) == 3
    assert "FAILED" in capsys.readouterr().out
    assert json.loads((out / "certificate.json").read_text())["failures"]


def test_images_that_8_bits_only_hold_rounded_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_bundle(tmp_path / "model").folder
    images = tmp_path / "xrays"
    for number, label in enumerate(("NORMAL", "PNEUMONIA")):
        (images / label).mkdir(parents=True)
        deep = np.random.default_rng(number).integers(0, 65536, (90, 80)).astype(np.uint16)
        Image.fromarray(deep).save(images / label / "deep.png")
    command = ["export", "--to", "openvino", "--out", str(tmp_path / "out"), "--model", str(model)]
    run([*command, "--check", str(images)])
    text = capsys.readouterr().out
    assert re.search(r"rounded to 8 bits +2\n", text)
    assert re.search(r"largest difference, probability +–\n", text)
    assert re.search(r"largest where rounded to 8 bits +\d", text)


def test_a_folder_of_something_else_is_rejected(tmp_path: Path) -> None:
    model = small_bundle(tmp_path / "model").folder
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("ours")
    command = ["export", "--to", "onnx", "--out", str(tmp_path / "out"), "--model", str(model)]
    assert run(command) == 2
    assert (tmp_path / "out" / "notes.txt").read_text() == "ours"
