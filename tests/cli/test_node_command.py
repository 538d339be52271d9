"""`node` from the command line: it runs until it is told to stop, and says what can't be."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import NodeConfig


def test_every_setting_is_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["node", "--help"]) == 0
    text = capsys.readouterr().out
    for name in NodeConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    assert "Example: pneumoscope node" in text


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--port", "70000"], "port: found 70000, wanted 0 to 65535"),
        (["--forward", "PACS"], "--forward: found 'PACS', wanted AET@HOST:PORT"),
        (["--aet", "A" * 17, "--port", "0"], "--aet: found"),
        (["--callers", "A,,B", "--port", "0"], "--callers: found"),
        (["--tls-cert", "none.pem", "--port", "0"], "TLS files none.pem"),
        (["--model", "nowhere"], "no such folder"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    fragment: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
    monkeypatch.chdir(tmp_path)
    from pneumoscope.inference.predictor import Predictor
    from support.dicom_reports import predictor

    if "--model" not in arguments:
        monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor())
    assert run(["node", *arguments]) == 2
    assert fragment in capsys.readouterr().err


def test_without_the_extra_it_states_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert run(["node"]) == 4
    assert "pip install 'pneumoscope[dicom]'" in capsys.readouterr().err


def test_sigterm_ends_it_with_a_document(tmp_path: Path) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
    command = ["node", "--port", "0", "--spool", str(tmp_path / "spool"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pneumoscope", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "PNEUMOSCOPE listens on 127.0.0.1:" in line:
            break
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["films_waiting"] == 0
