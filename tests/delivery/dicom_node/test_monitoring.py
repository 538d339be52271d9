"""`node --status-port`: health and counts over loopback HTTP, without a word about a patient."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node import node as nodes
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.status import Metric, exposition
from pneumoscope.errors import UsageError
from support.dicom_peers import archive, send, until
from support.dicom_reports import predictor, xray_bytes
from support.free_port import free_port


@contextmanager
def running(spool: Path, **settings: Any) -> Iterator[tuple[Node, int]]:
    port = free_port()
    quick = {"port": 0, "min_free": 0, "grace": 1.0, "status_port": port, "spool": str(spool)}
    node = Node(NodeConfig(**{**quick, **settings}), predictor())
    try:
        yield node, port
    finally:
        node.stop()


def asked(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    response = httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=20, trust_env=False)
    return response.status_code, response.text


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_counts_are_reported_and_no_patient(tmp_path: Path) -> None:
    images = [xray_bytes(1), xray_bytes(2, BodyPartExamined="HAND"), xray_bytes(1)]
    with archive() as kept:
        forward = f"ARCHIVE@127.0.0.1:{kept.port}"
        with running(tmp_path, forward=forward) as (node, port):
            assert send(node.port, images) == [0, 0, 0]
            until(lambda: node.spool.count("reports", "sent") == 3, "all reports being sent")
            assert asked(port, "/healthz") == (200, "ok\n")
            status, text = asked(port, "/metrics")
            assert asked(port, "/metrics", "HEAD") == (200, "")
            assert asked(port, "/other")[0] == 404
            assert asked(port, "/healthz", "POST")[0] == 501
    assert status == 200
    found = samples(text)
    assert found['pneumoscope_node_items{kind="image",state="answered"}'] == 2
    assert found['pneumoscope_node_items{kind="report",state="sent"}'] == 3
    assert found['pneumoscope_node_items{kind="FHIR bundle",state="sent"}'] == 0
    assert found['pneumoscope_node_events_total{event="received"}'] == 2
    assert found['pneumoscope_node_events_total{event="known already"}'] == 1
    name = 'pneumoscope_node_results_total{status="refused",reason="wrong_body_part",prediction=""}'
    assert found[name] == 1
    assert found["pneumoscope_node_healthy"] == 1
    assert found["pneumoscope_node_oldest_waiting_seconds"] == 0
    assert found["pneumoscope_node_spool_free_bytes"] > 0
    for secret in ("XRAY", "P-000", "19600704", "20240229", "HAND", "1.2.826", "MODALITY", "A1"):
        assert secret not in text, secret


def test_prometheus_reads_it(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra 'serve'")
    with running(tmp_path) as (_, port):
        families = list(parser.text_string_to_metric_families(asked(port, "/metrics")[1]))
    kinds = {family.name: family.type for family in families}
    assert kinds["pneumoscope_node_items"] == "gauge"
    assert kinds["pneumoscope_node_events"] == "counter"
    (info,) = [family for family in families if family.name == "pneumoscope_node_info"]
    assert set(info.samples[0].labels) == {"version", "model"}


def test_labels_are_escaped() -> None:
    text = exposition([Metric("a", "gauge", "help", (({"x": 'a"b\\c\nd'}, 1),))])
    assert text.splitlines()[2] == 'pneumoscope_node_a{x="a\\"b\\\\c\\nd"} 1'


def test_a_node_in_trouble_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_TROUBLE_SECONDS", 0.1)
    with running(tmp_path) as (node, port):

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(node.spool, "take", full)
            until(lambda: asked(port, "/healthz") == (503, "the spool can't be written\n"), "503")
        until(lambda: asked(port, "/healthz")[0] == 200, "the disk being writable again")
        node._stop.set()
        assert asked(port, "/healthz") == (503, "stopping\n")


@pytest.mark.parametrize("drips", [False, True])
def test_idle_clients_do_not_keep_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    # Clients that say nothing meet the time-out of a byte, clients that drip that of a request.
    monkeypatch.setattr("pneumoscope.delivery.dicom_node.status._SECONDS", 0.5 if drips else 600)
    monkeypatch.setattr("pneumoscope.delivery.dicom_node.status._Handler.timeout", 0.5)
    over = threading.Event()

    def drip(idle: list[socket.socket]) -> None:
        while drips and not over.wait(0.1):
            for one in idle:
                with suppress(OSError):
                    one.sendall(b"X")

    with running(tmp_path) as (_, port), ExitStack() as stack:
        address = ("127.0.0.1", port)
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        dripping = threading.Thread(target=drip, args=(idle,))
        dripping.start()
        stack.callback(dripping.join)
        stack.callback(over.set)

        def served() -> bool:
            try:
                return asked(port, "/healthz")[0] == 200
            except httpx.HTTPError:  # no place yet
                return False

        until(served, "a response beside 20 idle sockets")


def test_it_is_off_by_default_and_states_when_its_port_is_taken(tmp_path: Path) -> None:
    assert NodeConfig().status_port == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = NodeConfig(port=0, spool=str(tmp_path), status_port=port)
        with pytest.raises(UsageError, match=rf"--status-port {port}.*can't be listened on"):
            Node(config, predictor())
