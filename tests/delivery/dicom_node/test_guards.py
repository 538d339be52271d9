"""Callers that idle, dribble, send without end, or speak TLS badly: others are served all the same.

No time is asserted: with a guard gone these would wait for ever, or for minutes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.node import Node
from support.dicom_peers import archive, audited, modality, send, until
from support.dicom_reports import needs, predictor, xray_bytes

ADDRESS = "127.0.0.1"


@contextmanager
def running(spool: Path, **settings: Any) -> Iterator[Node]:
    quick = {"acse_timeout": 1.0, "network_timeout": 2.0, "min_free": 0, "grace": 1.0}
    node = Node(NodeConfig(port=0, spool=str(spool), **{**quick, **settings}), predictor())
    try:
        yield node
    finally:
        node.stop()


def served(port: int) -> bool:
    """Whether an ordinary caller gets its image in."""
    association = modality().associate(ADDRESS, port, ae_title="PNEUMOSCOPE")
    if not association.is_established:
        return False
    response = association.send_c_store(dcmread(BytesIO(xray_bytes(1))))
    association.release()
    return bool(response.get("Status") == 0)


def test_idle_sockets_do_not_keep_others_out(tmp_path: Path) -> None:
    with running(tmp_path, associations=20) as node, ExitStack() as idle:
        for _ in range(20):
            idle.enter_context(socket.create_connection((ADDRESS, node.port)))
        until(lambda: served(node.port), "an image being taken beside 20 idle sockets")


def test_half_a_message_does_not_hold_its_place(tmp_path: Path) -> None:
    half = b"\x01\x00" + struct.pack(">L", 200) + b"\x00\x01"  # of 200 bytes, 2
    with (
        running(tmp_path, associations=1) as node,
        socket.create_connection((ADDRESS, node.port)) as caller,
    ):
        caller.sendall(half)
        until(lambda: served(node.port), "an image being taken beside half a message")


def test_a_request_that_announces_gigabytes_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path) as node, socket.create_connection((ADDRESS, node.port)) as caller:
        caller.settimeout(20)
        caller.sendall(b"\x01\x00" + struct.pack(">L", 0xFFFFFFFF))
        assert caller.recv(1) == b""
        until(
            lambda: any(x.get("why") == "message too large" for x in audited(tmp_path)),
            "the audit of it",
        )


def test_an_image_beyond_the_limit_is_turned_away_and_the_next_one_taken(tmp_path: Path) -> None:
    small = xray_bytes(1)
    with running(tmp_path, max_bytes=len(small) + 100) as node:
        larger = xray_bytes(2, ImageComments="x" * 1000)
        assert send(node.port, [larger, small]) == [0xA700, 0]
        endless = xray_bytes(3, ImageComments="x" * (3 << 20))
        with pytest.raises((AssertionError, RuntimeError)):
            assert send(node.port, [endless]) == [0]  # cut off while it is sent
        assert served(node.port)
    reasons = [x["why"] for x in audited(tmp_path) if x["event"] == "turned away"]
    assert reasons == ["too large", "message too large"]


def test_a_full_disk_turns_images_away(tmp_path: Path) -> None:
    with running(tmp_path, min_free=1 << 60) as node:
        assert send(node.port, [xray_bytes(1)]) == [0xA700]
    assert audited(tmp_path)[-2]["why"] == "queue or disk full"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(key), "-out", str(cert),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def client(ca: str, cert: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if cert:
        context.load_cert_chain(*cert)
    return context


@needs("openssl")
def test_tls_and_nothing_else_where_it_is_asked_for(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = certificate
    with running(tmp_path, tls_cert=cert, tls_key=key, tls_ca=cert) as node:
        known = (client(cert, certificate), ADDRESS)
        assert send(node.port, [xray_bytes(1)], tls_args=known) == [0]
        for unknown in (None, (client(cert), ADDRESS)):  # in plain; without a certificate
            association = modality().associate(
                ADDRESS, node.port, ae_title="PNEUMOSCOPE", tls_args=unknown
            )
            assert not association.is_established
        with socket.create_connection((ADDRESS, node.port)):  # never begins to agree on TLS
            assert send(node.port, [xray_bytes(2)], tls_args=known) == [0]


@needs("openssl")
def test_reports_go_out_under_tls_to_whom_the_certificate_names(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = certificate
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    with archive(tls=server) as kept:
        settings = {"forward": f"ARCHIVE@{ADDRESS}:{kept.port}", "forward_tls": True}
        with running(tmp_path, tls_ca=cert, **settings) as node:
            send(node.port, [xray_bytes(1)])
            until(lambda: len(kept.received) == 2, "two reports under TLS")
