"""One bad image, row or peer stays its own: it is shown, and the others pass."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node import status
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, Found
from pneumoscope.delivery.dicom_node.http_client import ServerError
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.peers import Peer
from pneumoscope.delivery.dicom_node.poller import Poller
from pneumoscope.delivery.dicom_node.scorer import MOST_ATTEMPTS, Audit
from pneumoscope.delivery.dicom_node.sender import StoreSender
from pneumoscope.delivery.dicom_node.spool import MISSING, Spool
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.workflows.services import node_status
from support.dicom_peers import audited, modality, until
from support.dicom_reports import MANIFEST, predicted, predictor, xray_bytes
from support.fake_dicomweb import DicomWebServer, dicomweb_server


def uid_of(image: bytes) -> str:
    return str(dcmread(BytesIO(image), stop_before_pixels=True).SOPInstanceUID)


def store_as_it_is(port: int, like: Any, body: bytes) -> int:
    """C-STORE a data set that no library would write; returns the status."""
    association = modality().associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
    classes = association.accepted_contexts
    (context,) = (one for one in classes if one.abstract_syntax == like.SOPClassUID)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = like.SOPClassUID
    request.AffectedSOPInstanceUID = like.SOPInstanceUID
    request.DataSet = BytesIO(body)
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, context.context_id)
        _, told = association.dimse.get_msg(block=True)
        return int(told.Status)
    finally:
        association._reactor_checkpoint.set()
        association.release()


def test_an_image_of_which_no_report_can_be_made_is_set_aside_and_shown(tmp_path: Path) -> None:
    image = dcmread(BytesIO(xray_bytes(1)))
    image.add_new(0x00210010, "UT", "broken")
    body = encode(image, False, True)
    assert body is not None
    at = body.index(b"\x21\x00\x10\x00UT")
    body = body[: at + 4] + b"SQ\0\0\xff\xff\xff\xff" + b"\x01\x02" * 50
    node = Node(NodeConfig(port=0, spool=str(tmp_path), min_free=0, grace=2.0), predictor())
    try:
        assert store_as_it_is(node.port, image, body) == 0
        until(lambda: node.spool.count("films", "set aside") == 1, "the image being set aside")
        document, text = node_status(tmp_path)
        assert document["films_set_aside"] == 1
        assert "no report can be made: corrupt" in text
        assert len(list((tmp_path / "incoming").iterdir())) == 1  # its file is kept
        # Sent again it is tried again, not taken for one that was scored.
        assert store_as_it_is(node.port, image, body) == 0
        until(lambda: len(set_aside(tmp_path)) == 2, "the image being set aside again")
    finally:
        node.stop()


def set_aside(spool: Path) -> list[dict[str, Any]]:
    return [line for line in audited(spool) if line["event"] == "set aside"]


@contextmanager
def polling(folder: Path, server: DicomWebServer, **settings: Any) -> Iterator[Spool]:
    """A poller alone, at work; gives its spool."""
    given = {"poll": 0.05, "retry_first": 0.05, "retry_most": 0.2, "most_refusals": 3}
    config = NodeConfig(
        dicomweb=server.url,
        dicomweb_days=0,
        min_free=0,
        spool=str(folder),
        **(given | settings),
    )
    spool, audit = Spool(folder, "m", sending=True), Audit(folder / "audit.jsonl")
    stop = threading.Event()
    with closing(DicomWeb(config)) as web, closing(spool), closing(audit):
        poller = Poller(config, web, spool, audit)
        thread = threading.Thread(target=poller.run, args=(stop,))
        thread.start()
        try:
            yield spool
        finally:
            stop.set()
            web.stop()
            thread.join()


def test_images_that_a_server_never_gives_do_not_keep_the_others(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(8)]
    broken = {uid_of(image) for image in images[:3]}
    with dicomweb_server(images, broken=broken) as server, polling(tmp_path, server) as spool:
        until(lambda: spool.count("films", "waiting") == 5, "the good ones being fetched")
        until(lambda: spool.count("fetches", "set aside") == 3, "the others being set aside")
        found = status.aside(spool.queue)
    assert {(item.kind, item.why) for item in found} == {("fetch", "turned away 500")}


def test_a_row_without_uids_costs_that_row_alone(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(4)]
    with dicomweb_server(images, without_series={1}) as server, polling(tmp_path, server) as spool:
        until(lambda: spool.count("films", "waiting") == 3, "the others being fetched")
        searches = len(server.asked)
        until(lambda: len(server.asked) > searches + 4, "further searches")
    told = [line for line in audited(tmp_path) if line["event"] == "rows without UIDs"]
    assert [line["rows"] for line in told] == [1]  # once, not at every search


def test_a_fetch_that_ends_the_program_is_given_up_without_another_try(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(2)]
    with closing(Spool(tmp_path, "m", sending=True)) as spool:
        for _ in range(MOST_ATTEMPTS):  # killed while each was under way
            spool.begin_fetch(uid_of(images[0]))
    with dicomweb_server(images) as server, polling(tmp_path, server) as spool:
        until(lambda: spool.count("films", "waiting") == 1, "the other being fetched")
        until(lambda: spool.count("fetches", "set aside") == 1, "the first being set aside")
        (found,) = status.aside(spool.queue)
    assert found.why == "ended the program"
    assert not [line for line in server.asked if line.endswith(uid_of(images[0]))]


def test_an_image_whose_file_was_lost_is_fetched_again(tmp_path: Path) -> None:
    xray = xray_bytes(1)
    with closing(Spool(tmp_path, "m", sending=True)) as spool:
        spool.receive(uid_of(xray), xray, 9, 0)
        (image,) = spool.take(1)
        image.path.unlink()
        spool.set_aside(image, MISSING)
        assert spool.fetchable(uid_of(xray), time.time())
        found, number = spool.receive(uid_of(xray), xray, 9, 0)
        assert (found, number) == ("again", image.number)
        assert not spool.fetchable(uid_of(xray), time.time())


@contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that reads once and then does what `speak` does; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            peer.recv(65_536)
            speak(peer)
            over.wait()

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=one, args=(peer,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.close()


def _early_hints(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)


def _bomb(peer: socket.socket) -> None:
    body = gzip.compress(gzip.compress(b"\0" * (64 << 20)))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: "
    peer.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("speak", "why"), [(_early_hints, "ReadError"), (_bomb, "compressed response 200")]
)
def test_what_a_server_sends_beside_a_body_is_bounded_too(
    speak: Callable[[socket.socket], None], why: str
) -> None:
    with speaking(speak) as port:
        config = NodeConfig(dicomweb=f"http://127.0.0.1:{port}/dicom-web")
        with closing(DicomWeb(config)) as web, pytest.raises(ServerError, match=why):
            web.retrieve(Found("1.2", "1.3", "1.4"), 1 << 20)


def _drip(peer: socket.socket) -> None:
    peer.sendall(b"\x02\x00\x00\x00\x27\x10")  # an A-ASSOCIATE-AC of 10,000 bytes
    while True:
        peer.sendall(b"\0")
        time.sleep(0.1)


def test_a_destination_that_drips_is_left_and_can_be_cut(tmp_path: Path) -> None:
    xray = xray_bytes(1)
    config = NodeConfig(spool=str(tmp_path), acse_timeout=0.3, network_timeout=5.0)
    spool, audit = Spool(tmp_path, "m", sending=True), Audit(tmp_path / "audit.jsonl")
    with speaking(_drip) as port, closing(spool), closing(audit):
        spool.receive(uid_of(xray), xray, 9, 0)
        (image,) = spool.take(1)
        spool.answered(image, Reporter(MANIFEST).objects(xray, predicted(xray)))
        sender = StoreSender(config, Peer("A", "127.0.0.1", port), spool, audit)
        assert not sender.send_all(spool.due(time.time(), 9), threading.Event())
        assert {item.refusals for item in spool.due(time.time(), 9)} == {0}
    assert [line["event"] for line in audited(tmp_path)] == ["destination not reached"]
