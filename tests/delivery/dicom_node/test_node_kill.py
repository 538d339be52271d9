"""A node killed while images arrive: what it acknowledged is scored, and nothing twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.sender import pause
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool
from support import node_process
from support.dicom_peers import archive, audited, modality, send, send_until_acknowledged, until
from support.dicom_reports import predictor, xray_bytes
from support.free_port import free_port

IMAGES = 20
KILLED_AFTER = 8


def listening(port: int) -> bool:
    association = modality().associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
    if association.is_established:
        association.release()
        return True
    return False


def test_sigkill_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    port = free_port()
    images = [xray_bytes(k) for k in range(IMAGES)]
    acknowledged: list[int] = []
    over = threading.Event()
    with archive() as kept:
        settings = {"port": port, "forward": f"A@127.0.0.1:{kept.port}", "spool": str(tmp_path)}
        node = node_process.start(**settings)
        sender = threading.Thread(
            target=send_until_acknowledged, args=(port, images, acknowledged.append, over)
        )
        sender.start()
        try:
            until(lambda: len(acknowledged) >= KILLED_AFTER, "images being acknowledged")
            node.kill()
            assert node.wait() == -signal.SIGKILL
            node = node_process.start(**settings)
            until(lambda: len({uid for uid, _ in kept.received}) == 2 * IMAGES, "all reports")
        finally:
            over.set()
            sender.join()
            node.terminate()
            ended = node.wait(30)
    assert ended == 0
    assert sorted(acknowledged) == list(range(IMAGES))
    # Sent again is at most what was on its way when the kill came: the same bytes, the same UID.
    times = Counter(uid for uid, _ in kept.received)
    assert sum(times.values()) <= 2 * IMAGES + 1
    assert len(set(kept.received)) == 2 * IMAGES
    scored = Counter(x["film"] for x in audited(tmp_path) if x["event"] == "answered")
    assert len(scored) >= IMAGES - 1  # the kill may have cost one line, between row and line
    assert max(scored.values()) == 1


def test_a_kill_between_sending_and_its_row_sends_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(self: Spool, report: Outgoing) -> None:
        raise Killed

    with archive() as kept:
        forward = f"A@127.0.0.1:{kept.port}"
        config = NodeConfig(port=0, spool=str(tmp_path), forward=forward, min_free=0, grace=1.0)
        monkeypatch.setattr(Spool, "sent", dying)
        node = Node(config, predictor())
        send(node.port, [xray_bytes(1)])
        with pytest.raises(Killed):
            node.run(threading.Event())
        node.stop()
        monkeypatch.undo()
        before = list(kept.received)
        assert len(before) == 1
        node = Node(config, predictor())
        until(lambda: len(kept.received) == 3, "both reports")
        node.stop()
    assert kept.received.count(before[0]) == 2
    assert len(set(kept.received)) == 2


def test_sigterm_ends_what_was_begun_and_keeps_the_rest(tmp_path: Path) -> None:
    port = free_port()
    node = node_process.start(port=port, spool=str(tmp_path))
    try:
        until(lambda: listening(port), "the node listening")
        association = modality().associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
        node.terminate()
        # The association that was there may still end what it began.
        response = association.send_c_store(dcmread(BytesIO(xray_bytes(1))))
        association.release()
        assert response.Status == 0
    finally:
        node.terminate()
        assert node.wait(30) == 0
    last = audited(tmp_path)[-1]
    assert last["event"] == "stopped"
    assert last["films_waiting"] + last["films_answered"] == 1


def test_pauses_between_tries_double_up_to_the_most() -> None:
    config = NodeConfig(retry_first=2.0, retry_most=300.0)
    assert [pause(config, k) for k in (0, 1, 2, 7, 8, 10**6)] == [2, 4, 8, 256, 300, 300]
