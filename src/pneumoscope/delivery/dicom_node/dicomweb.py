"""DICOMweb as a client: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS), PS3.18.

Comes in: the address of a server, a token. Goes out: which films are there, the bytes of one, what
became of a report. Knows nothing of spools or models, and keeps files as they came: bytes in, bytes
out, none larger than allowed. (Libraries there are decode every file and write it anew.)

A server's words are untrusted: UIDs are checked before they are part of an address, redirects are
not followed, for the token would go along.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal

import httpx

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.http_client import (
    HttpService,
    ServerError,
    ServiceOptions,
    TooLargeError,
)

TOKEN_VARIABLE = "PNEUMOSCOPE_DICOMWEB_TOKEN"  # noqa: S105 - its name, not the token
PAGE = 100
"""Films that are asked for in one search."""

_OPTIONS = ServiceOptions(
    url="--dicomweb",
    token_file="--dicomweb-token-file",  # noqa: S106 - the option's name
    token_variable=TOKEN_VARIABLE,
    kind="a DICOMweb service",
    example="https://pacs.example/dicom-web",
)
_STUDY, _SERIES, _SOP = "0020000D", "0020000E", "00080018"
_FAILED, _REFERENCED, _FAILED_UID = "00081198", "00081199", "00081155"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MOST_UID = 64
_HEADERS_BYTES = 16 << 10
"""What a multipart answer may have beside the film."""

_MOST_ANSWER = 64 << 20
_MOST_TOLD = 1 << 20
_OK, _ACCEPTED, _NO_CONTENT = 200, 202, 204

Stored = Literal["stored", "refused"]


class NotAvailableError(Exception):
    """This one film can't be had: gone (404, 410), larger than allowed, or no DICOM."""


@dataclass(frozen=True, slots=True)
class Found:
    """A film that the server has: UIDs of study, series and instance."""

    study: str
    series: str
    sop: str


class DicomWeb:
    """One server.

    Args:
        config: its address, time-outs, TLS.

    Raises:
        UsageError: the address is none, holds a password, or there is no such file of a token.
    """

    def __init__(self, config: NodeConfig) -> None:
        token_file = config.dicomweb_token_file
        self._service = HttpService(config.dicomweb, token_file, _OPTIONS, config)
        self.name = self._service.name

    def stop(self) -> None:
        """End the requests that are on their way, from another thread."""
        self._service.stop()

    def close(self) -> None:
        """Let go of its connections."""
        self._service.close()

    def search(self, modality: str, dates: str, offset: int) -> list[Found]:
        """Films of a modality, at most about `PAGE` from `offset` on (PS3.18 10.6).

        Args:
            modality: CR or DX.
            dates: of the study, `YYYYMMDD-YYYYMMDD`; "" for any.
            offset: films before these.

        Raises:
            ServerError: there was no list of films.
        """
        asked = {"Modality": modality, "limit": str(PAGE), "offset": str(offset)}
        asked |= {"StudyDate": dates} if dates else {}
        accept = {"Accept": "application/dicom+json"}
        status, _, content = self._exchange("GET", "instances", accept, _MOST_ANSWER, params=asked)
        if status == _NO_CONTENT or (status == _OK and not content):
            return []
        if status != _OK:
            raise ServerError("search failed", status)
        try:
            rows = httpx.Response(_OK, content=content).json()
            return [Found(*(_uid(row, tag) for tag in (_STUDY, _SERIES, _SOP))) for row in rows]
        except (
            *(ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError),
        ) as error:
            raise ServerError("search answered with no list of films", status) from error

    def retrieve(self, image: Found, most: int) -> bytes:
        """A film as a Part 10 file, in the syntax in which the server has it (PS3.18 10.4).

        Raises:
            NotAvailableError: this film can't be had, or has more than `most` bytes.
            ServerError: the server can't be asked now.
        """
        path = f"studies/{image.study}/series/{image.series}/instances/{image.sop}"
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        status, kind, content = self._exchange("GET", path, accept, most + _HEADERS_BYTES)
        if status != _OK:
            raise NotAvailableError(f"status {status}")
        part = _first_part(kind, content)
        if part is None or len(part) > most or part[128:132] != b"DICM":
            raise NotAvailableError("no DICOM file, or too large a one")
        return part

    def store(self, sop_uid: str, content: bytes) -> tuple[Stored, int]:
        """Send one object (PS3.18 10.5); what became of it, and the status.

        Raises:
            ServerError: the server can't be asked now; it may have the object or not.
        """
        boundary = uuid.uuid4().hex
        body = b"".join(
            [
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                content,
                f"\r\n--{boundary}--\r\n".encode(),
            ]
        )
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        status, _, told = self._exchange("POST", "studies", headers, _MOST_TOLD, content=body)
        if status not in (_OK, _ACCEPTED):
            return "refused", status
        return ("stored" if _has(status, told, sop_uid) else "refused"), status

    def _exchange(
        self, method: str, path: str, headers: dict[str, str], most: int, **more: Any
    ) -> tuple[int, str, bytes]:
        """As `HttpService.exchange`, with `NotAvailableError` for a response that is too large."""
        try:
            return self._service.exchange(method, path, headers, most, **more)
        except TooLargeError as error:
            raise NotAvailableError(str(error)) from error


def _uid(row: Any, tag: str) -> str:
    text = row[tag]["Value"][0]
    if len(text) > _MOST_UID or not _UID.fullmatch(text):
        raise ValueError("no UID")
    return str(text)


def _first_part(kind: str, content: bytes) -> bytes | None:
    """The first part of a multipart body (RFC 2046, 5.1.1), or the body if it is one file."""
    header = Message()
    header["Content-Type"] = kind
    if header.get_content_type() == "application/dicom":
        return content
    boundary = header.get_boundary("")
    line = b"--" + boundary.encode("latin-1", "replace")
    begin = content.find(line)
    start = content.find(b"\r\n\r\n", begin)
    end = content.find(b"\r\n" + line, start + 2)
    if not boundary or min(begin, start, end) < 0:
        return None
    return content[start + 4 : end]


def _has(status: int, content: bytes, sop_uid: str) -> bool:
    """Whether the server says that it has the object (PS3.18 10.5.3.2).

    It may answer without a word, or in XML: then the status alone counts.
    """
    try:
        told = httpx.Response(_OK, content=content).json()
    except (ValueError, RecursionError):
        return status == _OK
    if not isinstance(told, dict):
        return status == _OK
    if sop_uid in _uids(told, _FAILED):
        return False
    return status == _OK or sop_uid in _uids(told, _REFERENCED)


def _uids(told: dict[str, Any], sequence: str) -> set[str]:
    try:
        items = told.get(sequence, {}).get("Value") or []
        return {str(item[_FAILED_UID]["Value"][0]) for item in items}
    except (AttributeError, KeyError, IndexError, TypeError):
        return set()
