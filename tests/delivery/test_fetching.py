"""`fetch` from a real PACS (dcmqrscp of DCMTK) and a DICOMweb server on loopback."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    DigitalXRayImageStorageForPresentation,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from pneumoscope.cli.app import run
from pneumoscope.config import NodeConfig
from pneumoscope.delivery import pseudonyms
from pneumoscope.delivery.pacs import JOURNAL, FetchedFolder, Pacs, Series
from pneumoscope.delivery.pseudonyms import MAPPING_COLUMNS, Mapping
from pneumoscope.errors import UsageError
from pneumoscope.images import budget
from pneumoscope.storage import alone_in
from support import fake_dicomweb
from support.dicom_peers import until
from support.dicom_reports import needs, xray_bytes
from support.fake_dicomweb import dicomweb_server
from support.free_port import free_port
from support.hostile_files import items, items_before
from support.image_files import dicom

ALL_DAYS = ("--from", "2026-09-01", "--to", "2026-10-01", "--modality", "DX")
DAYS = ("20260901", "20260902", "20260903", "20261001")


def xrays() -> list[bytes]:
    """Four studies of four days; of the second also a CT."""
    made = [
        xray_bytes(k, StudyDate=day, AccessionNumber=f"A{k}", Modality="DX")
        for k, day in enumerate(DAYS)
    ]
    second = {"StudyInstanceUID": str(_read(made[1]).StudyInstanceUID), "StudyDate": DAYS[1]}
    return [*made, xray_bytes(9, Modality="CT", AccessionNumber="A1", **second)]


def _read(content: bytes) -> Any:
    return dcmread(BytesIO(content))


@contextmanager
def pacs(folder: Path, contents: list[bytes], move_port: int) -> Iterator[int]:
    """DCMTK's query/retrieve server with some images."""
    place = folder / "QR"
    place.mkdir(parents=True)
    files = []
    for k, content in enumerate(contents):
        files.append(place / f"{k}.dcm")
        files[-1].write_bytes(content)
    subprocess.run(["dcmqridx", str(place), *map(str, files)], check=True, capture_output=True)
    port = free_port()
    (folder / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nme = (PNEUMOSCOPE, 127.0.0.1, {move_port})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {place} RW (200, 1024mb) ANY\nAETable END\n"
    )
    server = subprocess.Popen(
        ["dcmqrscp", "-c", str(folder / "qr.cfg")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _listens(port), "dcmqrscp listening")
        yield port
    finally:
        server.terminate()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def fetched(
    capsys: pytest.CaptureFixture[str], out: Path, *arguments: Any, code: int = 0
) -> dict[str, Any]:
    asked = ["fetch", "--out", str(out), *map(str, arguments), "--min-free", "0", "--json", "-q"]
    assert run(asked) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "images.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@needs("dcmqrscp", "dcmqridx")
@pytest.mark.parametrize("by_move", [False, True])
def test_a_pacs_gives_the_days_that_are_asked_for_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by_move: bool
) -> None:
    contents, port_here, out = xrays(), free_port(), tmp_path / "got"
    with pacs(tmp_path / "pacs", contents, port_here) as port:
        way = ["--move-port", port_here, "--move-host", "127.0.0.1"] if by_move else []
        asked = ["--pacs", f"QR@127.0.0.1:{port}", *way]
        told = fetched(capsys, out, *asked, "--from", "2026-09-01", "--to", "20260903")
        assert (told["new"], told["missing"], told["turned_away"]) == (3, 0, 0)
        rows = rows_of(out)
        assert [row["accession"] for row in rows] == ["A0", "A1", "A2"]  # and no CT
        for row, content in zip(rows, contents, strict=False):
            mine, theirs = dcmread(out / row["path"]), _read(content)
            assert mine.PixelData == theirs.PixelData
            assert mine.SOPInstanceUID == theirs.SOPInstanceUID == row["image"]
            assert row["patient"] == theirs.PatientID
        # What is there is not asked for again; what was lost is.
        (out / rows[1]["path"]).unlink()
        with (out / JOURNAL).open("ab") as stream:
            stream.write(b'{"path": "cut o')
        told = fetched(capsys, out, *asked, "--from", "2026-09-01", "--to", "2026-10-01")
        assert told["new"] == 2
        assert {row["accession"] for row in rows_of(out)} == {"A0", "A1", "A2", "A3"}
        assert all((out / row["path"]).is_file() for row in rows_of(out))


