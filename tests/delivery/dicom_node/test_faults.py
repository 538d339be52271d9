"""What is wrong with one image or report stays with it: the others go on, and it is reported."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb
from pneumoscope.delivery.dicom_node.http_client import StatedUids, stated_uids
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.queue import Queue
from pneumoscope.delivery.dicom_node.scorer import Audit, made_reports
from pneumoscope.delivery.dicom_node.server import Receiver
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.errors import UsageError
from pneumoscope.inference.processes import Processes
from pneumoscope.workflows.services import node_retry, node_status
from support import node_process
from support.dicom_peers import archive, audited, modality, send, until
from support.dicom_reports import MANIFEST, predictor, xray_bytes
from support.fake_dicomweb import dicomweb_server
from support.image_files import dicom

MODEL = Author.of(MANIFEST).fingerprint
QUICK = {**node_process.QUICK, "port": 0, "poll": 0.05, "dicomweb_days": 0}


@contextmanager
def running(spool: Path, **settings: Any) -> Iterator[Node]:
    node = Node(NodeConfig(**{**QUICK, "spool": str(spool), **settings}), predictor())
    try:
        yield node
    finally:
        node.stop()


def uid_of(image: bytes) -> str:
    return str(dcmread(BytesIO(image)).SOPInstanceUID)


def queued(folder: Path, count: int) -> list[Path]:
    """Images that wait in a spool; their files, in order of arrival."""
    spool, audit = Spool(folder, MODEL, sending=True), Audit(folder / "audit.jsonl")
    receiver = Receiver(NodeConfig(port=0, min_free=0), spool, audit)
    files: list[Path] = []
    for k in range(count):
        before = set((folder / "incoming").iterdir())
        assert send(receiver.port, [xray_bytes(k)]) == [0]
        files += set((folder / "incoming").iterdir()) - before
    receiver.stop(1.0)
    audit.close()
    spool.close()
    return files


def set_aside(folder: Path) -> list[tuple[str, str]]:
    items = node_status(folder)[0]["items"]
    return [(item["kind"], item["why"]) for item in items if item["state"] == "set aside"]


def test_images_whose_files_are_lost_are_set_aside_and_can_be_sent_again(tmp_path: Path) -> None:
    gone, emptied, changed, cut, *_ = queued(tmp_path, 6)
    gone.unlink()
    emptied.write_bytes(b"")
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    cut.write_bytes(cut.read_bytes()[:500])
    with archive() as kept, running(tmp_path, forward=f"ARCHIVE@127.0.0.1:{kept.port}") as node:
        until(lambda: len(kept.received) == 4, "reports of the two that are whole")
        assert {dataset.PatientID for dataset in kept.datasets} == {"P-0004", "P-0005"}
        assert set_aside(tmp_path) == [
            ("image", "file missing"),
            *[("image", "file damaged")] * 3,
        ]
        assert len(list((tmp_path / "quarantine").iterdir())) == 3
        assert node_retry(tmp_path)[0] == {
            "spool": str(tmp_path),
            "tried_again": {"films": 0, "reports": 0, "fhir": 0, "fetches": 0},
            "lost": 4,
        }
        assert send(node.port, [xray_bytes(k) for k in range(4)]) == [0] * 4
        until(lambda: len(kept.received) == 12, "reports of all six")
    assert set_aside(tmp_path) == []


def test_reports_whose_files_are_lost_are_not_sent_and_the_others_are(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        send(node.port, [xray_bytes(k) for k in range(3)])
        until(lambda: node.spool.count("reports", "kept") == 6, "six reports")
    gone, emptied, cut, *_ = sorted((tmp_path / "outgoing").iterdir())
    gone.unlink()
    emptied.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with archive() as kept, running(tmp_path, forward=f"ARCHIVE@127.0.0.1:{kept.port}") as node:
        until(lambda: len(kept.received) == 3, "the three that are whole")
        until(lambda: node.spool.count("reports", "set aside") == 3, "the others set aside")
        # The same images again: what was lost of them is made anew.
        send(node.port, [xray_bytes(k) for k in range(3)])
        until(lambda: len(kept.received) == 6, "all six")
    assert len({uid for uid, _ in kept.received}) == 6
    assert set_aside(tmp_path) == []


@contextmanager
def choosy(bad: int, how: str) -> Iterator[tuple[int, list[str], threading.Event]]:
    """An archive that breaks off at the report that came as number `bad`, each time it comes."""
    came: list[str] = []
    stored: list[str] = []
    mended = threading.Event()

    def store(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid not in came:
            came.append(uid)
        if came.index(uid) == bad and not mended.is_set():
            if how == "abort":
                event.assoc.abort()
                return 0xC000
            return 0xC000
        stored.append(uid)
        return 0

    entity = AE("ARCHIVE")
    for kind in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(kind, [ExplicitVRLittleEndian])
    handlers: list[Any] = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield server.socket.getsockname()[1], stored, mended
    finally:
        server.shutdown()


def test_a_stop_in_the_middle_of_an_image_sets_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes end with the node; what was in them goes on at the next start."""
    begun = threading.Event()
    call = Processes.call

    def slow(self: Processes, function: Any, *arguments: Any) -> Any:
        if function is made_reports:
            begun.set()
            return call(self, time.sleep, 3600)
        return call(self, function, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Processes, "call", slow)
        with running(tmp_path, grace=0.1) as node:
            send(node.port, [xray_bytes(1)])
            assert begun.wait(60)
    document, _ = node_status(tmp_path)
    assert (document["films_waiting"], document["items"]) == (1, [])
    with running(tmp_path) as node:
        until(lambda: node.spool.count("reports", "kept") == 2, "its reports")


