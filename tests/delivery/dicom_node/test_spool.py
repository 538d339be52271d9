"""The spool: order of states, and what a kill leaves behind."""

from __future__ import annotations

import sqlite3
import threading
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pneumoscope.delivery.dicom_node import spool as spooling
from pneumoscope.delivery.dicom_node.spool import DAMAGED, MISSING, Incoming, Spool
from pneumoscope.delivery.dicom_report.objects import ReportObject
from pneumoscope.storage import write_bytes
from support.dicom_reports import patient_xray
from support.image_files import dicom


def opened(folder: Path, model: str = "m", sending: bool = True) -> Spool:
    return Spool(folder, model, sending=sending)


def keep(spool: Spool, uid: str, content: bytes = b"image") -> str:
    return spool.receive(uid, content, 100, 0)[0]


def report(uid: str) -> ReportObject:
    return ReportObject("report", "1.2", uid, b"report")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_image_goes_its_way(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert keep(spool, "1.1") == "new"
    (image,) = spool.take(16)
    assert image.path.read_bytes() == b"image"
    assert spool.answered(image, [report("2.1"), report("2.2")]) == 2
    assert not image.path.exists()
    first, second = spool.due(0.0, 10)
    assert first.path.read_bytes() == b"report"
    spool.sent(first)
    assert not first.path.exists()
    spool.refused(second, 100.0, give_up=False)
    assert spool.due(99.0, 10) == []
    (again,) = spool.due(100.0, 10)
    assert (again.number, again.refusals) == (second.number, 1)
    spool.refused(again, 0.0, give_up=True)
    assert spool.due(1e12, 10) == []
    assert again.path.exists()
    spool.close()


def test_names_of_files_are_never_the_caller_s(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for uid in ("../../etc/passwd", "/abs", "a\0b", "", "x" * 5000):
        assert keep(spool, uid) == "new"
    assert len(names(tmp_path / "incoming")) == 5
    assert all(len(name) == 36 for name in names(tmp_path / "incoming"))
    folders = {"incoming", "outgoing", "quarantine"}
    queue = {"lock", "queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm"}
    assert names(tmp_path) <= folders | queue
    spool.close()


def test_an_image_is_known_again_by_uid_and_content_for_the_same_model(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert [keep(spool, "1.1"), keep(spool, "1.1")] == ["new", "known"]
    assert [keep(spool, "1.1", b"other"), keep(spool, "1.1", b"other")] == [
        "other content",
        "known",
    ]
    assert len(names(tmp_path / "incoming")) == 2
    spool.close()
    again = opened(tmp_path, "other model")
    assert keep(again, "1.1") == "new"
    again.close()


def test_another_transfer_syntax_is_the_same_image(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    image = patient_xray()
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        keep(spool, "1.1", dicom(image, syntax))
    content = dicom(image)
    sender = content.replace(b"PYDICOM", b"ANOTHER")  # in the file meta information
    assert sender != content
    assert keep(spool, "1.1", sender) == "known"
    assert len(spool.take(16)) == 1
    image.PatientAge = "003Y"
    assert keep(spool, "1.1", dicom(image)) == "other content"
    spool.close()


def test_the_file_that_comes_again_may_have_another_transfer_syntax(tmp_path: Path) -> None:
    spool, xray = opened(tmp_path), patient_xray()
    keep(spool, "1.1", dicom(xray))
    (image,) = spool.take(16)
    spool.set_aside(image, MISSING)
    assert keep(spool, "1.1", dicom(xray, ImplicitVRLittleEndian)) == "again"
    (image,) = spool.take(16)
    spool.check(image)  # against the digest of its own file
    spool.close()


def test_an_image_of_a_spool_of_version_2_is_known_by_its_file(tmp_path: Path) -> None:
    content = dicom(patient_xray())
    opened(tmp_path).close()
    database = sqlite3.connect(tmp_path / "queue.sqlite")
    database.executescript(
        "DROP INDEX films_image; ALTER TABLE films DROP COLUMN image; PRAGMA user_version = 2;"
    )
    database.execute(
        "INSERT INTO films (sop_uid, model, sha256, file, state, received)"
        " VALUES ('1.1', 'm', ?, 'a.dcm', 'answered', 0)",
        (sha256(content).hexdigest(),),
    )
    database.commit()
    database.close()
    spool = opened(tmp_path)
    assert keep(spool, "1.1", content) == "known"
    assert keep(spool, "1.1", dicom(patient_xray(2))) == "other content"
    spool.close()


def test_an_image_is_fetched_again_where_a_report_was_lost(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, "1.1")
    (image,) = spool.take(16)
    spool.answered(image, [report("2.1"), report("2.2")])
    first, second = spool.due(0.0, 9)
    assert not spool.fetchable("1.1", 0.0)
    spool.set_aside(first, "refused 20 times")
    assert not spool.fetchable("1.1", 0.0)
    spool.set_aside(first, DAMAGED)
    assert spool.fetchable("1.1", 0.0)
    assert keep(spool, "1.1") == "again"
    assert not spool.fetchable("1.1", 0.0)
    (image,) = spool.take(16)
    before = names(tmp_path / "outgoing")
    assert spool.answered(image, [report("2.1"), report("2.2")]) == 1
    assert names(tmp_path / "outgoing") - before == {
        one.path.name for one in spool.due(0.0, 9) if one.sop_uid == "2.1"
    }
    assert second.path in [one.path for one in spool.due(0.0, 9)]  # as it was
    assert not spool.fetchable("1.1", 0.0)
    spool.close()


def test_an_image_whose_lost_report_is_not_made_again_is_fetched_once(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, "1.1")
    spool.answered(spool.take(16)[0], [report("2.1")])
    (lost,) = spool.due(0.0, 9)
    spool.set_aside(lost, MISSING)
    keep(spool, "1.1")
    spool.answered(spool.take(16)[0], [report("2.9")])  # as by another version
    assert not spool.fetchable("1.1", 0.0)
    spool.close()


def test_it_turns_images_away_when_it_is_full(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.receive("1.1", b"image", 1, 0)[0] == "new"
    assert spool.receive("1.2", b"image", 1, 0) == ("full", 0)
    assert spool.receive("1.3", b"image", 9, 1 << 60) == ("full", 0)
    assert len(names(tmp_path / "incoming")) == 1
    spool.close()


def test_the_same_image_by_many_threads_at_once_is_one(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(keep(spool, "1.1"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["known"] * 7 + ["new"]
    assert len(names(tmp_path / "incoming")) == 1
    spool.close()


def test_what_was_begun_and_not_ended_is_given_alone_after_the_others(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for uid in ("1.1", "1.2", "1.3"):
        keep(spool, uid)
    assert [image.attempts for image in spool.take(2)] == [1, 1]
    spool.close()  # as a kill would, with both begun
    again = opened(tmp_path)
    assert [image.number for image in again.take(16)] == [3]
    assert [(image.number, image.attempts) for image in again.take(16)] == [(1, 2)]
    again.put_back([Incoming(1, tmp_path, 2)])
    assert [(image.number, image.attempts) for image in again.take(16)] == [(1, 2)]
    again.close()


def test_what_a_kill_left_without_a_row_goes_and_what_has_one_stays(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, "1.1")
    keep(spool, "1.2")
    spool.answered(spool.take(1)[0], [report("2.1")])
    kept = names(tmp_path / "incoming") | names(tmp_path / "outgoing")
    spool.close()
    for place in ("incoming", "outgoing"):  # written, and killed before the row
        (tmp_path / place / f"{'f' * 32}.dcm").write_bytes(b"x")
        (tmp_path / place / f".{'e' * 32}.dcm.{'0' * 32}.tmp").write_bytes(b"x")
    again = opened(tmp_path)
    assert names(tmp_path / "incoming") | names(tmp_path / "outgoing") == kept
    assert len(again.take(16)) == 1
    assert len(again.due(0.0, 9)) == 1
    again.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", range(3))
def test_a_kill_between_any_two_writes_of_reports_loses_and_doubles_nothing(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    keep(spool, "1.1")
    (image,) = spool.take(1)
    left = [writes]
    real = write_bytes

    def dying(path: Path, content: bytes) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(path, content)

    monkeypatch.setattr(spooling, "write_bytes", dying)
    if writes < 2:
        with pytest.raises(Killed):
            spool.answered(image, [report("2.1"), report("2.2")])
    else:
        spool.answered(image, [report("2.1"), report("2.2")])
    spool.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    for later in again.take(16):
        again.answered(later, [report("2.1"), report("2.2")])
    assert len(again.due(0.0, 9)) == 2
    assert len(names(tmp_path / "outgoing")) == 2
    assert names(tmp_path / "incoming") == set()
    again.close()


def test_a_kill_before_the_row_of_an_image_leaves_it_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)

    class Clock:
        @staticmethod
        def time() -> float:
            raise Killed

    monkeypatch.setattr(spooling, "time", Clock)  # asked between file and row
    with pytest.raises(Killed):
        keep(spool, "1.1")
    assert len(names(tmp_path / "incoming")) == 1
    spool.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    assert names(tmp_path / "incoming") == set()
    assert keep(again, "1.1") == "new"  # it was not acknowledged, so it comes again
    again.close()


def test_commits_are_on_disk_when_they_return(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, "1.1")
    assert spool.queue.rows("PRAGMA journal_mode") == [("wal",)]
    assert spool.queue.rows("PRAGMA synchronous") == [(2,)]  # FULL
    spool.close()
    database = sqlite3.connect(tmp_path / "queue.sqlite")
    assert database.execute("SELECT sop_uid, state FROM films").fetchall() == [("1.1", "waiting")]
    database.close()