@needs("dcmqrscp", "dcmqridx")
def test_a_list_of_accessions_and_uids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = xrays()
    wanted = tmp_path / "ids.txt"
    wanted.write_text(f"A2\n\n{_read(contents[3]).StudyInstanceUID}\nnowhere\n1.2.3\n")
    with pacs(tmp_path / "pacs", contents, free_port()) as port:
        asked = ["--pacs", f"QR@127.0.0.1:{port}", "--ids", wanted]
        told = fetched(capsys, tmp_path / "got", *asked, code=3)
    assert (told["new"], told["missing"], told["not_found"]) == (2, 0, ["nowhere", "1.2.3"])
    assert {row["accession"] for row in rows_of(tmp_path / "got")} == {"A2", "A3"}


def test_ids_that_the_pacs_does_not_have_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pacs, "_find", lambda *_, **__: [])
    ids = tmp_path / "ids.txt"
    ids.write_text("1.2.840.999.1\nNOSUCH\n")
    asked = ["fetch", "--out", str(tmp_path / "got"), "--pacs", "QR@127.0.0.1:1", "--ids", str(ids)]
    assert run(asked) == 3
    assert "of 2 of --ids: 1.2.840.999.1, NOSUCH" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["", "any AccessionNumber"])
def test_accession_numbers_with_dots_and_studies_with_other_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    numbers = ("2026.0901.01", "1.2.3", "1.02.3")
    made = [xray_bytes(k, AccessionNumber=text, Modality="DX") for k, text in enumerate(numbers)]
    wanted = tmp_path / "ids.txt"
    wanted.write_text(f"{numbers[0]}\n{numbers[2]}\n2026.0901\n")
    with broken_pacs(made, fault) as port:
        asked = ("--pacs", f"QR@127.0.0.1:{port}", "--ids", wanted, "--modality", "DX")
        told = fetched(capsys, tmp_path / "got", *asked, code=3)
    assert (told["new"], told["not_found"]) == (2, ["2026.0901"])
    assert [row["accession"] for row in rows_of(tmp_path / "got")] == [numbers[0], numbers[2]]


@pytest.mark.parametrize("wild", ["A*", "A?1", "A1\\\\A2"])
def test_ids_with_wildcards_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wild: str
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(f"A1\n{wild}\n")
    asked = ["fetch", "--out", str(tmp_path / "got"), "--pacs", "QR@127.0.0.1:1", "--ids", str(ids)]
    assert run(asked) == 2
    assert "in line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found no id"),
        (b"\xef\xbb\xbf \n\n", "found no id"),
        ("Ä1\n".encode("latin-1"), "UTF-8"),
    ],
    ids=["empty", "blank", "latin-1"],
)
def test_a_file_of_ids_that_cannot_be_used_is_rejected_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_bytes(content)
    asked = ["fetch", "--out", str(tmp_path / "got"), "--pacs", "QR@127.0.0.1:1", "--ids", str(ids)]
    assert run(asked) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(ids) in error
    assert not (tmp_path / "got").exists()


def test_a_dicomweb_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dicomweb_server(xrays()) as server:
        asked = ["--dicomweb", server.url, "--from", "2026-09-01", "--to", "2026-10-01"]
        told = fetched(capsys, tmp_path / "got", *asked)
        assert told["new"] == 4
        assert fetched(capsys, tmp_path / "got", *asked)["new"] == 0
    assert {row["modality"] for row in rows_of(tmp_path / "got")} == {"DX"}


@pytest.mark.parametrize("unnamed", [{0}, {1, 2}])
def test_a_page_of_rows_without_uids_does_not_end_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unnamed: set[int]
) -> None:
    with dicomweb_server(xrays(), most=1, without_series=unnamed) as server:
        asked = ["--dicomweb", server.url, *ALL_DAYS]
        told = fetched(capsys, tmp_path / "got", *asked, code=3)
    assert (told["new"], told["missing"]) == (4 - len(unnamed), len(unnamed))


