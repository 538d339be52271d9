"""AE titles, addresses and TLS settings of the node and its peers; associations with deadlines.

pynetdicom's time-outs start anew with every byte, and without a time-out on the socket it waits
without end for the rest of a message. So a peer that sends half a message, or a byte now and then,
would block it. Here a deadline cuts the connection; it is renewed by whole messages alone.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, evt

from pneumoscope.config import NodeConfig
from pneumoscope.errors import UsageError

LEAST_RATE = 16 << 10
"""Bytes per second, beyond the time-out, below which a peer counts as unreachable."""

_MOST_AET = 16


@dataclass(frozen=True, slots=True)
class Peer:
    """The address of another DICOM application entity."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


def check_aet(text: str, where: str) -> str:
    """Check an application entity title (PS3.5 6.2, VR AE) and strip its blanks.

    Raises:
        UsageError: it is empty, too long, or has characters that are not allowed.
    """
    title = text.strip()
    if (
        not 1 <= len(title) <= _MOST_AET
        or not title.isascii()
        or not title.isprintable()
        or ("\\" in title)
    ):
        raise UsageError(
            f"{where}: found {text!r}, wanted an AE title: 1 to {_MOST_AET} plain characters "
            "without a backslash"
        )
    return title


def parse_peer(text: str, where: str) -> Peer:
    """Parse `AET@HOST:PORT`; the host is a name or an address (IPv6 in brackets).

    Raises:
        UsageError: the text has another form.
    """
    title, at, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    if not (at and colon and host and port.isdecimal() and 1 <= int(port) <= 65_535):
        raise UsageError(f"{where}: found {text!r}, wanted AET@HOST:PORT, as in PACS@10.0.0.5:104")
    return Peer(check_aet(title, where), host.removeprefix("[").removesuffix("]"), int(port))


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address without brackets, is this machine alone (RFC 6761)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def server_context(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS for callers, `None` without TLS; with `tls_ca` callers need a certificate.

    Raises:
        UsageError: a file is missing, or is not a certificate or key.
    """
    if not config.tls_cert:
        if config.tls_key:
            raise UsageError("--tls-key: found a key alone, wanted --tls-cert as well. Give both.")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_files(context, config)
    if config.tls_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS for the destination, `None` without TLS.

    Raises:
        UsageError: as `server_context` does.
    """
    if not config.forward_tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    load_files(context, config)
    return context


def load_files(context: ssl.SSLContext, config: NodeConfig) -> None:
    """Load the own certificate and key, and the authorities, into a TLS context.

    Raises:
        UsageError: a file is missing, or is not a certificate or key.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if config.tls_cert:
            context.load_cert_chain(config.tls_cert, config.tls_key or None)
        if config.tls_ca:
            context.load_verify_locations(config.tls_ca)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(filter(None, (config.tls_cert, config.tls_key, config.tls_ca)))
        raise UsageError(
            f"TLS files {named}: can't be used ({error}). Give certificates and key as PEM files."
        ) from error


class Deadline:
    """Cuts a connection that exists for too long after the last call of `renew`.

    Args:
        seconds: time between two whole messages.
        cut: ends the connection; called from another thread.

    Examples:
        >>> with Deadline(60.0, lambda: cut(association)) as deadline:
        ...     for status, row in association.send_c_find(query, model):
        ...         deadline.renew()
    """

    def __init__(self, seconds: float, cut: Callable[[], None]) -> None:
        self._seconds, self._cut = seconds, cut
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Deadline:
        self._timer = self._started()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None

    def renew(self) -> None:
        """Start the time anew, unless the block has ended."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = self._started()

    def _started(self) -> threading.Timer:
        timer = threading.Timer(self._seconds, self._cut)
        timer.daemon = True
        timer.start()
        return timer


class Connection:
    """One connection at a time to a peer, which any thread may cut, also while it is being made.

    Args:
        entity: with the presentation contexts to propose; its `acse_timeout` limits the whole
            negotiation, its `network_timeout` each wait for bytes.
        peer: its AE title and address.
    """

    def __init__(self, entity: AE, peer: Peer) -> None:
        entity.connection_timeout = entity.acse_timeout
        self._entity, self._peer = entity, peer
        self._association: Any = None

    def associate(self, **options: Any) -> Any:
        """Negotiate an association, established or not; `options` are those of `AE.associate`."""
        handlers = [*options.pop("evt_handlers", ()), (evt.EVT_CONN_OPEN, self._opened)]
        # Connecting, and each of the negotiation's two messages.
        with Deadline(3 * (self._entity.acse_timeout or 0.0), self.cut):
            self._association = self._entity.associate(
                self._peer.host,
                self._peer.port,
                ae_title=self._peer.aet,
                evt_handlers=handlers,
                **options,
            )
        return self._association

    def cut(self) -> None:
        """Close the connection, whatever it is doing."""
        if self._association is not None:
            wire = self._association.dul.socket
            with suppress(OSError, AttributeError):  # already closed
                wire.socket.shutdown(socket.SHUT_RDWR)

    def _opened(self, event: Any) -> None:
        self._association = event.assoc
        event.assoc.dul.socket.socket.settimeout(self._entity.network_timeout)
