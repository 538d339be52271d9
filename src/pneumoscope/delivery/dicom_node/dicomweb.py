"""DICOMweb as a client: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS), PS3.18.

Files are kept as they arrive, byte for byte, and none larger than allowed is held. (Available
libraries decode each file and encode it again.) Responses are not trusted: UIDs are checked before
they become part of an address.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
"""Images requested in one search."""

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
"""Bytes that a multipart response may have beside the image."""

_MOST_FOUND = 64 << 20
_MOST_STORE_RESPONSE = 1 << 20
_OK, _ACCEPTED, _NO_CONTENT = 200, 202, 204

Stored = Literal["stored", "refused"]


class NotAvailableError(Exception):
    """This one image is not available: gone (404, 410), too large, or not a DICOM file."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image on the server, by the UIDs of its study, series and instance."""

    study: str
    series: str
    sop: str


class DicomWeb:
    """One server.

    Args:
        config: its address, time-outs, TLS.
        token_option: the option with the file of the token, for messages.

    Raises:
        UsageError: the address is not an HTTP URL or holds a password; the token can't be read.
    """

    def __init__(self, config: NodeConfig, token_option: str = _OPTIONS.token_file) -> None:
        options = replace(_OPTIONS, token_file=token_option)
        self._service = HttpService(config.dicomweb, config.dicomweb_token_file, options, config)
        self.url, self.name = config.dicomweb, self._service.name

    def stop(self) -> None:
        """End the requests under way, from another thread."""
        self._service.stop()

    def close(self) -> None:
        """Close its connections."""
        self._service.close()

    def search(self, modality: str, dates: str) -> Iterator[tuple[list[Found], int]]:
        """Search for images of a modality, about `PAGE` of them in each request (PS3.18 10.6).

        A server may send shorter pages than requested, or everything each time.

        Args:
            modality: CR or DX.
            dates: of the study, `YYYYMMDD-YYYYMMDD`; "" for any.

        Yields:
            Of each page the images that were in none before, and the number of rows that do not
            state their UIDs.

        Raises:
            ServerError: the search failed, or the response is too large or not a list.
        """
        seen: set[Found] = set()
        offset, before = 0, None
        while (rows := self._page(modality, dates, offset)) and rows != before:
            found = [image for row in rows if (image := _found(row)) is not None]
            new = [image for image in dict.fromkeys(found) if image not in seen]
            if found and not new:
                return
            yield new, len(rows) - len(found)
            seen.update(new)
            offset, before = offset + len(rows), rows

    def _page(self, modality: str, dates: str, offset: int) -> list[Any]:
        """The rows of a search from `offset` on."""
        asked = {"Modality": modality, "limit": str(PAGE), "offset": str(offset)}
        asked |= {"StudyDate": dates} if dates else {}
        accept = {"Accept": "application/dicom+json"}
        try:
            status, _, content = self._exchange(
                "GET", "instances", accept, _MOST_FOUND, params=asked
            )
        except NotAvailableError as error:
            raise ServerError("the response to the search is too large") from error
        if status == _NO_CONTENT or (status == _OK and not content):
            return []
        if status != _OK:
            raise ServerError("search failed", status)
        try:
            rows = httpx.Response(_OK, content=content).json()
        except (ValueError, RecursionError) as error:
            raise ServerError("the response to the search is not JSON", status) from error
        if not isinstance(rows, list):
            raise ServerError("the response to the search is not a list of images", status)
        return rows

    def retrieve(self, image: Found, most: int) -> bytes:
        """Retrieve an image as a Part 10 file, in its stored transfer syntax (PS3.18 10.4).

        Raises:
            NotAvailableError: the image is not available, or has more than `most` bytes.
            ServerError: the request failed; a later one may succeed.
        """
        path = f"studies/{image.study}/series/{image.series}/instances/{image.sop}"
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        status, kind, content = self._exchange("GET", path, accept, most + _HEADERS_BYTES)
        if status != _OK:
            raise NotAvailableError(f"status {status}")
        part = _first_part(kind, content)
        if part is None or len(part) > most or part[128:132] != b"DICM":
            raise NotAvailableError("not a DICOM file, or too large")
        return part

    def store(self, sop_uid: str, content: bytes) -> tuple[Stored, int]:
        """Store one object (PS3.18 10.5).

        Returns:
            The outcome and the HTTP status.

        Raises:
            ServerError: the request failed; the server may or may not have the object.
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
        status, _, told = self._exchange(
            "POST", "studies", headers, _MOST_STORE_RESPONSE, content=body
        )
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


def _found(row: Any) -> Found | None:
    """The image of a row; `None` if it does not state its UIDs."""
    try:
        return Found(*(_uid(row, tag) for tag in (_STUDY, _SERIES, _SOP)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _uid(row: Any, tag: str) -> str:
    text = row[tag]["Value"][0]
    if len(text) > _MOST_UID or not _UID.fullmatch(text):
        raise ValueError("not a UID")
    return str(text)


def _first_part(kind: str, content: bytes) -> bytes | None:
    """The first part of a multipart body (RFC 2046, 5.1.1), or a body that is one file."""
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
    """Whether the response states that the object was stored (PS3.18 10.5.3.2).

    Of a response without a body, or in XML, the status alone counts.
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