def test_a_server_that_sends_everything_each_time_is_asked_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = fake_dicomweb._Handler._search
    monkeypatch.setattr(
        fake_dicomweb._Handler,
        "_search",
        lambda self, asked: search(self, {**asked, "offset": ["0"]}),
    )
    for unnamed in ({1}, {0, 1, 2, 3}):
        with dicomweb_server(xrays(), without_series=unnamed) as server:
            asked = ["--dicomweb", server.url, *ALL_DAYS]
            told = fetched(capsys, tmp_path / f"{len(unnamed)}", *asked, code=3)
        assert (told["new"], told["missing"]) == (4 - len(unnamed), len(unnamed))
        assert sum("instances?" in line for line in server.asked) == 2


@pytest.mark.parametrize("most", [1, 3])
def test_a_dicomweb_server_with_short_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    """A server may give fewer matches per page than were asked for (PS3.18 8.3.4.4)."""
    with dicomweb_server(xrays(), most=most) as server:
        asked = ["--dicomweb", server.url, "--from", "2026-09-01", "--to", "2026-10-01"]
        assert fetched(capsys, tmp_path / "got", *asked)["new"] == 4


def test_a_deflated_object_that_is_broken_is_turned_away(tmp_path: Path) -> None:
    source = dcmread(BytesIO(xrays()[0]))
    whole = dicom(source, DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(whole[140:144], "little")
    broken = whole[:start] + b"\xff" * (len(whole) - start)
    with pytest.raises(zlib.error):  # what the library says of it
        dcmread(BytesIO(broken))
    folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)
    assert not folder.add(broken)
    assert folder.add(whole)
    assert (folder.new, folder.turned_away) == (1, 1)


def test_an_image_whose_header_is_too_complex_is_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)
    monkeypatch.setattr(budget, "MOST_ITEMS", 1000)
    assert not folder.add(items_before("PatientID", 2000))
    assert folder.add(items_before("PatientID", 10))
    facts = dict.fromkeys(("image", "study", "series", "accession", "patient"), "1.2")
    files = (items(n, undefined=True, syntax=ExplicitVRLittleEndian) for n in (10, 2000))
    made = [pseudonyms.Pseudonyms(b"key").file(content, facts) for content in files]
    assert [content is None for content in made] == [False, True]


def test_what_is_fetched_can_be_predicted(tmp_path: Path) -> None:
    """images.csv is a list of paths like any other."""
    from pneumoscope.inference.inputs import expand

    folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)
    assert folder.add(xrays()[0])
    assert folder.add(xrays()[0])
    assert (folder.new, folder.turned_away) == (1, 0)
    assert not folder.add(b"no DICOM")
    assert not FetchedFolder(tmp_path / "small", 100, 0).add(xrays()[1])
    table = folder.write_table()
    (path,) = expand([table])
    assert Path(path).is_file()


def under_pseudonyms(out: Path, contents: list[bytes], **how: Any) -> FetchedFolder:
    folder = FetchedFolder(out, 1 << 24, 0, pseudonyms=True, **how)
    for content in contents:
        assert folder.add(content)
    folder.write_table()
    return folder


