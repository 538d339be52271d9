"""The files of examples/deploy, as far as they can be checked where tests run."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from pneumoscope.config import NodeConfig
from pneumoscope.errors import UsageError
from support.dicom_reports import needs, predictor

DEPLOY = Path(__file__).parents[1] / "examples" / "deploy"
UNITS = ("pneumoscope-node.service", "pneumoscope-serve.service")


@needs("systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_units_are_understood_and_hardened(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / name).read_text()
    unit = tmp_path / name
    # The program is not installed where tests run.
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", text))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for setting in ("NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes"):
        assert setting in text


def test_containers_have_no_root_to_write_to_and_pinned_versions() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("pneumoscope", "serve"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    assert re.fullmatch(r".+:\d+\.\d+\.\d+", services["pacs"]["image"])
    text = (DEPLOY / "Dockerfile").read_text()
    assert text.count("USER 10001") == text.count("HEALTHCHECK") == 2
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim", text, re.MULTILINE)


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint is installed on Linux only")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("docker-compose")
def test_compose_takes_its_file() -> None:
    command = ["docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--services"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, set(done.stdout.split())) == (0, {"pacs", "pneumoscope", "serve"})


def test_packages_of_containers_are_those_that_were_tested() -> None:
    def pinned(name: str) -> set[str]:
        text = (DEPLOY.parents[1] / "requirements" / name).read_text()
        return set(re.findall(r"^([\w.-]+==[\w.]+)", text, re.MULTILINE))

    images = pinned("images.txt")
    assert images <= pinned("lock.txt")
    names = {line.partition("==")[0] for line in images}
    assert {"openvino", "pynetdicom", "fastapi", "uvicorn", "hatchling"} <= names
    assert names.isdisjoint({"keras", "tensorflow-cpu", "pytest"})


def test_commands_of_containers_and_units_parse() -> None:
    from typer.main import get_command

    from pneumoscope.cli.app import app

    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    lines = [
        ["node", *services["pneumoscope"]["command"]],
        ["serve", *services["serve"]["command"]],
    ]
    for name in UNITS:
        (line,) = re.findall(r"ExecStart=\S+ (.+)", (DEPLOY / name).read_text())
        lines.append(line.split())
    for words in lines:
        command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:], resilient_parsing=False)


def test_without_a_key_the_service_is_published_on_one_machine_only() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["serve"]
    assert service["command"] == ["--no-api-key"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert 'serve", "--host", "0.0.0.0", "--port", "8000"]' in (DEPLOY / "Dockerfile").read_text()


def test_a_node_that_anyone_may_send_to_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
    from pneumoscope.inference.predictor import Predictor
    from pneumoscope.workflows.services import run_node

    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor())
    spool = tmp_path / "file"
    spool.write_text("in the way, so that nothing is started")
    for host, callers, warned in (
        ("0.0.0.0", (), True),  # noqa: S104
        ("0.0.0.0", ("PACS",), False),  # noqa: S104
        ("127.0.0.1", (), False),
    ):
        caplog.clear()
        config = NodeConfig(host=host, callers=callers, port=0, spool=str(spool))
        with caplog.at_level(logging.WARNING), pytest.raises(UsageError):
            run_node(config, "default", threading.Event())
        assert ("without --callers" in caplog.text) is warned
