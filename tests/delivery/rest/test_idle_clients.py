"""A server as a user starts it, and clients that do nothing, too little, or never read."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pneumoscope.images.phantom.folder import write_phantoms
from support.serving import Server, running_server
from support.small_bundle import small_bundle

PATIENCE = 30.0
QUICK = (
    *("--requests", "4", "--longest-wait", "60", "--connections", "40"),
    *("--header-timeout", "1", "--body-timeout", "1", "--write-timeout", "1"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that predicts at once; its output is not used."""
    folder = tmp_path_factory.mktemp("model") / "bundle"
    small_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with running_server(model, *QUICK) as started:
        yield started


@pytest.fixture(scope="module")
def xray(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("xray")
    write_phantoms(folder, 2)
    return next(folder.rglob("*.png")).read_bytes()


def port_of(server: Server) -> int:
    return int(server.url.rstrip("/").rsplit(":", 1)[1])


def connected(server: Server, first: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port_of(server)), timeout=PATIENCE)
    client.sendall(first)
    return client


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(65536) == b""
    except ConnectionError:
        return True


def healthy(server: Server) -> bool:
    response = httpx.get(server.url + "healthz", trust_env=False, timeout=PATIENCE)
    return response.status_code == 200


def posted(server: Server, content: bytes, **more: str) -> httpx.Response:
    return httpx.post(
        server.url + "v1/predictions",
        files={"file": ("a.png", content)},
        headers=more,
        trust_env=False,
        timeout=PATIENCE,
    )


HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "


def test_half_heads_end_and_hold_up_nobody(server: Server) -> None:
    halves = [connected(server, HALF) for _ in range(120)]  # three times what there is room for
    assert healthy(server)
    assert all(is_closed(client) for client in halves)
    for client in halves:
        client.close()


def test_a_head_that_drips_ends(server: Server) -> None:
    client = connected(server, HALF)
    client.settimeout(0.2)
    end = time.monotonic() + PATIENCE
    closed = False
    while not closed and time.monotonic() < end:
        try:
            client.sendall(b"x")
            closed = is_closed(client)
        except TimeoutError:
            continue
        except ConnectionError:
            closed = True
    assert closed
    client.close()


BODY = (
    b"POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
)


def test_bodies_that_do_not_come_in_give_their_place(server: Server, xray: bytes) -> None:
    slow = [connected(server, BODY) for _ in range(4)]
    response = posted(server, xray)
    while response.status_code == 503:  # until they have dawdled for long enough
        time.sleep(0.2)
        response = posted(server, xray)
    assert response.status_code == 200
    for client in slow:
        told = client.recv(65536)
        assert told == b"" or told.startswith(b"HTTP/1.1 408 ")
        client.close()


def test_who_never_reads_holds_nothing(server: Server, xray: bytes) -> None:
    noise = io.BytesIO()
    grey = np.random.default_rng(0).integers(0, 255, (600, 600), np.uint8)
    Image.fromarray(grey).save(noise, "PNG")
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    body = (part + noise.getvalue() + b"\r\n") * 30 + b"--b--\r\n"
    head = (
        b"POST /v1/predictions/batch?preview=true HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    deaf = []
    for _ in range(4):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(server)))
        client.sendall(head + body)
        deaf.append(client)
    response = posted(server, xray)
    while response.status_code == 503:
        time.sleep(0.2)
        response = posted(server, xray)
    assert response.status_code == 200
    for client in deaf:
        client.close()


def test_who_had_a_response_before_the_end_of_a_body_can_go_on(server: Server) -> None:
    """And is not taken for one that dawdles, once the body has come in."""
    head = b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    client = connected(server, head + bytes(50_000))
    told = b""
    while b"See /docs" not in told:
        told += client.recv(65536)
    assert told.startswith(b"HTTP/1.1 404 ")
    client.sendall(bytes(50_000))
    time.sleep(1.5)  # longer than a head may take
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    client.close()


def test_a_body_in_crumbs_is_rejected(server: Server) -> None:
    crumbs = b"1\r\nx\r\n" * 20_000
    client = connected(
        server,
        b"POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + crumbs,
    )
    assert client.recv(65536).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")) or is_closed(client)
    client.close()
    assert healthy(server)


def test_names_and_sites_that_are_not_its_own_are_rejected(server: Server, xray: bytes) -> None:
    host = f"127.0.0.1:{port_of(server)}"
    for name, status in (
        (host, 200),
        ("localhost", 200),
        ("localhost.", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.1.2.3", 421),
    ):
        got = httpx.get(server.url + "v1/model", headers={"Host": name}, trust_env=False)
        assert (got.status_code, name) == (status, name)
    for origin, status in (
        (f"http://{host}", 200),
        ("http://evil.example", 403),
        (f"http://127.0.0.1:{port_of(server) + 1}", 403),
        ("null", 403),
    ):
        assert posted(server, xray, Origin=origin).status_code == status
    assert posted(server, xray, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    got = httpx.get(server.url + "healthz", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in got.headers


def test_heads_alone(server: Server) -> None:
    for path in ("healthz", "readyz", "v1/model", ""):
        got = httpx.head(server.url + path, trust_env=False)
        assert (got.status_code, got.content) == (200, b"")
        assert int(got.headers["content-length"]) > 0


def test_every_line_of_the_log_is_json_and_floods_are_counted(model: Path) -> None:
    with running_server(model, *QUICK) as started:
        for _ in range(100):  # no HTTP at all
            client = connected(started, b"\0\0\r\n\r\n")
            client.close()
        assert healthy(started)
        started.process.terminate()
        _, log = started.process.communicate(timeout=60)
    lines = [json.loads(line) for line in log.splitlines()]
    library = [line for line in lines if line["event"] == "library"]
    assert 0 < len(library) < 60
