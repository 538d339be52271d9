"""A node on loopback with a model that is none: images in, reports out, nothing lost or doubled."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.scorer import made_reports
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.errors import Reason, UsageError
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.workflows.services import node_retry, node_status
from support.dicom_peers import Archive, archive, audited, modality, send, until
from support.dicom_reports import MANIFEST, BrightnessBackend, predicted, predictor, xray_bytes
from support.image_files import dicom


@contextmanager
def running(
    spool: Path, to: Archive | None, model: Predictor | None = None, **settings: Any
) -> Iterator[Node]:
    forward = f"ARCHIVE@127.0.0.1:{to.port}" if to else ""
    quick = {"retry_first": 0.05, "retry_most": 0.2, "min_free": 0, "grace": 2.0}
    config = NodeConfig(port=0, spool=str(spool), forward=forward, **{**quick, **settings})
    node = Node(config, model or predictor())
    try:
        yield node
    finally:
        node.stop()


def sent(kept: Archive, count: int) -> None:
    until(lambda: len(kept.received) >= count, f"the archive getting {count} objects")


def test_each_image_becomes_a_report_and_a_capture_in_its_study(tmp_path: Path) -> None:
    images = [xray_bytes(k) for k in range(3)]
    with archive() as kept, running(tmp_path, kept) as node:
        assert send(node.port, images) == [0, 0, 0]
        sent(kept, 6)
    studies: dict[str, list[str]] = {}
    for dataset in kept.datasets:
        studies.setdefault(dataset.PatientID, []).append(dataset.SOPClassUID)
    kinds = sorted([Comprehensive3DSRStorage, SecondaryCaptureImageStorage])
    assert {key: sorted(value) for key, value in studies.items()} == {
        f"P-000{k}": kinds for k in range(3)
    }
    # Nothing of a patient stays in the spool when all is done.
    assert list((tmp_path / "incoming").iterdir()) == []
    assert list((tmp_path / "outgoing").iterdir()) == []


def test_it_responds_to_an_echo_and_takes_no_ct(tmp_path: Path) -> None:
    with running(tmp_path, None) as node:
        association = modality().associate("127.0.0.1", node.port, ae_title="PNEUMOSCOPE")
        assert association.send_c_echo().Status == 0
        accepted = {context.abstract_syntax.name for context in association.accepted_contexts}
        association.release()
    assert "Verification SOP Class" in accepted
    assert "CT Image Storage" not in accepted


def test_an_image_that_comes_again_is_not_scored_again(tmp_path: Path) -> None:
    with archive() as kept, running(tmp_path, kept) as node:
        assert send(node.port, [xray_bytes(1), xray_bytes(1)]) == [0, 0]
        sent(kept, 2)
        renamed = xray_bytes(1, PatientName="ANOTHER^NAME")
        assert send(node.port, [xray_bytes(1), renamed, xray_bytes(2)]) == [0, 0, 0]
        sent(kept, 6)  # other content under the same UID has reports of its own
    assert len({uid for uid, _ in kept.received}) == 6
    events = [(line["event"], line.get("known_uid")) for line in audited(tmp_path)]
    assert events.count(("known already", None)) == 2
    assert events.count(("received", "other content")) == 1
    assert events.count(("received", None)) == 2


def test_heatmaps_that_an_archive_routes_back_are_not_scored(tmp_path: Path) -> None:
    with archive() as kept, running(tmp_path, kept) as node:
        assert send(node.port, [xray_bytes(1)]) == [0]
        sent(kept, 2)
        (capture,) = (x for x in kept.datasets if x.SOPClassUID == SecondaryCaptureImageStorage)
        elsewhere, changed, phantom = (deepcopy(capture) for _ in range(3))
        elsewhere.SOPInstanceUID = "1.2.3"  # of another node
        changed.Manufacturer = "Archive"  # of this one
        phantom.SOPInstanceUID, phantom.ImageType = "1.2.4", ["DERIVED", "PRIMARY"]
        returned = [dicom(each) for each in (capture, elsewhere, changed, phantom)]
        assert send(node.port, returned) == [0, 0, 0, 0]
        sent(kept, 4)
    events = [line["event"] for line in audited(tmp_path)]
    assert (events.count("own object"), events.count("received")) == (3, 2)


def test_it_recognises_an_image_after_a_restart_and_scores_it_anew_with_another_model(
    tmp_path: Path,
) -> None:
    with archive() as kept:
        with running(tmp_path, kept) as node:
            send(node.port, [xray_bytes(1)])
            sent(kept, 2)
        with running(tmp_path, kept) as node:
            send(node.port, [xray_bytes(1), xray_bytes(2)])
            sent(kept, 4)
        other = replace(MANIFEST, threshold=replace(MANIFEST.threshold, value=0.9))
        with running(tmp_path, kept, Predictor(other, BrightnessBackend())) as node:
            send(node.port, [xray_bytes(1)])
            sent(kept, 6)
    assert len({uid for uid, _ in kept.received}) == len(kept.received) == 6


def test_it_scores_an_image_again_with_other_checks(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, ages=(1, 5))
    with archive() as kept:
        for any_age, count in ((False, 1), (True, 3), (True, 3)):
            model = Predictor(manifest, BrightnessBackend(), any_age=any_age)
            with running(tmp_path, kept, model) as node:
                assert send(node.port, [xray_bytes(1)]) == [0]
                sent(kept, count)
    events = [(line["event"], line.get("reason")) for line in audited(tmp_path)]
    assert [each for each in events if each[0] == "answered"] == [
        ("answered", "outside_age_range"),
        ("answered", None),
    ]
    assert len({uid for uid, _ in kept.received}) == 3


def test_without_a_destination_reports_are_kept_until_there_is_one(tmp_path: Path) -> None:
    with running(tmp_path, None) as node:
        send(node.port, [xray_bytes(1)])
        until(lambda: node.spool.count("reports", "kept") == 2, "two reports being kept")
    assert len(list((tmp_path / "outgoing").iterdir())) == 2
    with archive() as kept, running(tmp_path, kept):
        sent(kept, 2)
    assert list((tmp_path / "outgoing").iterdir()) == []


def test_a_destination_that_is_away_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    with archive() as kept:
        port = kept.port
    with running(tmp_path, Archive(port)) as node:
        send(node.port, [xray_bytes(k) for k in range(2)])
        until(
            lambda: any(x["event"] == "destination not reached" for x in audited(tmp_path)),
            "a vain attempt",
        )
        with archive(port) as back:
            sent(back, 4)
            until(lambda: node.spool.count("reports", "sent") == 4, "all being marked as sent")
    assert len({uid for uid, _ in back.received}) == 4


def test_a_report_that_is_refused_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    # PS3.4 B.2.3: A700 out of resources, A900 data set does not match, B000 stored with a remark.
    with archive(statuses=[0xA700, 0xA900, 0, 0]) as kept, running(tmp_path, kept) as node:
        send(node.port, [xray_bytes(1)])
        sent(kept, 2)
        until(lambda: node.spool.count("reports", "sent") == 2, "both being sent")
    with (
        archive(statuses=[0xA900] * 4) as kept,
        running(tmp_path, kept, most_refusals=2) as node,
    ):
        send(node.port, [xray_bytes(2)])
        until(lambda: node.spool.count("reports", "set aside") == 2, "two being given up")
        send(node.port, [xray_bytes(3)])
        sent(kept, 2)
    assert {dataset.PatientID for dataset in kept.datasets} == {"P-0003"}
    assert len(list((tmp_path / "outgoing").iterdir())) == 2


def test_a_destination_that_takes_implicit_vr_only_gets_that(tmp_path: Path) -> None:
    with archive(syntaxes=[ImplicitVRLittleEndian]) as kept, running(tmp_path, kept) as node:
        send(node.port, [xray_bytes(1)])
        sent(kept, 2)
    assert {d.file_meta.TransferSyntaxUID for d in kept.datasets} == {ImplicitVRLittleEndian}


def test_images_without_a_prediction_get_a_report_that_states_it(tmp_path: Path) -> None:
    blank = np.zeros((64, 56), np.uint16)
    hand = xray_bytes(2, BodyPartExamined="HAND")
    homeless = xray_bytes(3, StudyInstanceUID=None)
    with archive() as kept, running(tmp_path, kept) as node:
        images = [xray_bytes(1, samples=blank), hand, homeless]
        assert send(node.port, images) == [0, 0, 0xA900]
        sent(kept, 2)
        until(lambda: node.spool.count("films", "answered") == 2, "both being scored")
    assert {d.SOPClassUID for d in kept.datasets} == {Comprehensive3DSRStorage}
    reasons = {line["reason"] for line in audited(tmp_path) if line["event"] == "answered"}
    assert reasons == {"blank", "wrong_body_part"}
    (turned_away,) = [line for line in audited(tmp_path) if line["event"] == "turned away"]
    assert turned_away["why"] == "its data set states no StudyInstanceUID"
    # One that a spool holds from before this was rejected gets no report, and the reason is kept.
    path = tmp_path / "homeless.dcm"
    path.write_bytes(homeless)
    made = made_reports(Reporter(MANIFEST), path, predicted(xray_bytes(3)))
    assert made is Reason.CORRUPT


def test_the_audit_has_no_word_about_a_patient(tmp_path: Path) -> None:
    image = xray_bytes(1)
    with archive() as kept, running(tmp_path, kept) as node:
        send(node.port, [image, xray_bytes(2, BodyPartExamined="HAND", PatientName="SECRET^NAME")])
        sent(kept, 3)
    text = (tmp_path / "audit.jsonl").read_text()
    events = [line["event"] for line in audited(tmp_path)]
    for event in ("started", "received", "answered", "sent", "stopped"):
        assert event in events
    for secret in ("XRAY", "SECRET", "P-000", "19600704", "20240229", "HAND", "1.2.826"):
        assert secret not in text, secret


def test_who_may_call(tmp_path: Path) -> None:
    def established(caller: str, called: str) -> bool:
        association = modality(caller).associate("127.0.0.1", node.port, ae_title=called)
        if not association.is_established:
            return False
        association.release()
        return True

    with running(tmp_path / "a", None, callers=("CT1", "CR1")) as node:
        assert established("CR1", "PNEUMOSCOPE")
        assert not established("STRANGER", "PNEUMOSCOPE")
        assert not established("CR1", "OTHER")
        until(
            lambda: [x["event"] for x in audited(tmp_path / "a")].count("rejected") == 2,
            "the audit of two rejections",
        )
    with running(tmp_path / "b", None, any_called=True) as node:
        assert established("STRANGER", "OTHER")


def test_one_node_to_a_spool(tmp_path: Path) -> None:
    with running(tmp_path, None), pytest.raises(UsageError, match="A spool has one node at a time"):
        Node(NodeConfig(port=0, spool=str(tmp_path)), predictor())


def test_a_port_in_use_is_reported_and_the_spool_is_free_again(tmp_path: Path) -> None:
    with running(tmp_path / "a", None) as node:
        config = NodeConfig(port=node.port, spool=str(tmp_path / "b"))
        with pytest.raises(UsageError, match="can't be listened on"):
            Node(config, predictor())
    with running(tmp_path / "b", None):
        pass


def test_a_part_that_fails_ends_the_node(tmp_path: Path) -> None:
    class Broken(BrightnessBackend):
        def run(self, batch: np.ndarray) -> Outputs:
            raise RuntimeError("broken")

    with running(tmp_path, None, Predictor(MANIFEST, Broken())) as node:
        send(node.port, [xray_bytes(1)])
        with pytest.raises(RuntimeError, match="broken"):
            node.run(threading.Event())
    # What was acknowledged is scored by the next one.
    with archive() as kept, running(tmp_path, kept):
        sent(kept, 2)


def test_giving_up_an_image_touches_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, Author.of(MANIFEST).fingerprint, sending=True)
    spool.receive("1.2.3", xray_bytes(1), 10, 0)
    assert [len(spool.take(16)) for _ in range(5)] == [1] * 5  # begun, and never ended
    spool.close()
    (file,) = (tmp_path / "incoming").iterdir()
    read = Path.open

    def opened(path: Path, *how: Any, **more: Any) -> Any:
        assert path != file, "the file at which the program ended was opened again"
        return read(path, *how, **more)

    monkeypatch.setattr(Path, "open", opened)
    with archive() as kept, running(tmp_path, kept) as node:
        until(lambda: node.spool.count("films", "set aside") == 1, "its being set aside")
        assert send(node.port, [xray_bytes(2)]) == [0]
        sent(kept, 2)
    assert file.exists()
    assert [line["event"] for line in audited(tmp_path)].count("given up") == 1
    document, text = node_status(tmp_path)
    assert document["items"][0] == {
        "kind": "image",
        "number": 1,
        "film": 1,
        "state": "set aside",
        "failures": 5,
        "why": "ended the program 5 times",
    }
    assert "set aside: image 1" in text
    monkeypatch.undo()
    assert node_retry(tmp_path)[0]["tried_again"] == {
        "films": 1,
        "reports": 0,
        "fhir": 0,
        "fetches": 0,
    }
    with archive() as kept, running(tmp_path, kept):
        sent(kept, 2)
    assert {dataset.PatientID for dataset in kept.datasets} == {"P-0001"}


def test_warnings_stand_in_the_audit_without_values(tmp_path: Path) -> None:
    with archive() as kept, running(tmp_path, kept) as node:
        odd = xray_bytes(1, WindowCenter=128, WindowWidth=256, BodyPartExamined="SMITH")
        assert send(node.port, [odd]) == [0]
        sent(kept, 2)
    (line,) = [each for each in audited(tmp_path) if each["event"] == "answered"]
    assert line["warnings"] == (
        "its body part … is not known, it was accepted as a chest X-ray; "
        "its window (centre …, width …) clips …% of the pixels, so it was not used"
    )
    texts = [str(each.get("TextValue", "")) for each in _items(kept.datasets)]
    assert any(text.startswith("Caution: its window (centre 128, width 256)") for text in texts)


def _items(datasets: Sequence[Dataset]) -> Iterator[Dataset]:
    for dataset in datasets:
        yield dataset
        yield from _items(dataset.get("ContentSequence", []))