@pytest.mark.parametrize("how", ["abort", "refuse"])
def test_a_destination_that_breaks_off_at_one_report_gets_the_others(
    tmp_path: Path, how: str
) -> None:
    with (
        choosy(1, how) as (port, stored, mended),
        running(tmp_path, forward=f"ARCHIVE@127.0.0.1:{port}", most_refusals=3) as node,
    ):
        send(node.port, [xray_bytes(k) for k in range(5)])
        until(lambda: len(set(stored)) == 9, "nine of ten")
        until(lambda: node.spool.count("reports", "set aside") == 1, "the tenth set aside")
        mended.set()
        assert node_retry(tmp_path)[0]["tried_again"]["reports"] == 1
        until(lambda: len(set(stored)) == 10, "the tenth after all")
    assert [line["refusals"] for line in audited(tmp_path) if line["event"] == "given up"] == [3]


def test_a_server_that_fails_for_one_image_gives_the_others(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(5)]
    with (
        dicomweb_server(images, broken={uid_of(images[1])}) as server,
        running(tmp_path, dicomweb=server.url, most_refusals=3) as node,
    ):
        until(lambda: len(server.stored) == 8, "reports of four")
        until(lambda: node.spool.count("fetches", "set aside") == 1, "the fifth set aside")
        server.broken.clear()
        assert node_retry(tmp_path)[0]["tried_again"]["fetches"] == 1
        until(lambda: len(server.stored) == 10, "reports of all five")
    assert set_aside(tmp_path) == []


def test_a_server_that_fails_for_one_report_takes_the_others(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(5)]
    with (
        dicomweb_server(images, broken_reports={0}) as server,
        running(tmp_path, dicomweb=server.url, most_refusals=3) as node,
    ):
        until(lambda: len(server.stored) == 9, "nine reports")
        until(lambda: node.spool.count("reports", "set aside") == 1, "the tenth set aside")
    assert set_aside(tmp_path) == [("report", "turned away")]


def test_an_image_that_drips_holds_up_neither_the_others_nor_the_stop(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(4)]
    with dicomweb_server(images, dripping={uid_of(images[0])}) as server:
        with running(tmp_path, dicomweb=server.url, dimse_timeout=1.0):
            until(lambda: len(server.stored) == 6, "reports of three")
        # One with a long time-out, stopped in the middle of it.
        with running(tmp_path / "b", dicomweb=server.url, dimse_timeout=3600.0, grace=0.2):
            until(lambda: any(uid_of(images[0]) in line for line in server.asked), "a request")
    assert "ReadTimeout" in {line.get("why") for line in audited(tmp_path)}