def test_pseudonyms_stand_in_files_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "got"
    with dicomweb_server(xrays()) as server:
        asked = ["--dicomweb", server.url, "--from", "2026-09-01", "--to", "2026-10-01"]
        asked += ["--pseudonyms"]
        told = fetched(capsys, out, *asked)
        assert (told["new"], told["mapping"]) == (4, None)
        assert fetched(capsys, out, *asked)["new"] == 0  # they are known again
    rows = rows_of(out)
    for row, content in zip(rows, xrays(), strict=False):
        mine, theirs = dcmread(out / row["path"]), _read(content)
        assert mine.PixelData == theirs.PixelData
        assert mine.SOPInstanceUID == mine.file_meta.MediaStorageSOPInstanceUID == row["image"]
        assert mine.StudyInstanceUID == row["study"] != theirs.StudyInstanceUID
        assert mine.PatientID == row["patient"] != theirs.PatientID
        assert mine.AccessionNumber == row["accession"] != theirs.AccessionNumber
        assert (row["study_date"], mine.StudyDate, mine.PatientBirthDate) == ("", "", "")
        assert (mine.PatientAge, mine.PatientSex) == ("064Y", "F")
        assert mine.PatientIdentityRemoved == "YES"
        assert mine.SOPInstanceUID.is_valid
        assert len(mine.AccessionNumber) == 16
    key = tmp_path / "got.key"
    assert told["key"] == str(key)
    assert key.stat().st_mode & 0o077 == 0
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for content in xrays():
        theirs = _read(content)
        for word in (
            *(theirs.PatientID, theirs.PatientName, theirs.AccessionNumber, theirs.StudyDate),
            *(theirs.SOPInstanceUID, theirs.StudyInstanceUID, theirs.SeriesInstanceUID),
            *("19600704", "DOCTOR", "Detectors", key.read_text().strip()),
        ):
            if len(str(word)) > 2:  # A0 and S0 occur by chance
                assert str(word).encode() not in everything


def test_pseudonyms_are_the_same_for_the_same_key_and_others_for_another(tmp_path: Path) -> None:
    contents = xrays()[:2]
    first = under_pseudonyms(tmp_path / "a", contents)
    (tmp_path / "b.key").write_bytes((tmp_path / "a.key").read_bytes())
    under_pseudonyms(tmp_path / "b", contents)
    under_pseudonyms(tmp_path / "c", contents)
    one, same, other = (rows_of(tmp_path / name) for name in "abc")
    assert one == same
    assert {row["patient"] for row in one}.isdisjoint({row["patient"] for row in other})
    assert first.pseudonyms is not None
    assert first.pseudonyms.of("patient", "P-0000") == one[0]["patient"]
    # A patient with two images is one patient.
    twin = xray_bytes(7, PatientID="P-0000", PatientName="XRAY^0000")
    assert first.add(twin)
    first.write_table()
    assert [row["patient"] for row in rows_of(tmp_path / "a")].count(one[0]["patient"]) == 2


def test_a_mapping_is_written_on_request_only(tmp_path: Path) -> None:
    contents, mapping = xrays(), tmp_path / "mapping.csv"
    under_pseudonyms(tmp_path / "got", contents[:2], mapping=mapping)
    under_pseudonyms(tmp_path / "got", contents[:3], mapping=mapping)
    under_pseudonyms(tmp_path / "other", contents[:3])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("got", "got.key", "mapping.csv", "other", "other.key")
    }
    with mapping.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == MAPPING_COLUMNS
    assert [row["accession"] for row in rows] == ["A0", "A1", "A2"]
    assert mapping.stat().st_mode & 0o077 == 0
    table = rows_of(tmp_path / "got")
    assert [row["patient"] for row in table] == [row["patient_pseudonym"] for row in rows]
    assert [row["image"] for row in table] == [row["image_pseudonym"] for row in rows]


def test_a_folder_has_pseudonyms_or_own_identifiers_and_one_key(tmp_path: Path) -> None:
    out = tmp_path / "got"
    under_pseudonyms(out, xrays()[:1])
    with pytest.raises(UsageError, match=r"its images bear pseudonyms\. Give --pseudonyms"):
        FetchedFolder(out, 1 << 24, 0)
    key = tmp_path / "got.key"
    kept = key.read_text()
    key.unlink()
    with pytest.raises(UsageError, match=r"got\.key is missing"):
        under_pseudonyms(out, [])
    key.write_text("ab" * 32)
    with pytest.raises(UsageError, match="is not the key"):
        under_pseudonyms(out, [])
    key.write_text("no key")
    with pytest.raises(UsageError, match="can't be read as a key"):
        under_pseudonyms(out, [])
    key.write_text("abcd")
    with pytest.raises(UsageError, match="a key of 2 bytes, expected 32"):
        under_pseudonyms(out, [])
    key.write_text(kept)
    assert under_pseudonyms(out, xrays()[:2]).new == 1
    plain = FetchedFolder(tmp_path / "plain", 1 << 24, 0)
    plain.add(xrays()[0])
    with pytest.raises(UsageError, match="bear their own identifiers"):
        under_pseudonyms(tmp_path / "plain", [])
    with pytest.raises(UsageError, match="which would be handed on"):
        under_pseudonyms(out, [], mapping=out / "mapping.csv")


