"""`pneumoscope serve` as a process: one result everywhere, a stop that drops nobody, TLS."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import httpx
import pytest

from pneumoscope.cli.app import run
from pneumoscope.images.phantom.folder import write_phantoms
from support.serving import running_server


def test_same_predictions_as_the_command_line_and_a_gentle_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("png", "dicom"):
        write_phantoms(tmp_path / kind, 4, format=kind)
    images = sorted(path for path in tmp_path.rglob("*") if path.suffix in {".png", ".dcm"})
    assert len(images) == 8
    assert run(["predict", *map(str, images), "--json", "-q"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    with running_server("default") as server:
        for image, row in zip(images, rows, strict=True):
            sent = {"file": (image.name, image.read_bytes())}
            body = httpx.post(server.url + "v1/predictions", files=sent, trust_env=False).json()
            told = {name: body[name] for name in row}
            assert told.pop("path") == image.name
            assert told.pop("probability") == pytest.approx(row["probability"], abs=1e-4)
            assert told == {k: v for k, v in row.items() if k not in {"path", "probability"}}
        _stop_while_an_image_comes_in(server.url, server.process, images[0].read_bytes())


def _stop_while_an_image_comes_in(url: str, process: subprocess.Popen[str], content: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    body = head + content + b"\r\n--x--\r\n"
    request = (
        "POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    port = int(url.rstrip("/").rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request.encode() + body[:100])
        while "requests_under_way 1.0" not in httpx.get(url + "metrics", trust_env=False).text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _wait_until_closed(port)
        client.sendall(body[100:])
        response = b"".join(iter(lambda: client.recv(65536), b""))
    assert response.startswith(b"HTTP/1.1 200 ")
    assert json.loads(response.split(b"\r\n\r\n", 1)[1])["status"] == "ok"
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == f"stopped serving on {url}\n"
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines[-3:]] == ["film", "request", "stopped"]


def _wait_until_closed(port: int) -> None:
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("new requests are still taken on")


def test_tls_and_ctrl_c(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: no certificate to try TLS with")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with running_server("default", *options, PNEUMOSCOPE_API_KEY="k" * 16) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=context, trust_env=False) as client:
            assert client.get(server.url + "v1/model").status_code == 401
            headers = {"X-API-Key": "k" * 16}
            assert client.get(server.url + "v1/model", headers=headers).status_code == 200
        server.process.send_signal(signal.SIGINT)
        server.process.communicate(timeout=30)
        assert server.process.returncode == 130


def test_without_the_extra_it_states_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert run(["serve", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["type"] == "ExtraMissingError"
    assert "pneumoscope[serve]" in told["message"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "port: found 70000"),
        (["--host", "203.0.113.1", "--no-api-key"], "can't listen there"),
        (["--host", "203.0.113.1"], "--no-api-key"),
        (["--tls-key", "none.pem"], "--tls-certificate"),
        (["--max-pixels", "-1"], "max_pixels"),
        (["--port", "0", "--model", "none"], "no such folder"),
    ],
)
def test_what_cannot_be_served_is_reported(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *options]) == 2
    assert words in capsys.readouterr().err


def test_help_loads_nothing_of_the_server() -> None:
    code = (
        "import sys, pneumoscope.cli.app as a\n"
        "assert a.run(['serve', '--help']) == 0\n"
        "print([n for n in ('fastapi', 'uvicorn', 'numpy') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
