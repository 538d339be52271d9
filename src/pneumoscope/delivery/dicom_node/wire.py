"""HTTP connections with a time limit for the whole request, and the UIDs that a DICOM file states.

The time-outs of an HTTP client start anew with every byte, so that a server which sends one byte
now and then blocks it without end. Here a request as a whole has a time limit, which grows with the
bytes transferred at a minimum rate, and it can be ended from another thread.
"""

from __future__ import annotations

import ssl
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.budget import CountedStream, decoding
from pneumoscope.images.dicom.file import transfer_syntax_of

LEAST_RATE = 16 << 10
"""Bytes per second, beyond the time-out, below which a server counts as unreachable."""

_SLICE_SECONDS = 0.5
"""Interval at which a waiting request checks whether to end."""

_PIECE = 64 << 10

_MOST_INFLATED = 16 << 20
"""Bytes of a deflated data set in which the UIDs are looked for."""


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

    def begin(self) -> None:
        """Start the time limit of a request in this thread."""
        self._request.end = time.monotonic() + self._seconds

    def stop(self) -> None:
        """End all requests, present and future."""
        self._stopped.set()

    def moved(self, count: int) -> None:
        """Extend the time limit for `count` bytes transferred."""
        self._request.end = self._end() + count / LEAST_RATE

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
            self._wire.moved(len(content))
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


@dataclass(frozen=True, slots=True)
class StatedUids:
    """The UIDs that a DICOM file states in its data set; `""` for each that is missing.

    Attributes:
        sop: SOP Instance UID (0008,0018).
        study: Study Instance UID (0020,000D).
        series: Series Instance UID (0020,000E).
        readable: whether the header could be parsed as far as these elements.
    """

    sop: str = ""
    study: str = ""
    series: str = ""
    readable: bool = True

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
            dataset = read_dataset(
                CountedStream(head, "DICOM elements"),
                is_implicit_VR=syntax == ImplicitVRLittleEndian,
                is_little_endian=syntax != ExplicitVRBigEndian,
                stop_when=_after_series,
                specific_tags=[_SOP, _STUDY, _SERIES],
            )
            sop, study, series = (_single(dataset.get(tag)) for tag in (_SOP, _STUDY, _SERIES))
            return StatedUids(sop, study, series)
    except ImageRefusedError:
        return StatedUids(readable=False)


def _single(element: Any) -> str:
    """The value of a UID element; `""` where it is missing, empty, or has several values."""
    value = None if element is None else element.value
    return str(value) if isinstance(value, UID) else ""


def _after_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > _SERIES