WEB = ("--dicomweb", "http://127.0.0.1:1/", "--from", "20260902")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "wanted one of --pacs"),
        (["--pacs", "QR@127.0.0.1:1"], 2, "wanted one of --from"),
        (["--pacs", "nobody", "--from", "2026-09-01"], 2, "wanted AET@HOST:PORT"),
        (["--pacs", "QR@127.0.0.1:1", "--from", "September"], 2, "wanted a date"),
        (["--pacs", "QR@127.0.0.1:1", "--from", "20260902", "--to", "20260901"], 2, "before"),
        (["--pacs", "QR@127.0.0.1:1", "--from", "20260902"], 4, "can't be reached"),
        (["--pacs", "QR@127.0.0.1:1", "--ids", "none.txt"], 2, "is not a file"),
        (
            ["--pacs", "QR@127.0.0.1:1", "--from", "20260902", "--mapping", "m.csv"],
            2,
            "belongs to --pseudonyms",
        ),
        (["--pacs", "QR@127.0.0.1:1", "--from", "20260902", "--token-file", "t"], 2, "a PACS"),
        (["--pacs", "QR@127.0.0.1:1", "--ids", "ids.txt", "--to", "20260902"], 2, "to --from"),
        (
            ["--pacs", "QR@127.0.0.1:1", "--from", "20260902", "--move-host", "127.0.0.1"],
            2,
            "--move-host 127.0.0.1: is the address that --move-port listens on",
        ),
        ([*WEB, "--aet", "ME"], 2, "--aet: is for --pacs"),
        ([*WEB, "--move-port", "104"], 2, "--move-port: is for --pacs"),
        ([*WEB, "--move-host", "::1"], 2, "--move-host: is for --pacs"),
        ([*WEB, "--modality", " , "], 2, "--modality: found ' , '"),
        ([*WEB, "--modality", "CR;DX"], 2, "--modality: found 'CR;DX'"),
        ([*WEB, "--token-file", "none.txt"], 2, "--token-file none.txt: can't be read"),
        (["--dicomweb", "http://a:b@c/", "--from", "20260902"], 2, "Give it by --token-file"),
    ],
)
def test_what_can_not_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    told = fetched(capsys, tmp_path / "got", *arguments, code=code)
    assert says in told["error"]["message"]
    assert (tmp_path / "got").exists() == (code == 4)


def test_the_time_out_of_connections_counts_by_dicomweb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NodeConfig] = []

    def service(*given: Any) -> Any:
        seen.append(given[-1])
        raise UsageError("enough")

    monkeypatch.setattr("pneumoscope.delivery.dicom_node.dicomweb.HttpService", service)
    asked = ["fetch", "--out", str(tmp_path / "got"), *WEB, "--acse-timeout", "3"]
    assert run([*asked, "--dimse-timeout", "7"]) == 2
    assert [(config.acse_timeout, config.dimse_timeout) for config in seen] == [(3, 7)]


@pytest.mark.parametrize("fault", ["500", "another image", "row without UID"])
def test_what_a_server_does_not_give_is_missing_and_the_rest_is_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    made = xrays()[:4]
    first, second = (_read(image) for image in made[:2])
    if fault == "another image":
        retrieve = fake_dicomweb._Handler._retrieve

        def other(handler: Any, path: str) -> None:
            for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                path = path.replace(str(second[word].value), str(first[word].value))
            retrieve(handler, path)

        monkeypatch.setattr(fake_dicomweb._Handler, "_retrieve", other)
    unnamed = {1} if fault == "row without UID" else set()
    broken = {str(second.SOPInstanceUID)} if fault == "500" else set()
    with dicomweb_server(made, broken=broken, without_series=unnamed) as server:
        told = fetched(capsys, tmp_path / "got", "--dicomweb", server.url, *ALL_DAYS, code=3)
    assert (told["new"], told["missing"]) == (3, 1)
    assert {row["accession"] for row in rows_of(tmp_path / "got")} == {"A0", "A2", "A3"}


