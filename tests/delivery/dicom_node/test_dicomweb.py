"""Images fetched from a DICOMweb server, reports stored to it: none lost, none stored twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import (
    TOKEN_VARIABLE,
    DicomWeb,
    Found,
    NotAvailableError,
)
from pneumoscope.delivery.dicom_node.http_client import ServerError
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool
from pneumoscope.errors import UsageError
from support import node_process
from support.dicom_peers import audited, until
from support.dicom_reports import predictor, xray_bytes
from support.fake_dicomweb import DicomWebServer, dicomweb_server

QUICK = {**node_process.QUICK, "port": 0, "poll": 0.05, "dicomweb_days": 0}


@contextmanager
def running(spool: Path, server: DicomWebServer, **settings: Any) -> Iterator[Node]:
    given = {**QUICK, "spool": str(spool), "dicomweb": server.url, **settings}
    node = Node(NodeConfig(**given), predictor())
    try:
        yield node
    finally:
        node.stop()


def search(server: DicomWebServer, **settings: Any) -> list[Found]:
    with closing(DicomWeb(NodeConfig(dicomweb=server.url, **settings))) as client:
        return [image for page, _ in client.search("DX", "") for image in page]


def events(spool: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in audited(spool) if line["event"] == name]


def wanted(image: bytes) -> Found:
    dataset = dcmread(BytesIO(image))
    return Found(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


def test_each_image_is_fetched_once_and_its_reports_are_in_its_study(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(3)] + [xray_bytes(4, Modality="MG")]
    with dicomweb_server(images, most=2) as server, running(tmp_path, server):
        until(lambda: len(server.stored) == 6, "reports of three images")
        searches = len(server.asked)
        until(lambda: len(server.asked) > searches + 4, "more searches")
        assert len(server.stored) == 6
    studies = Counter(dcmread(BytesIO(c)).StudyInstanceUID for _, c in server.stored)
    assert studies == {wanted(image).study: 2 for image in images[:3]}
    fetched = [line for line in server.asked if "/series/" in line]
    assert len(fetched) == len(set(fetched)) == 3
    assert not list((tmp_path / "incoming").iterdir())
    assert not list((tmp_path / "outgoing").iterdir())
    # What is audited says nothing of anyone.
    text = (tmp_path / "audit.jsonl").read_text()
    for image in images[:3]:
        dataset = dcmread(BytesIO(image))
        for word in (str(dataset.PatientName), dataset.PatientID, *(vars_of(wanted(image)))):
            assert word not in text


def vars_of(found: Found) -> tuple[str, str, str]:
    return found.study, found.series, found.sop


def test_images_of_old_studies_are_left_where_they_are(tmp_path: Path) -> None:
    from datetime import date

    new = xray_bytes(2, StudyDate=f"{date.today():%Y%m%d}")
    with (
        dicomweb_server([xray_bytes(1), new]) as server,
        running(tmp_path, server, dicomweb_days=1),
    ):
        until(lambda: len(server.stored) == 2, "reports of today's image")
    assert {dcmread(BytesIO(c)).StudyInstanceUID for _, c in server.stored} == {wanted(new).study}


def test_a_server_in_trouble_is_asked_again(tmp_path: Path) -> None:
    with (
        dicomweb_server([xray_bytes(1)], search_faults=[500, 503, 302, 400]) as server,
        running(tmp_path, server),
    ):
        until(lambda: len(server.stored) == 2, "reports in the end")
    told = [(line["why"], line["status"]) for line in events(tmp_path, "server not reached")]
    assert told[:4] == [
        *(("turned away", status) for status in (500, 503, 302)),
        ("search failed", 400),
    ]


def test_what_the_server_refuses_is_tried_again_and_given_up_in_the_end(tmp_path: Path) -> None:
    # The first is refused in two ways and then taken; the second never.
    with (
        dicomweb_server([xray_bytes(1)], faults=[202, 409, 409, 409, 200, 409]) as server,
        running(tmp_path, server, most_refusals=3) as node,
    ):
        until(
            lambda: (
                node.spool.count("reports", "waiting") == 0
                and node.spool.count("films", "answered") == 1
            ),
            "both reports being done with",
        )
        done = [node.spool.count("reports", state) for state in ("sent", "set aside")]
    assert sum(done) == 2
    assert len(server.stored) == done[0]
    refusals = events(tmp_path, "refused by destination") + events(tmp_path, "given up")
    assert {line["status"] for line in refusals} == {202, 409}
    assert len(events(tmp_path, "given up")) == done[1]
    assert len(list((tmp_path / "outgoing").iterdir())) == done[1]


@pytest.mark.parametrize("fault", [500, 503, 429, 401])
def test_a_server_that_is_away_costs_no_report(tmp_path: Path, fault: int) -> None:
    with (
        dicomweb_server([xray_bytes(1)], faults=[fault] * 3) as server,
        running(tmp_path, server, most_refusals=1),
    ):
        until(lambda: len(server.stored) == 2, "both reports")
    told = events(tmp_path, "destination not reached")
    assert [line["status"] for line in told] == [fault] * 3
    assert not events(tmp_path, "given up")


def test_a_response_that_never_came_sends_the_same_bytes_again(tmp_path: Path) -> None:
    with dicomweb_server([xray_bytes(1)], faults=[0]) as server, running(tmp_path, server) as node:
        until(lambda: node.spool.count("reports", "sent") == 2, "both reports")
    assert len(server.stored) == 3
    assert len(set(server.stored)) == 2


def test_a_slow_server_is_left_and_asked_again(tmp_path: Path) -> None:
    with (
        dicomweb_server([xray_bytes(1)], hang=0.5) as server,
        running(tmp_path, server, dimse_timeout=0.2),
    ):
        until(lambda: bool(events(tmp_path, "not retrieved")), "a time-out")
        server.hang = 0.0
        until(lambda: len(server.stored) == 2, "reports in the end")
    assert events(tmp_path, "not retrieved")[0]["why"] == "ReadTimeout"


def test_a_kill_between_storing_and_its_row_sends_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(self: Spool, report: Outgoing) -> None:
        raise Killed

    with dicomweb_server([xray_bytes(1)]) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "sent", dying)
            with pytest.raises(Killed), running(tmp_path, server) as node:
                node.run(threading.Event())
        assert len(server.stored) == 1
        before = server.stored[0]
        with running(tmp_path, server) as node:
            until(lambda: node.spool.count("reports", "sent") == 2, "both reports")
    assert server.stored.count(before) == 2
    assert len(set(server.stored)) == 2


def test_sigkill_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    count = 12
    with dicomweb_server([xray_bytes(k) for k in range(count)]) as server:
        settings = {**QUICK, "spool": str(tmp_path), "dicomweb": server.url}
        node = node_process.start(**settings)
        try:
            until(lambda: len(server.stored) >= 3, "reports")
            node.kill()
            assert node.wait() == -signal.SIGKILL
            node = node_process.start(**settings)
            until(lambda: len({uid for uid, _ in server.stored}) == 2 * count, "all reports")
        finally:
            node.terminate()
            assert node.wait(30) == 0
    assert len(set(server.stored)) == 2 * count
    assert len(server.stored) <= 2 * count + 1


def test_silent_mode_fetches_and_stores_nothing(tmp_path: Path) -> None:
    with (
        dicomweb_server([xray_bytes(1)]) as server,
        running(tmp_path, server, dicomweb_silent=True) as node,
    ):
        until(lambda: node.spool.count("reports", "kept") == 2, "reports being kept")
    assert not [line for line in server.asked if line.startswith("POST")]


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("Basic cGlsb3Q6c2VjcmV0\n")
    with dicomweb_server([xray_bytes(1)], token="Bearer abc.def") as server:  # noqa: S106 - no one's
        with pytest.raises(ServerError) as refused:
            search(server)
        assert refused.value.status == 401
        monkeypatch.setenv(TOKEN_VARIABLE, "abc.def")
        assert len(search(server)) == 1
        server.token = file.read_text().strip()
        assert len(search(server, dicomweb_token_file=str(file))) == 1


@pytest.mark.parametrize(
    ("url", "token", "told"),
    [
        ("http://pacs.example/dicom-web", "abc.def", True),
        ("https://pacs.example/dicom-web", "abc.def", False),
        ("http://127.0.0.1:8042/dicom-web", "abc.def", False),
        ("http://pacs.example/dicom-web", "", False),
    ],
)
def test_a_token_that_goes_unencrypted_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
    token: str,
    told: bool,
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    DicomWeb(NodeConfig(dicomweb=url)).close()
    assert ("Take https" in caplog.text) == told
    assert token == "" or token not in caplog.text


def test_an_image_is_the_same_byte_for_byte_and_no_larger_than_allowed() -> None:
    image = xray_bytes(1)
    with dicomweb_server([image]) as server:
        client = DicomWeb(NodeConfig(dicomweb=server.url))
        assert client.retrieve(wanted(image), len(image)) == image
        for gone, most in ((wanted(xray_bytes(2)), 1 << 20), (wanted(image), len(image) - 1)):
            with pytest.raises(NotAvailableError):
                client.retrieve(gone, most)
        client.close()


@pytest.mark.parametrize("uid", ["../../admin", "1.2/3", "", "1" * 65, 12])
def test_a_uid_that_is_none_gets_into_no_address(uid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image = xray_bytes(1)
    with dicomweb_server([image]) as server:
        monkeypatch.setattr(
            "support.fake_dicomweb.json.dumps",
            lambda rows: (
                __import__("json")
                .JSONEncoder()
                .encode([{**row, "00080018": {"Value": [uid]}} for row in rows])
            ),
        )
        with closing(DicomWeb(NodeConfig(dicomweb=server.url))) as client:
            assert list(client.search("DX", "")) == [([], 1)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dicomweb": "pacs.example/dicom-web"}, "wanted the address"),
        ({"dicomweb": "http://me:secret@pacs.example/dicom-web"}, "password"),
        ({"dicomweb": "http://a/", "forward": "A@b:104"}, "both"),
        ({"dicomweb": "http://a/", "dicomweb_token_file": "/nowhere"}, "can't be read"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        Node(NodeConfig(port=0, spool=str(tmp_path), **settings), predictor())
    assert "secret" not in str(refused.value)
