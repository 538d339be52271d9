"""The listening socket of the node, guarded against callers that idle or never end.

pynetdicom's own server waits for ever on a caller that begins TLS, or half a message, and says no
more; and it takes messages of any length into memory. Here every message has its time, its bytes
and its pieces, all of them together have their memory, and connections have their number.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import ThreadedAssociationServer

from pneumoscope.config import NodeConfig

_MOST_PDU_BYTES = 1 << 20
"""A caller's longest single PDU: we ask for 16 KB of data at a time; requests may be longer."""

_MESSAGE_SLACK = 1 << 20
"""What a message has beside its data set."""

_MOST_CRUMBS = 20_000
_LEAST_CRUMB = 256
"""Pieces of a message, and bytes that they must have on average if there are more."""

_LEAST_RATE = 16 << 10
"""Bytes per second, beyond the time-out, that a caller must send."""

_PIECE = 64 << 10
_BACKLOG = 128


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Takes connections; a socket that says nothing for `read_seconds` is closed.

    TLS is agreed on in the connection's own thread, so that no caller can hold up others.
    """

    read_seconds = 30.0
    most_connections = 100
    request_queue_size = _BACKLOG
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection, with its time-out, under TLS if that is spoken."""
        connection, address = self.socket.accept()
        connection.settimeout(self.read_seconds)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for a connection: beyond the limit it is closed at once."""
        return len(self.active_associations) < self.most_connections

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed as it began is nobody's fault here, and no one to be told."""

    def shutdown(self) -> None:
        """Take no more connections; those that are there go on."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()


@dataclass(slots=True)
class _Message:
    """What a connection is sending.

    Attributes:
        count: bytes of the message so far.
        reads: pieces that it came in.
        held: bytes counted among those that all connections hold.
        complete: it is being worked on; the next byte belongs to another one.
        began: when its first byte was waited for, as of `time.monotonic`.
    """

    count: int = 0
    reads: int = 0
    held: int = 0
    complete: bool = False
    began: float = field(default_factory=time.monotonic)


class Meter:
    """Counts what connections send, and ends those that send too much, too slowly or in crumbs.

    Args:
        config: the most bytes of one message's data set and of all together; time-outs.
        exceeded: called with the association that is ended.
    """

    def __init__(self, config: NodeConfig, exceeded: Callable[[Any], None]) -> None:
        self._most = config.max_bytes + _MESSAGE_SLACK
        self._most_held = max(config.max_held, self._most)
        self._seconds = config.network_timeout
        self._exceeded = exceeded
        self._lock = threading.Lock()
        self._held = 0

    def handlers(self) -> list[tuple[Any, Callable[[Any], None]]]:
        """To be bound to the server."""
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DIMSE_RECV, self._complete),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]

    def _opened(self, event: Any) -> None:
        wire = event.assoc.dul.socket
        wire.accepted = wire.socket
        wire.message = _Message()

        def bounded(count: int) -> bytearray:
            if wire.message.complete:
                self._release(wire.message)
                wire.message = _Message()
            if not self._allows(wire.message, count):
                self._exceeded(event.assoc)
                raise OSError("a message beyond the limit")
            return self._received(wire, count)

        wire.recv = bounded

    def _allows(self, message: _Message, count: int) -> bool:
        """Whether so many more bytes of a message are taken."""
        message.count += count
        message.reads += 1
        if count > _MOST_PDU_BYTES or message.count > self._most:
            return False
        if message.reads > _MOST_CRUMBS and message.count < message.reads * _LEAST_CRUMB:
            return False
        with self._lock:
            self._held += count
            message.held += count
            return self._held <= self._most_held

    def _received(self, wire: Any, count: int) -> bytearray:
        """So many bytes, or fewer where the caller ends; each byte has its share of time."""
        found = bytearray()
        message: _Message = wire.message
        while len(found) < count:
            allowed = self._seconds + (message.count - count + len(found)) / _LEAST_RATE
            left = message.began + allowed - time.monotonic()
            if left <= 0:
                raise OSError("a message that takes too long")
            wire.socket.settimeout(left)
            piece = wire.socket.recv(min(count - len(found), _PIECE))
            if not piece:
                break
            found += piece
        wire.socket.settimeout(self._seconds)
        return found

    def _release(self, message: _Message) -> None:
        with self._lock:
            self._held -= message.held
            message.held = 0

    def _complete(self, event: Any) -> None:
        event.assoc.dul.socket.message.complete = True

    def _closed(self, event: Any) -> None:
        wire = event.assoc.dul.socket
        self._release(wire.message)
        # pynetdicom leaves a socket open whose caller has gone already.
        wire.accepted.close()


def most_connections(associations: int) -> int:
    """Connections at a time: some more than associations, and fewer than there are descriptors."""
    wanted = 2 * associations + 32
    try:
        import resource
    except ImportError:  # not on Windows
        return wanted
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(min(wanted, files - 128), 8)


def serve(server: GuardedServer) -> threading.Thread:
    """Begin to take connections, in a thread of its own."""
    thread = threading.Thread(
        target=server.serve_forever, args=(0.1,), name="dicom-server", daemon=True
    )
    thread.start()
    return thread