@contextmanager
def broken_pacs(contents: list[bytes], fault: str) -> Iterator[int]:
    """A PACS that fails at the second image, or after half of a response."""
    datasets = [_read(content) for content in contents]
    levels = {"STUDY": "StudyDate", "SERIES": "StudyInstanceUID", "IMAGE": "SeriesInstanceUID"}

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if fault == "half a message":
            event.assoc.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x01\x00\x00\x00")
            over.wait()
        if fault == "C-FIND refused":
            yield 0xA900, None
            return
        level = levels[asked.QueryRetrieveLevel]
        key = "AccessionNumber" if asked.get("AccessionNumber") else level
        for dataset in datasets:
            if str(dataset[key].value) != str(asked[key].value) and fault != f"any {key}":
                continue
            row = Dataset()
            for word in (*levels.values(), "SOPInstanceUID", "Modality", "AccessionNumber"):
                if word in asked:
                    setattr(row, word, getattr(dataset, word))
            if fault == "no search for images" and level == "SeriesInstanceUID":
                return
            if fault == f"no UID of {asked.QueryRetrieveLevel}" and dataset is datasets[1]:
                words = {"STUDY": "StudyInstanceUID", "IMAGE": "SOPInstanceUID"}
                del row[words[asked.QueryRetrieveLevel]]
            yield 0xFF00, row

    def get(event: Any) -> Iterator[Any]:
        wanted = event.identifier.SeriesInstanceUID
        dataset = next(one for one in datasets if wanted == one.SeriesInstanceUID)
        yield 1
        if fault in ("A702", "no C-GET") and (dataset is datasets[1] or fault == "no C-GET"):
            yield 0xA702, None
            return
        if fault != "no transfer":
            yield 0xFF00, dataset

    over = threading.Event()
    entity = AE("QR")
    for model, purpose in (
        (StudyRootQueryRetrieveInformationModelFind, "C-FIND"),
        (StudyRootQueryRetrieveInformationModelGet, "C-GET"),
    ):
        if fault != f"{purpose} not offered":
            entity.add_supported_context(model)
    storage = DigitalXRayImageStorageForPresentation
    entity.add_supported_context(storage, scu_role=True, scp_role=True)
    handlers: list[Any] = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.socket.getsockname()[1]
    finally:
        over.set()
        server.shutdown()


@pytest.mark.parametrize("fault", ["A702", "no UID of STUDY"])
def test_what_a_pacs_does_not_give_is_missing_and_the_rest_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    with broken_pacs(xrays()[:4], fault) as port:
        asked = ("--pacs", f"QR@127.0.0.1:{port}", *ALL_DAYS)
        told = fetched(capsys, tmp_path / "got", *asked, code=3)
    assert (told["new"], told["missing"]) == (3, 1)
    assert {row["accession"] for row in rows_of(tmp_path / "got")} == {"A0", "A2", "A3"}


@pytest.mark.parametrize("fault", ["no search for images", "no UID of IMAGE"])
def test_a_series_is_fetched_although_its_images_are_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    asked = ("--pacs", "QR@127.0.0.1:{}", *ALL_DAYS)
    for new in (4, 0):
        with broken_pacs(xrays()[:4], fault) as port:
            told = fetched(capsys, tmp_path / "got", *(text.format(port) for text in asked))
        assert (told["new"], told["missing"]) == (new, 0)
    assert [row["accession"] for row in rows_of(tmp_path / "got")] == ["A0", "A1", "A2", "A3"]


@pytest.mark.parametrize("pseudonyms", [(), ("--pseudonyms",)])
def test_a_series_of_which_nothing_comes_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pseudonyms: tuple[str, ...]
) -> None:
    for fault, new, missing in (("no search for images", 2, 0), ("no transfer", 0, 2)):
        days = ALL_DAYS if fault == "no transfer" else (*ALL_DAYS[:3], "2026-09-02")
        with broken_pacs(xrays()[:4], fault) as port:
            asked = ("--pacs", f"QR@127.0.0.1:{port}", *days, *pseudonyms)
            told = fetched(capsys, tmp_path / "got", *asked, code=3 if missing else 0)
        assert (told["new"], told["missing"]) == (new, missing)


