"""`node --fhir`: the Bundle of each result reaches a FHIR server; none is lost or sent twice."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("fhir.resources", reason="needs the extra 'fhir': pip install '.[fhir]'")

from fhir.resources.R4B.bundle import Bundle

from pneumoscope.config import NodeConfig
from pneumoscope.delivery import fhir
from pneumoscope.delivery.dicom_node import scorer
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.sender import FHIR_TOKEN_VARIABLE
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.delivery.fhir import Subject
from pneumoscope.errors import Reason, UsageError
from pneumoscope.workflows.services import node_retry, node_status
from support import node_process
from support.dicom_peers import archive, audited, send, send_until_acknowledged, until
from support.dicom_reports import MANIFEST, predicted, predictor, xray_bytes
from support.fake_fhir import FhirServer, fhir_server
from support.free_port import free_port

QUICK = {**node_process.QUICK, "port": 0}


@contextmanager
def running(spool: Path, server: FhirServer | None, **settings: Any) -> Iterator[Node]:
    given = {**QUICK, "spool": str(spool), "fhir": server.url if server else "", **settings}
    node = Node(NodeConfig(**given), predictor())
    try:
        yield node
    finally:
        node.stop()


def counts(spool: Path, name: str) -> int:
    return int(node_status(spool)[0][name])


def test_each_result_is_posted_once_beside_its_dicom_reports(tmp_path: Path) -> None:
    images = [xray_bytes(1), xray_bytes(2), xray_bytes(3, BodyPartExamined="HAND")]
    with archive() as kept, fhir_server() as server:
        forward = f"ARCHIVE@127.0.0.1:{kept.port}"
        with running(tmp_path, server, forward=forward) as node:
            assert send(node.port, images) == [0, 0, 0]
            until(lambda: len(server.posted) == 3, "three Bundles")
            until(lambda: len(kept.received) == 5, "two reports with captures, one without")
            until(lambda: counts(tmp_path, "fhir_sent") == 3, "three rows")
    for content in server.posted:
        Bundle.model_validate_json(content)
    patients = {r["subject"]["identifier"]["value"] for r in server.of_kind("DiagnosticReport")}
    assert patients == {"P-0001", "P-0002", "P-0003"}
    observations = server.of_kind("Observation")
    assert sorted("valueQuantity" in one for one in observations) == [False, True, True]
    assert (len(server.of_kind("Device")), len(server.of_kind("Provenance"))) == (1, 3)
    assert counts(tmp_path, "reports_sent") == 5
    assert not list((tmp_path / "outgoing").iterdir())
    text = (tmp_path / "audit.jsonl").read_text()
    assert "P-000" not in text
    assert {line["kind"] for line in audited(tmp_path) if line["event"] == "sent"} == {
        *("report", "capture", "fhir")
    }


def test_a_bundle_that_is_rejected_is_set_aside_shown_and_tried_again(tmp_path: Path) -> None:
    with (
        fhir_server(refused=[b"P-0001"]) as server,
        running(tmp_path, server, most_refusals=3) as node,
    ):
        send(node.port, [xray_bytes(1), xray_bytes(2)])
        until(lambda: counts(tmp_path, "fhir_set_aside") == 1, "one being set aside")
        until(lambda: len(server.posted) == 1, "the other one being taken")
        document, text = node_status(tmp_path)
        (item,) = [i for i in document["items"] if i["state"] == "set aside"]
        assert (item["kind"], item["failures"]) == ("FHIR bundle", 3)
        assert item["why"] == "status 422"
        assert "set aside: FHIR bundle" in text
        assert "of image 1, 3 failures: status 422" in text
        server.refused.clear()
        again = node_retry(tmp_path)[0]["tried_again"]
        assert again == {"films": 0, "reports": 0, "fhir": 1, "fetches": 0}
        until(lambda: len(server.posted) == 2, "it being taken in the end")
    given_up = [line for line in audited(tmp_path) if line["event"] == "given up"]
    assert [(line["kind"], line["status"]) for line in given_up] == [("fhir", 422)]


@pytest.mark.parametrize("fault", [500, 503, 429, 302])
def test_a_server_in_trouble_costs_no_bundle(tmp_path: Path, fault: int) -> None:
    with (
        fhir_server(faults=[fault] * 3) as server,
        running(tmp_path, server, most_refusals=1) as node,
    ):
        send(node.port, [xray_bytes(1)])
        until(lambda: len(server.posted) == 1, "the Bundle")
    told = [line for line in audited(tmp_path) if line["event"] == "destination not reached"]
    assert [line["status"] for line in told] == [fault] * 3


def test_a_server_that_is_away_does_not_hold_up_the_archive(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/fhir"
    with archive() as kept:
        forward = f"ARCHIVE@127.0.0.1:{kept.port}"
        with running(tmp_path, None, fhir=url, forward=forward) as node:
            send(node.port, [xray_bytes(1)])
            until(lambda: len(kept.received) == 2, "report and capture")
    assert counts(tmp_path, "fhir_waiting") == 1
    # Without --fhir what waits is kept; with it, it goes out.
    with running(tmp_path, None) as node:
        assert node.spool.count("reports", "kept") == 1
    with fhir_server() as server, running(tmp_path, server):
        until(lambda: len(server.posted) == 1, "the Bundle of before")


def test_a_response_that_was_lost_sends_the_same_bytes_again(tmp_path: Path) -> None:
    with fhir_server(faults=[0]) as server, running(tmp_path, server) as node:
        send(node.port, [xray_bytes(1)])
        until(lambda: counts(tmp_path, "fhir_sent") == 1, "the Bundle")
    assert len(server.posted) == 2
    assert len(set(server.posted)) == 1
    assert len(server.resources) == 4


def test_a_long_response_is_cut_off_and_its_status_counts(tmp_path: Path) -> None:
    with fhir_server(padding=2 << 20) as server, running(tmp_path, server) as node:
        send(node.port, [xray_bytes(1)])
        until(lambda: counts(tmp_path, "fhir_sent") == 1, "the Bundle")
    assert len(server.posted) == 1


def test_a_kill_between_posting_and_its_row_sends_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(self: Spool, report: Outgoing) -> None:
        raise Killed

    with fhir_server() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "sent", dying)
            with running(tmp_path, server) as node:
                send(node.port, [xray_bytes(1)])
                with pytest.raises(Killed):
                    node.run(threading.Event())
        with running(tmp_path, server):
            until(lambda: counts(tmp_path, "fhir_sent") == 1, "the Bundle")
    assert len(server.posted) == 2
    assert len(set(server.posted)) == 1


def test_sigkill_loses_nothing(tmp_path: Path) -> None:
    count, port = 8, free_port()
    acknowledged: list[int] = []
    over = threading.Event()
    with fhir_server() as server:
        settings = {**QUICK, "spool": str(tmp_path), "fhir": server.url, "port": port}
        node = node_process.start(**settings)
        images = [xray_bytes(k) for k in range(count)]
        sender = threading.Thread(
            target=send_until_acknowledged, args=(port, images, acknowledged.append, over)
        )
        sender.start()
        try:
            until(lambda: len(server.posted) >= 2, "Bundles")
            node.kill()
            assert node.wait() == -signal.SIGKILL
            node = node_process.start(**settings)
            until(lambda: len(server.of_kind("DiagnosticReport")) == count, "all of them")
        finally:
            over.set()
            sender.join()
            node.terminate()
            assert node.wait(30) == 0
    assert sorted(acknowledged) == list(range(count))
    assert len(set(server.posted)) == count
    assert len(server.posted) <= count + 1


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("Basic cGlsb3Q6c2VjcmV0\n")
    with fhir_server(token="Bearer abc.def") as server:  # noqa: S106 - no one's
        monkeypatch.setenv(FHIR_TOKEN_VARIABLE, "abc.def")
        with running(tmp_path / "a", server) as node:
            send(node.port, [xray_bytes(1)])
            until(lambda: len(server.posted) == 1, "the Bundle")
        server.token = file.read_text().strip()
        with running(tmp_path / "b", server, fhir_token_file=str(file)) as node:
            send(node.port, [xray_bytes(1)])
            until(lambda: len(server.posted) == 2, "the Bundle")


def test_values_that_fhir_does_not_allow_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fhir._bundle

    def strict(subject: Subject, *arguments: Any, **how: Any) -> str:
        if subject.patient_id:
            raise ValueError("a PatientID that FHIR does not allow")
        return real(subject, *arguments, **how)

    monkeypatch.setattr(fhir, "_bundle", strict)
    path = tmp_path / "image.dcm"
    path.write_bytes(xray_bytes(1))
    made = scorer.made_reports(Reporter(MANIFEST), path, predicted(xray_bytes(1)), True)
    assert not isinstance(made, Reason)
    assert [item.kind for item in made] == ["report", "capture", "fhir"]
    report = json.loads(made[2].content)["entry"][0]["resource"]
    assert "subject" not in report
    assert report["imagingStudy"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fhir": "fhir.example/r4"}, "--fhir: found .* wanted the address of a FHIR R4 server"),
        ({"fhir": "http://me:secret@fhir.example/r4"}, "--fhir-token-file or"),
        (
            {"fhir": "http://a/", "fhir_token_file": "/nowhere"},
            "--fhir-token-file .* can't be read",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as rejected:
        Node(NodeConfig(port=0, spool=str(tmp_path), **settings), predictor())
    assert "secret" not in str(rejected.value)