def stored_as(port: int, dataset: Dataset, uid: str) -> C_STORE:
    """C-STORE a data set in a message that names another UID; the response."""
    association = modality().associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
    assert association.is_established
    (context,) = (
        c for c in association.accepted_contexts if c.abstract_syntax == dataset.SOPClassUID
    )
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, uid
    request.DataSet = BytesIO(encode(dataset, False, True) or b"")
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, context.context_id)
        _, response = association.dimse.get_msg(block=True)
        return response
    finally:
        association._reactor_checkpoint.set()
        association.release()


def test_the_uid_of_the_message_is_that_of_the_data_set(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        dataset = dcmread(BytesIO(xray_bytes(1)))
        assert stored_as(node.port, dataset, "1.2.3").Status == 0xA900
        del dataset.SOPInstanceUID
        assert stored_as(node.port, dataset, "1.2.3").Status == 0xC000
        assert send(node.port, [xray_bytes(1)]) == [0]
    why = [line["why"] for line in audited(tmp_path) if line["event"] == "turned away"]
    assert why == ["its data set has another UID", "its data set states no UID"]


@pytest.mark.parametrize("value", [None, "", ["1.2", "1.3"]])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_image_without_study_or_series_is_rejected_and_its_sender_informed(
    tmp_path: Path, keyword: str, value: Any
) -> None:
    dataset = dcmread(BytesIO(xray_bytes(1)))
    if value is None:
        del dataset[keyword]
    else:
        setattr(dataset, keyword, value)
    with running(tmp_path) as node:
        # PS3.4 B.2.3: the data set does not match its SOP class, where both are Type 1.
        response = stored_as(node.port, dataset, str(dataset.SOPInstanceUID))
        assert response.Status == 0xA900
        assert response.ErrorComment == f"{keyword} is missing"
        assert response.OffendingElement == tag_for_keyword(keyword)
        assert node.spool.count("films", "waiting") == 0
        assert send(node.port, [xray_bytes(1)]) == [0]  # the same image, complete
    why = [line["why"] for line in audited(tmp_path) if line["event"] == "turned away"]
    assert why == [f"its data set states no {keyword}"]


def test_a_header_that_can_not_be_read_is_rejected(tmp_path: Path) -> None:
    dataset = dcmread(BytesIO(xray_bytes(1)))
    dataset.add_new(0x00190010, "UT", "broken")
    content = encode(dataset, False, True) or b""
    at = content.index(b"\x19\x00\x10\x00UT")
    # A sequence of undefined length without items, where a text was.
    broken = content[: at + 4] + b"SQ\0\0\xff\xff\xff\xff" + b"\x01\x02" * 50
    assert stated_uids(content).readable
    assert not stated_uids(broken).readable
    assert stated_uids(broken).missing == "SOPInstanceUID"


def test_an_image_of_a_web_server_without_a_study_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dcmread(BytesIO(xray_bytes(1)))
    del dataset.StudyInstanceUID
    stream = BytesIO()
    dataset.save_as(stream)
    monkeypatch.setattr(DicomWeb, "retrieve", lambda *_: stream.getvalue())
    with dicomweb_server([xray_bytes(1)]) as server, running(tmp_path, dicomweb=server.url):
        until(lambda: ("fetch", "it states no StudyInstanceUID") in set_aside(tmp_path), "that")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"])
def test_the_uids_are_found_in_every_encoding(syntax: str) -> None:
    image = dcmread(BytesIO(xray_bytes(1)))
    uids = StatedUids(image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID)
    assert stated_uids(dicom(image, syntax)) == uids
    assert stated_uids(b"").sop == ""
    assert stated_uids(os.urandom(3000)).sop == ""


def test_a_broken_copy_does_not_stand_in_the_way_of_the_good_one(tmp_path: Path) -> None:
    broken = dcmread(BytesIO(xray_bytes(1)))
    broken.PixelData = broken.PixelData[:100]
    stream = BytesIO()
    broken.save_as(stream)
    with archive() as kept, running(tmp_path, forward=f"ARCHIVE@127.0.0.1:{kept.port}") as node:
        assert send(node.port, [stream.getvalue(), xray_bytes(1)]) == [0, 0]
        until(lambda: len(kept.received) == 3, "a report of each, and a capture")
    assert len({uid for uid, _ in kept.received}) == 3
    reasons = [line["reason"] for line in audited(tmp_path) if line["event"] == "answered"]
    assert reasons == ["truncated", None]


def test_a_disk_that_is_full_costs_no_half_line_and_the_sender_is_informed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    audit.note("first")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        audit.note("half")

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "write", full)
        audit.note("none")
    audit.note("last")
    audit.close()
    assert [(line["event"], line.get("lines_missing")) for line in audited(tmp_path)] == [
        ("first", None),
        ("last", 2),
    ]
    with running(tmp_path / "spool") as node:

        def refusing(*_: Any) -> Any:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(node.spool, "receive", refusing)
        assert send(node.port, [xray_bytes(1)]) == [0xA700]