def test_images_that_are_neither_listed_nor_transferred_are_missing(tmp_path: Path) -> None:
    folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)
    xray = _read(xrays()[0])
    uids = (str(xray.StudyInstanceUID), str(xray.SeriesInstanceUID))
    image = str(xray.SOPInstanceUID)
    for listed, before, after in (
        (Series(*uids, ()), 1, 0),
        (Series(*uids, (image,)), 1, 0),
        (Series(*uids, (image, "1.2.3")), 2, 1),
        (Series(*uids, (), unnamed=2), 2, 1),
        (Series(*uids, (image,), unnamed=1), 2, 1),
    ):
        assert listed.missing_in(folder) == before
        folder.add(xrays()[0])
        assert listed.missing_in(folder) == after
        shutil.rmtree(tmp_path / "got" / "images")
        folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no C-GET", "C-GET ended with status A702. Where C-GET is not supported give --move-port"),
        ("half a message", "C-FIND ended with no response. Its log"),
        ("C-GET not offered", "does not offer C-GET to PNEUMOSCOPE. Where C-GET is not supported"),
        ("C-FIND not offered", "does not offer C-FIND to PNEUMOSCOPE. Its log"),
        ("C-FIND refused", "C-FIND ended with status A900. Its log"),
    ],
)
def test_a_pacs_that_gives_nothing_at_all_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    times = ("--acse-timeout", "1", "--dimse-timeout", "1") if fault == "half a message" else ()
    with broken_pacs(xrays()[:4], fault) as port:
        asked = ("--pacs", f"QR@127.0.0.1:{port}", *ALL_DAYS, *times)
        told = fetched(capsys, tmp_path / "got", *asked, code=4)
    assert message in told["error"]["message"]
    assert "is kept" in told["error"]["message"]


def test_a_pacs_that_offers_no_service_can_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entity = AE("QR")
    entity.add_supported_context(DigitalXRayImageStorageForPresentation)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        port = server.socket.getsockname()[1]
        asked = ("--pacs", f"QR@127.0.0.1:{port}", *ALL_DAYS)
        told = fetched(capsys, tmp_path / "got", *asked, code=4)
    finally:
        server.shutdown()
    assert "does not offer C-FIND" in told["error"]["message"]


def test_two_at_once_do_not_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dicomweb_server(xrays()[:1]) as server, alone_in(tmp_path / "got"):
        asked = (tmp_path / "got", "--dicomweb", server.url, *ALL_DAYS)
        told = fetched(capsys, *asked, code=2)
    assert "another process is writing there" in told["error"]["message"]
    assert server.asked == []


@pytest.mark.parametrize("patient", ["P-1", ""])
@pytest.mark.parametrize("cut", [1, 2, 9, 17, 18, 30])
def test_a_mapping_that_was_cut_short_goes_on_with_a_line_of_its_own(
    tmp_path: Path, patient: str, cut: int
) -> None:
    table = tmp_path / "mapping.csv"
    made = pseudonyms.Pseudonyms(b"key")
    facts = [
        dict.fromkeys(MAPPING_COLUMNS, str(k)) | {"image": f"1.{k}", "patient": patient}
        for k in range(3)
    ]
    mapping = Mapping(table, tmp_path / "got")
    for row in facts[:2]:
        mapping.add(row, made.facts(row))
    whole = table.read_text(encoding="utf-8")
    table.write_text(whole[:-cut], encoding="utf-8")
    for order in (facts[2:], facts):  # the row that was cut is added late
        again = Mapping(table, tmp_path / "got")
        for row in order:
            again.add(row, made.facts(row))
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    last = made.of("patient", patient)
    found = [row["image"] for row in rows if row["patient_pseudonym"] == last]
    assert sorted(found) == ["1.0", "1.1", "1.2"]


def test_a_key_that_could_not_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(OSError, match="disk full"):
            under_pseudonyms(tmp_path / "got", [])
    assert [path.name for path in tmp_path.iterdir()] == ["got"]
    under_pseudonyms(tmp_path / "got", xrays()[:1])
    assert (tmp_path / "got.key").stat().st_mode & 0o777 == 0o600
