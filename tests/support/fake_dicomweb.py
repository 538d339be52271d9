"""A DICOMweb server in this process, on loopback: QIDO-RS, WADO-RS and STOW-RS as in PS3.18.

It keeps every request and everything stored, and can fail first.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread

from support.http_stub import served

ROOT = "/dicom-web"
FAILED, REFERENCED = "00081198", "00081199"


@dataclass
class DicomWebServer:
    """Stands for an archive.

    Attributes:
        xrays: Part 10 files that can be searched for.
        stored: SOP Instance UID and bytes of every report that came, as often as it came.
        faults: statuses for the next reports: 0 hangs up after keeping it, 202 and 409 name it
            among what failed, others say nothing.
        search_faults: the same for searches.
        asked: method and path of every request.
        hang: seconds before an image is given.
        token: wanted in Authorization.
        most: images per page, whatever the client asks for.
        broken: SOP Instance UIDs of images for which the response is 500.
        dripping: of those that come by a byte now and then.
        broken_reports: numbers, from 0, of the new reports for which the response is 500.
        without_series: numbers, from 0, of images whose row lacks its Series Instance UID.
    """

    xrays: list[bytes]
    url: str = ""
    stored: list[tuple[str, bytes]] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    search_faults: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    hang: float = 0.0
    token: str = ""
    most: int = 1000
    broken: set[str] = field(default_factory=set)
    dripping: set[str] = field(default_factory=set)
    broken_reports: set[int] = field(default_factory=set)
    without_series: set[int] = field(default_factory=set)
    came: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: DicomWebServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.kept.asked.append(f"GET {self.path}")
        if self._unauthorized():
            return
        parts = urlsplit(self.path)
        if parts.path == f"{ROOT}/instances":
            self._search(parse_qs(parts.query))
        else:
            self._retrieve(parts.path)

    def do_POST(self) -> None:
        self.kept.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._unauthorized():
            return
        message = Message()
        message["Content-Type"] = self.headers["Content-Type"]
        line = b"--" + message.get_boundary("").encode()
        assert self.path == f"{ROOT}/studies"
        assert message.get_param("type") == "application/dicom"
        parts = [part.split(b"\r\n\r\n", 1)[1] for part in body.split(line)[1:-1]]
        content = parts[0].removesuffix(b"\r\n")
        dataset = dcmread(BytesIO(content), stop_before_pixels=True)
        fault = self.kept.faults.pop(0) if self.kept.faults else 200
        if dataset.SOPInstanceUID not in self.kept.came:
            self.kept.came.append(dataset.SOPInstanceUID)
        if self.kept.came.index(dataset.SOPInstanceUID) in self.kept.broken_reports:
            fault = 500
        if fault in (0, 200):
            self.kept.stored.append((dataset.SOPInstanceUID, content))
        if fault == 0:
            self.close_connection = True
            return
        item = {
            "00081150": {"vr": "UI", "Value": [dataset.SOPClassUID]},
            "00081155": {"vr": "UI", "Value": [dataset.SOPInstanceUID]},
        }
        name = REFERENCED if fault == 200 else FAILED
        told = {name: {"vr": "SQ", "Value": [item]}} if fault in (200, 202, 409) else {}
        self._respond(fault, "application/dicom+json", json.dumps(told).encode())

    def _unauthorized(self) -> bool:
        if self.kept.token and self.headers.get("Authorization") != self.kept.token:
            self._respond(401, "text/plain", b"")
            return True
        return False

    def _search(self, asked: dict[str, list[str]]) -> None:
        if self.kept.search_faults:
            self._respond(self.kept.search_faults.pop(0), "text/plain", b"")
            return
        first, _, last = asked.get("StudyDate", [""])[0].partition("-")
        found = [dcmread(BytesIO(image), stop_before_pixels=True) for image in self.kept.xrays]
        found = [
            image
            for image in found
            if image.Modality == asked["Modality"][0]
            and (not first or first <= image.StudyDate <= last)
        ]
        begin = int(asked["offset"][0])
        page = found[begin : begin + min(int(asked["limit"][0]), self.kept.most)]
        words = {"0020000D": "StudyInstanceUID", "0020000E": "SeriesInstanceUID"}
        words |= {"00080018": "SOPInstanceUID", "00100010": "PatientName"}
        rows = [
            {tag: {"Value": [str(image[word].value)]} for tag, word in words.items()}
            for image in page
        ]
        for number in self.kept.without_series & set(range(begin, begin + len(rows))):
            del rows[number - begin]["0020000E"]
        if rows:
            self._respond(200, "application/dicom+json", json.dumps(rows).encode())
        else:
            self._respond(204, "", b"")

    def _retrieve(self, path: str) -> None:
        time.sleep(self.kept.hang)
        for content in self.kept.xrays:
            image = dcmread(BytesIO(content), stop_before_pixels=True)
            if path == (
                f"{ROOT}/studies/{image.StudyInstanceUID}/series/{image.SeriesInstanceUID}"
                f"/instances/{image.SOPInstanceUID}"
            ):
                if image.SOPInstanceUID in self.kept.broken:
                    self._respond(500, "text/plain", b"")
                    return
                if image.SOPInstanceUID in self.kept.dripping:
                    self._drip()
                    return
                head = b"\r\n--b=1\r\nContent-Type: application/dicom\r\n\r\n"
                kind = 'multipart/related; type="application/dicom"; boundary="b=1"'
                self._respond(200, kind, head + content + b"\r\n--b=1--\r\n")
                return
        self._respond(404, "text/plain", b"")

    def _drip(self) -> None:
        """Half a head, then a byte now and then: every time-out between bytes begins anew."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with contextlib.suppress(OSError):
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.close_connection = True

    def _respond(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def dicomweb_server(xrays: list[bytes], **how: Any) -> Iterator[DicomWebServer]:
    """A server that runs until the block ends."""
    kept = DicomWebServer(xrays, **how)
    handler = type("Handler", (_Handler,), {"kept": kept})
    with served(handler) as address:
        kept.url = f"{address}{ROOT}"
        yield kept
