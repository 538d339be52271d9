"""`fetch` from a real PACS (dcmqrscp of DCMTK) and a DICOMweb server on loopback."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pydicom import dcmread

from pneumoscope.cli.app import run
from pneumoscope.delivery.fetching.pacs import JOURNAL, FetchedFolder
from support.dicom_peers import until
from support.dicom_reports import film_bytes, needs
from support.fake_dicomweb import dicomweb_server
from support.free_port import free_port

DAYS = ("20260901", "20260902", "20260903", "20261001")


def films() -> list[bytes]:
    """Four studies of four days; of the second also a CT."""
    made = [
        film_bytes(k, StudyDate=day, AccessionNumber=f"A{k}", Modality="DX")
        for k, day in enumerate(DAYS)
    ]
    second = {"StudyInstanceUID": str(_read(made[1]).StudyInstanceUID), "StudyDate": DAYS[1]}
    return [*made, film_bytes(9, Modality="CT", AccessionNumber="A1", **second)]


def _read(content: bytes) -> Any:
    from io import BytesIO

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
    contents, port_here, out = films(), free_port(), tmp_path / "got"
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
    contents = films()
    wanted = tmp_path / "ids.txt"
    wanted.write_text(f"A2\n\n{_read(contents[3]).StudyInstanceUID}\nnowhere\n")
    with pacs(tmp_path / "pacs", contents, free_port()) as port:
        told = fetched(capsys, tmp_path / "got", "--pacs", f"QR@127.0.0.1:{port}", "--ids", wanted)
    assert told["new"] == 2
    assert {row["accession"] for row in rows_of(tmp_path / "got")} == {"A2", "A3"}


def test_a_dicomweb_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with dicomweb_server(films()) as server:
        asked = ["--dicomweb", server.url, "--from", "2026-09-01", "--to", "2026-10-01"]
        told = fetched(capsys, tmp_path / "got", *asked)
        assert told["new"] == 4
        assert fetched(capsys, tmp_path / "got", *asked)["new"] == 0
    assert {row["modality"] for row in rows_of(tmp_path / "got")} == {"DX"}


def test_what_is_fetched_can_be_predicted(tmp_path: Path) -> None:
    """images.csv is a list of paths like any other."""
    from pneumoscope.inference.inputs import expand

    folder = FetchedFolder(tmp_path / "got", 1 << 20, 0)
    assert folder.add(films()[0])
    assert folder.add(films()[0])
    assert (folder.new, folder.turned_away) == (1, 0)
    assert not folder.add(b"no DICOM")
    assert not FetchedFolder(tmp_path / "small", 100, 0).add(films()[1])
    table = folder.write_table()
    (path,) = expand([table])
    assert Path(path).is_file()


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
    shutil.rmtree(tmp_path / "got", ignore_errors=True)
