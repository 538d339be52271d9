"""An HTTP client for servers that are not trusted: bounded responses, bounded time, no redirects.

`HttpService` is one server: its address, its token and its TLS settings, all checked when it is
made. Redirects are not followed, because the token would go along. Proxy settings of the
environment are not used.

The time-outs of an HTTP client start anew with every byte, so that a server which sends one byte
now and then blocks it without end. Here a request as a whole has a time limit, which grows with the
bytes transferred at a minimum rate, and it can be ended from another thread. All bytes received
count, those of headers and interim responses as well, and a compressed response is not accepted,
because its size says nothing about what it unpacks to.

`stated_uids` reads the UIDs that a DICOM file states, to compare them with those asked for.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpcore
import httpx
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
)

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.peers import LEAST_RATE, is_loopback, load_files
from pneumoscope.delivery.dicom_report.source import HEATMAP_TYPE, MANUFACTURER
from pneumoscope.errors import ImageRefusedError, UsageError
from pneumoscope.images.budget import CountedStream, decoding
from pneumoscope.images.dicom.file import read_elements, transfer_syntax_of

_SLICE_SECONDS = 0.5
"""Interval at which a waiting request checks whether to end."""

_PIECE = 64 << 10
_BESIDE_BODY = 1 << 20
"""Bytes that a response may have beside its body: headers, interim responses, sizes of chunks."""

_MOST_INFLATED = 16 << 20
"""Bytes of a deflated data set in which the UIDs are looked for."""

_LOGGER = logging.getLogger(__name__)
_TRY_AGAIN = frozenset({401, 403, 407, 408, 425, 429})
"""Statuses that concern access to the server, not the content that was sent; so does each 5xx."""


class Wire(httpcore.SyncBackend):
    """Makes connections with a time limit per request; safe for several threads.

    Args:
        seconds: time limit of a request that transfers nothing.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._stopped = threading.Event()
        self._request = threading.local()

    def transport(self, tls: ssl.SSLContext) -> httpx.HTTPTransport:
        """The transport for `httpx.Client`."""
        transport = httpx.HTTPTransport(verify=tls, trust_env=False)
        transport._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=self)
        return transport

    def begin(self, most: int) -> None:
        """Start the limits of a request in this thread: its time, and `most` bytes received."""
        self._request.end = time.monotonic() + self._seconds
        self._request.left = most

    def stop(self) -> None:
        """End all requests, present and future."""
        self._stopped.set()

    def moved(self, count: int) -> None:
        """Extend the time limit for `count` bytes transferred."""
        self._request.end = self._end() + count / LEAST_RATE

    def received(self, count: int) -> None:
        """Count bytes received, and extend the time limit.

        Raises:
            httpcore.ReadError: there are more than the request may receive.
        """
        self._request.left = getattr(self._request, "left", 0) - count
        if self._request.left < 0:
            raise httpcore.ReadError("the response is too large")
        self.moved(count)

    def left(self, error: type[Exception]) -> float:
        """Seconds to wait before the next check.

        Raises:
            error: the time limit of the request is exceeded.
        """
        left = self._end() - time.monotonic()
        if self._stopped.is_set() or left <= 0:
            raise error("the request took too long")
        return min(left, _SLICE_SECONDS)

    def _end(self) -> float:
        end: float = getattr(self._request, "end", 0.0)
        return end

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect as httpcore does."""
        stream = super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, wire: Wire) -> None:
        self._inner, self._wire = inner, wire

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            wait = self._wire.left(httpcore.ReadTimeout)
            try:
                content = self._inner.read(max_bytes, wait)
            except httpcore.ReadTimeout:
                continue
            self._wire.received(len(content))
            return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._wire.left(httpcore.WriteTimeout)
            self._inner.write(piece, timeout)
            self._wire.moved(len(piece))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


_SOP, _STUDY, _SERIES = 0x00080018, 0x0020000D, 0x0020000E
_ORIGIN = ("Manufacturer", "ImageType")


@dataclass(frozen=True, slots=True)
class StatedUids:
    """The UIDs that a DICOM file states in its data set, and whether it was made by pneumoscope.

    A UID that is missing is `""`.

    Attributes:
        sop: SOP Instance UID (0008,0018).
        study: Study Instance UID (0020,000D).
        series: Series Instance UID (0020,000E).
        readable: whether the header could be parsed as far as these elements.
        own: whether it is a heatmap that pneumoscope made of an X-ray (PS3.3 C.7.6.1.1.2: a derived
            image, not created by an exposure; phantoms are primary images).
    """

    sop: str = ""
    study: str = ""
    series: str = ""
    readable: bool = True
    own: bool = False

    @property
    def missing(self) -> str:
        """Keyword of the first UID that is missing, `""` if all three are stated."""
        uids = {
            "SOPInstanceUID": self.sop,
            "StudyInstanceUID": self.study,
            "SeriesInstanceUID": self.series,
        }
        return next((keyword for keyword, uid in uids.items() if not uid), "")


def stated_uids(content: bytes) -> StatedUids:
    """Read the UIDs of instance, study and series from a Part 10 file, in any transfer syntax.

    Values after the last of them are not parsed, and the number of elements before it is bounded.
    """
    try:
        with decoding("image", "the DICOM header"):
            syntax, start = transfer_syntax_of(content)
            head = content[start:]
            if syntax == DeflatedExplicitVRLittleEndian:
                head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _MOST_INFLATED)
            stream = CountedStream(head, "DICOM elements")
            uids = (_SOP, _STUDY, _SERIES)
            dataset = read_elements(stream, syntax, _after_series, [*uids, *map(Tag, _ORIGIN)])
            sop, study, series = (_single(dataset.get(tag)) for tag in uids)
            maker, kind = (dataset.get(keyword) for keyword in _ORIGIN)
            own = maker == MANUFACTURER and list(kind or ())[:2] == HEATMAP_TYPE
            return StatedUids(sop, study, series, own=own)
    except ImageRefusedError:
        return StatedUids(readable=False)


def _single(element: Any) -> str:
    """The value of a UID element; `""` where it is missing, empty, or has several values."""
    value = None if element is None else element.value
    return str(value) if isinstance(value, UID) else ""


def _after_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > _SERIES


_NO_CONTENT, _FIRST_ERROR, _FIRST_SERVER_ERROR = 204, 400, 500


class ServerError(Exception):
    """The server can't be reached, or its response can't be used; a later try may succeed.

    Attributes:
        why: a short reason for the audit log, without patient data.
        status: HTTP status, if there was one.
        everywhere: no connection was made, so that other requests would fail as well.
    """

    def __init__(self, why: str, status: int | None = None, *, everywhere: bool = False) -> None:
        super().__init__(f"{why} {status or ''}".strip())
        self.why, self.status, self.everywhere = why, status, everywhere


class TooLargeError(Exception):
    """A response has more bytes than are allowed.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__("response too large")
        self.status = status


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """The command-line options that an `HttpService` is configured by, for its messages.

    Attributes:
        url: the option with the address, as in `--dicomweb`.
        token_file: the option with the file of the token.
        token_variable: the environment variable with the token.
        kind: what the address belongs to, as in `a DICOMweb service`.
        example: an address of this kind.
    """

    url: str
    token_file: str
    token_variable: str
    kind: str
    example: str