OLD = """
CREATE TABLE films (id INTEGER PRIMARY KEY, sop_uid TEXT NOT NULL, model TEXT NOT NULL,
    sha256 TEXT NOT NULL, file TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, received REAL NOT NULL, UNIQUE (sop_uid, model));
CREATE INDEX films_waiting ON films (id) WHERE state = 'waiting';
CREATE TABLE reports (id INTEGER PRIMARY KEY, film INTEGER NOT NULL REFERENCES films (id),
    kind TEXT NOT NULL, sop_uid TEXT NOT NULL UNIQUE, file TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL, refusals INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0);
CREATE INDEX reports_waiting ON reports (due) WHERE state = 'waiting';
INSERT INTO films VALUES (1, '1.1', 'm', 'x', 'a.dcm', 'answered', 1, 0.0);
INSERT INTO films VALUES (2, '1.2', 'm', 'y', 'b.dcm', 'waiting', 0, 0.0);
INSERT INTO reports VALUES (1, 1, 'report', '2.1', 'c.dcm', 'waiting', 3, 0.0);
INSERT INTO reports VALUES (2, 1, 'capture', '2.2', 'd.dcm', 'given up', 20, 0.0);
"""


def test_a_spool_of_the_version_before_goes_on(tmp_path: Path) -> None:
    for name in ("incoming", "outgoing"):
        (tmp_path / name).mkdir()
    for name in ("incoming/b.dcm", "outgoing/c.dcm", "outgoing/d.dcm"):
        (tmp_path / name).write_bytes(b"y")
    database = sqlite3.connect(tmp_path / "queue.sqlite")
    database.executescript(OLD)
    database.close()
    spool = Spool(tmp_path, "m", sending=True)
    (report,) = spool.due(1.0, 9)
    assert (report.path.read_bytes(), report.refusals, report.sha256) == (b"y", 3, "")
    spool.check(report)
    assert [image.number for image in spool.take(9)] == [2]
    assert spool.count("reports", "set aside") == 1
    spool.close()
    again = Spool(tmp_path, "m", sending=True)
    assert again.count("reports", "set aside") == 1
    again.close()


def test_a_damaged_queue_is_reported_and_a_lost_one_loses_no_image(tmp_path: Path) -> None:
    (file,) = queued(tmp_path, 1)
    (tmp_path / "queue.sqlite").write_bytes(b"no database" * 100)
    for name in ("queue.sqlite-wal", "queue.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(UsageError, match="is damaged"):
        Spool(tmp_path, MODEL, sending=True)
    (tmp_path / "queue.sqlite").unlink()
    Spool(tmp_path, MODEL, sending=True).close()
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [file.name]
    with pytest.raises(UsageError, match="found no queue"):
        node_status(tmp_path / "none")


def test_the_queue_can_be_read_beside_the_node(tmp_path: Path) -> None:
    with running(tmp_path) as node:
        send(node.port, [xray_bytes(1)])
        until(lambda: node.spool.count("reports", "kept") == 2, "two reports")
        document, text = node_status(tmp_path)
    assert (document["films_answered"], document["reports_kept"]) == (1, 2)
    assert document["items"] == []
    assert "images scored" in text
    queue = Queue(tmp_path, alone=True)
    queue.close()
