"""The known answer: every engine is right, and nothing runs with one that is wrong."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.cli.app import run
from pneumoscope.config import LimitsConfig, NodeConfig, ServeConfig
from pneumoscope.errors import MissingError
from pneumoscope.images.phantom import draw
from pneumoscope.inference.bundle import Bundle, load_bundle, write_revised
from pneumoscope.inference.certificates import PrecisionCertificate
from pneumoscope.inference.known_answer import (
    TABLE,
    compared,
    known_table,
    phantom_content,
    stated_logit,
)
from pneumoscope.inference.predictor import Predictor
from pneumoscope.workflows import certify
from pneumoscope.workflows.certify import check_engines, confirm, state

_WRONG_BY = -20.0
"""In logits: beyond the tolerance of every precision, bfloat16's and int8's too."""

NOTHING = type("Nothing", (), {"find_spec": lambda _: None})


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return state("default", tmp_path_factory.mktemp("known") / "bundle")[0]


@pytest.fixture(scope="module")
def wrong(stated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that states another score than its network gives, as if the engine had changed."""
    table = known_table((stated_logit(stated.table(TABLE)) or 0.0) + _WRONG_BY)
    folder = tmp_path_factory.mktemp("wrong") / "bundle"
    return write_revised(folder, stated, stated.manifest, "# A card\n", {TABLE: table})


def test_the_shipped_phantom_is_the_drawn_one() -> None:
    drawn = (draw(7, "known-3", number=1, label=0, size=256).pixels * 255).round().astype(int)
    shipped = np.asarray(Image.open(io.BytesIO(phantom_content()))).astype(int)
    # Processors round float32 differently: a grey value midway between two may fall either way.
    assert np.abs(drawn - shipped).max() <= 1
    assert (drawn != shipped).mean() < 1e-3


def test_the_engine_in_use_is_right_and_the_input_check_is_not_asked(stated: Bundle) -> None:
    predictor = Predictor.load(stated.folder, "f32")
    found = confirm(predictor)
    assert found is not None
    assert found.right
    assert found.found == pytest.approx(found.stated, abs=1e-6)
    assert 0.05 < found.stated < 0.95  # where a small error would be seen
    assert predictor.checks_inputs


def test_a_model_that_states_nothing_is_not_rejected(
    stated: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = write_revised(tmp_path / "b", stated, stated.manifest, "# A card\n", {TABLE: None})
    assert confirm(Predictor.load(silent.folder)) is None
    assert "has no known answer" in caplog.text
    assert check_engines(str(silent.folder)) == []


def test_a_known_answer_of_another_phantom_is_none() -> None:
    table = known_table(1.5)
    assert stated_logit(table) == 1.5
    table["phantom"] = np.zeros(32, np.uint8)
    assert stated_logit(table) is None
    assert stated_logit(None) is None


def test_lower_precisions_may_differ_by_what_was_measured() -> None:
    manifest = load_bundle("default").manifest

    def allowed(precision: str, *certificates: PrecisionCertificate) -> float:
        from dataclasses import replace

        known = replace(manifest, certificates=certificates)
        return compared(known, 0.0, 0.0, engine="e", precision=precision).allowed

    assert allowed("f32") == 1e-4
    assert allowed("bf16") == 0.05
    assert allowed("int8", PrecisionCertificate("int8", largest_difference=0.08)) == 0.16

    def right(stated: float, found: float) -> bool:
        return compared(manifest, stated, found, engine="e", precision="int8").right

    # Where all probabilities are close to 0 or 1 the logits tell.
    assert right(-20.0, -21.0)
    assert right(-20.0, -16.5)
    assert not right(-20.0, -15.0)
    assert not right(-4.0, -20.0)
    assert not right(15.0, 4.0)
    assert not compared(manifest, 0.0, None, engine="e", precision="f32").right
    assert not compared(manifest, 0.0, 0.002, engine="e", precision="f32").right


def test_node_and_service_refuse_to_run_with_a_wrong_engine(wrong: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
    pytest.importorskip("fastapi", reason="needs the extra 'serve': pip install '.[serve]'")
    from pneumoscope.workflows.services import run_node, run_serve

    model, stop = str(wrong.folder), threading.Event()
    stop.set()  # a node that starts all the same ends at once
    with pytest.raises(MissingError, match="known answer: OpenVinoBackend in "):
        run_node(NodeConfig(port=0, spool=str(tmp_path / "spool")), model, stop)
    assert not (tmp_path / "spool").exists()
    with pytest.raises(MissingError, match="is not used"):
        run_serve(model, ServeConfig(port=0), LimitsConfig())


def told(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int) -> dict[str, Any]:
    assert run(["doctor", *map(str, arguments), "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_doctor_asks_every_engine(
    stated: Bundle,
    wrong: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("keras", reason="needs the extra 'train': pip install '.[train]'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'export': pip install '.[export]'")
    found = told(capsys, "--model", stated.folder, code=0)["known_answer"]
    assert {one["engine"] for one in found} == {"OpenVINO", "Keras", "ONNX export"}
    assert all(one["right"] for one in found)
    monkeypatch.setattr(certify, "util", NOTHING)  # one engine is enough to be wrong
    assert run(["doctor", "--model", str(wrong.folder), "-q"]) == 4
    assert "known answer  WRONG OpenVINO, f32" in capsys.readouterr().out
    mine = tmp_path / "thesis" / "chapter.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    error = told(capsys, "--model", wrong.folder, "--state", mine.parent, code=2)["error"]
    assert "is not a bundle" in error["message"]
    assert mine.exists()
    again = told(capsys, "--model", wrong.folder, "--state", tmp_path / "again", code=0)
    assert stated_logit(load_bundle(tmp_path / "again").table(TABLE)) == again["logit"]


def test_an_engine_that_can_not_be_asked_is_wrong(
    stated: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> float:
        raise MissingError("no such instruction")

    monkeypatch.setattr(certify, "_openvino", fails)
    monkeypatch.setattr(certify, "util", NOTHING)
    (found, *_) = check_engines(str(stated.folder))
    assert (found.found, found.right) == (None, False)
