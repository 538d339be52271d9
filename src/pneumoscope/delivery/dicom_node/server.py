"""The listening socket of the node, guarded against callers that idle or never end.

Comes in: an application entity and its handlers. Goes out: a running server. Knows nothing of
films. pynetdicom's own server waits for ever on a caller that begins TLS, or half a message, and
says no more; and it takes messages of any length into memory. Here every read has a time-out and
every message a limit.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

from pynetdicom import evt
from pynetdicom.transport import ThreadedAssociationServer

_MOST_PDU_BYTES = 1 << 20
"""A caller's longest single PDU: we ask for 16 KB of data at a time; requests may be longer."""

_MESSAGE_SLACK = 1 << 20
"""What a message has beside its data set."""

_BACKLOG = 128


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Takes connections; a socket that says nothing for `read_seconds` is closed.

    TLS is agreed on in the connection's own thread, so that no caller can hold up others.
    """

    read_seconds = 30.0
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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed as it began is nobody's fault here, and no one to be told."""

    def shutdown(self) -> None:
        """Take no more connections; those that are there go on."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()


class Meter:
    """Counts the bytes of the message that a connection is sending, and ends it if they are many.

    Args:
        most_bytes: of one message's data set.
        exceeded: called with the association that is ended.
    """

    def __init__(self, most_bytes: int, exceeded: Callable[[Any], None]) -> None:
        self._most = most_bytes + _MESSAGE_SLACK
        self._exceeded = exceeded

    def handlers(self) -> list[tuple[Any, Callable[[Any], None]]]:
        """To be bound to the server."""
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DIMSE_RECV, self._complete),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]

    def _opened(self, event: Any) -> None:
        wire = event.assoc.dul.socket
        receive = wire.recv
        wire.accepted = wire.socket
        wire.message_bytes = 0

        def bounded(count: int) -> Any:
            wire.message_bytes += count
            if count > _MOST_PDU_BYTES or wire.message_bytes > self._most:
                self._exceeded(event.assoc)
                raise OSError("a message beyond the limit")
            return receive(count)

        wire.recv = bounded

    def _complete(self, event: Any) -> None:
        event.assoc.dul.socket.message_bytes = 0

    @staticmethod
    def _closed(event: Any) -> None:
        # pynetdicom leaves a socket open whose caller has gone already.
        event.assoc.dul.socket.accepted.close()


def serve(server: GuardedServer) -> threading.Thread:
    """Begin to take connections, in a thread of its own."""
    thread = threading.Thread(
        target=server.serve_forever, args=(0.1,), name="dicom-server", daemon=True
    )
    thread.start()
    return thread