class HttpService:
    """One server.

    Args:
        url: its base address.
        token_file: file with the token; `""`: the environment variable, if it is set.
        options: names of the options, for messages.
        config: time-outs and TLS files.

    Raises:
        UsageError: the address is not an HTTP URL, holds a password, or the token can't be read.
    """

    def __init__(
        self, url: str, token_file: str, options: ServiceOptions, config: NodeConfig
    ) -> None:
        address = _checked(url, options)
        token = _token(token_file, options)
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Authorization": token} if token else {}
        if token and address.scheme == "http" and not is_loopback(address.host):
            _LOGGER.warning(
                "%s %s: the token and the patients' data can be read on the way. Take https.",
                options.url,
                address,
            )
        self.name = address.host
        self._base = str(address).rstrip("/")
        self._wire = Wire(config.dimse_timeout)
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(config.dimse_timeout, connect=config.acse_timeout),
            transport=self._wire.transport(_tls(config)),
            follow_redirects=False,
            trust_env=False,
        )

    def stop(self) -> None:
        """End the requests under way, from another thread."""
        self._wire.stop()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def exchange(
        self, method: str, path: str, headers: dict[str, str], most: int, **more: Any
    ) -> tuple[int, str, bytes]:
        """Send one request and read its response.

        Args:
            method: HTTP method.
            path: below the base address; `""` for the base address itself.
            headers: beside `Authorization`.
            most: bytes of a response body that are held at most.
            more: further arguments of `httpx.Client.stream`.

        Returns:
            Status, content type and body.

        Raises:
            ServerError: no connection, a time-out, a redirect, a compressed response, a status of
                5xx, or one that concerns access (401, 403, 407, 408, 425, 429).
            TooLargeError: the body has more than `most` bytes.
        """
        content = bytearray()
        url = f"{self._base}/{path}" if path else self._base
        self._wire.begin(most + _BESIDE_BODY)
        try:
            with self._client.stream(method, url, headers=headers, **more) as response:
                _check_access(response.status_code)
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ServerError("compressed response", response.status_code)
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > most:
                        raise TooLargeError(response.status_code)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServerError(type(error).__name__, everywhere=True) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise ServerError(type(error).__name__) from error
        return response.status_code, response.headers.get("Content-Type", ""), bytes(content)


def _check_access(status: int) -> None:
    redirect = _NO_CONTENT < status < _FIRST_ERROR
    if status in _TRY_AGAIN or status >= _FIRST_SERVER_ERROR or redirect:
        raise ServerError("turned away", status)


def _checked(text: str, options: ServiceOptions) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise UsageError(f"{options.url}: found {text!r}, wanted a URL ({error})") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise UsageError(
            f"{options.url}: found {text!r}, wanted the address of {options.kind}, as in "
            f"{options.example}"
        )
    if url.userinfo:
        raise UsageError(
            f"{options.url}: found a password in the address, where others can read it. Give it by "
            f"{options.token_file} or ${options.token_variable}."
        )
    return url


def _token(token_file: str, options: ServiceOptions) -> str:
    """The header `Authorization`: a bearer token (RFC 6750) unless the text names its scheme."""
    text = os.environ.get(options.token_variable, "").strip()
    if token_file:
        where = f"{options.token_file} {token_file}"
        try:
            text = Path(token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{where}: can't be read ({error}). Give a text file with the token alone."
            ) from error
        if not text:
            raise UsageError(f"{where}: is empty, wanted a token")
    if not text.isascii() or not all(c.isprintable() for c in text):
        raise UsageError(
            f"the token of {options.url}: found more than one line or characters that are not "
            "printable ASCII"
        )
    return text if " " in text or not text else f"Bearer {text}"


def _tls(config: NodeConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    load_files(context, config)
    return context
