"""The DICOM server of the node: C-ECHO and C-STORE, guarded against idle and endless callers.

An image is acknowledged when it is on disk in the spool, not before. Of its data set only the UIDs
are read here.

The server of pynetdicom waits without end for a caller that stops in the middle of a TLS handshake
or a message, and it reads messages of any length into memory. Here each message has a limit of
time, bytes and pieces, all messages together have a limit of memory, and the number of connections
is limited.
"""

from __future__ import annotations

import socket
import socketserver
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.http_client import StatedUids, stated_uids
from pneumoscope.delivery.dicom_node.peers import LEAST_RATE, check_aet, server_context
from pneumoscope.delivery.dicom_node.scorer import Audit
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom.pixels import SUPPORTED_SYNTAXES

_MOST_PDU_BYTES = 1 << 20
"""Bytes of the longest PDU: this server negotiates 16 KB of data; requests may be longer."""

_MESSAGE_SLACK = 1 << 20
"""Bytes that a message may have beside its data set."""

_MOST_CRUMBS = 20_000
_LEAST_CRUMB = 256
"""Pieces that a message may have, and the mean size in bytes required of more pieces."""

_PIECE = 64 << 10
_BACKLOG = 128

IMAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""SOP classes that may hold a chest X-ray. Others are rejected when the association is made."""

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
_DOES_NOT_MATCH = 0xA900
_CANNOT_UNDERSTAND = 0xC000
"""PS3.4 B.2.3."""


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Accepts connections; a socket that is silent for `read_seconds` is closed.

    The TLS handshake runs in the connection's own thread, so that no caller blocks others.
    """

    read_seconds = 30.0
    most_connections = 100
    request_queue_size = _BACKLOG
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept the next connection with a time-out, under TLS if configured."""
        connection, address = self.socket.accept()
        connection.settimeout(self.read_seconds)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is below the limit; others are closed at once."""
        return len(self.active_associations) < self.most_connections

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that failed while it was being set up."""

    def shutdown(self) -> None:
        """Accept no more connections; open ones continue."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()


@dataclass(slots=True)
class _Message:
    """The message that a connection is receiving.

    Attributes:
        count: bytes received so far.
        reads: pieces received so far.
        held: bytes counted towards the limit of all connections together.
        complete: whether it is complete; the next byte belongs to the next message.
        began: start of waiting for its first byte, by `time.monotonic`.
    """

    count: int = 0
    reads: int = 0
    held: int = 0
    complete: bool = False
    began: float = field(default_factory=time.monotonic)


class Meter:
    """Measures connections, and closes those that send too much, too slowly or in tiny pieces.

    Args:
        config: limits of bytes for one message and for all together; time-outs.
        exceeded: called with the association that is closed.
    """

    def __init__(self, config: NodeConfig, exceeded: Callable[[Any], None]) -> None:
        self._most = config.max_bytes + _MESSAGE_SLACK
        self._most_held = max(config.max_held, self._most)
        self._seconds = config.network_timeout
        self._exceeded = exceeded
        self._lock = threading.Lock()
        self._held = 0

    def handlers(self) -> list[tuple[Any, Callable[[Any], None]]]:
        """Event handlers to bind to the server."""
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
                raise OSError("a message exceeded a limit")
            return self._received(wire, count)

        wire.recv = bounded

    def _allows(self, message: _Message, count: int) -> bool:
        """Whether `count` more bytes of a message are accepted."""
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
        """Receive `count` bytes, or fewer if the caller closes; bytes extend the time limit."""
        found = bytearray()
        message: _Message = wire.message
        while len(found) < count:
            allowed = self._seconds + (message.count - count + len(found)) / LEAST_RATE
            left = message.began + allowed - time.monotonic()
            if left <= 0:
                raise OSError("a message took too long")
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
        # pynetdicom leaves a socket open if its caller has disconnected.
        wire.accepted.close()


def most_connections(associations: int) -> int:
    """Limit of open connections: more than associations, fewer than file descriptors."""
    wanted = 2 * associations + 32
    try:
        import resource
    except ImportError:  # not on Windows
        return wanted
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(min(wanted, files - 128), 8)


def serve(server: GuardedServer) -> threading.Thread:
    """Accept connections in a new thread."""
    thread = threading.Thread(
        target=server.serve_forever, args=(0.1,), name="dicom-server", daemon=True
    )
    thread.start()
    return thread


class Receiver:
    """Receives images until it is stopped.

    Args:
        config: address, AE titles, TLS files and limits.
        spool: destination of images.
        audit: log to which each event is written.

    Raises:
        UsageError: the address can't be listened on; an AE title or a TLS file is invalid.
    """

    def __init__(self, config: NodeConfig, spool: Spool, audit: Audit) -> None:
        self._config, self._spool, self._audit = config, spool, audit
        _config.LOG_HANDLER_LEVEL = "none"  # it logs whole messages with patient data
        self._entity = entity(config)
        self._entity.require_called_aet = not config.any_called
        self._entity.require_calling_aet = [check_aet(a, "--callers") for a in config.callers]
        self._entity.maximum_associations = config.associations
        self._entity.add_supported_context(Verification)
        for image_class in IMAGE_CLASSES:
            self._entity.add_supported_context(image_class, sorted(SUPPORTED_SYNTAXES))
        self._server = self._listening()
        self._thread = serve(self._server)
        self.port: int = self._server.socket.getsockname()[1]

    def _listening(self) -> GuardedServer:
        config = self._config
        context = server_context(config)
        meter = Meter(config, self._too_large)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_REJECTED, self._rejected),
            *meter.handlers(),
        ]
        try:
            server: GuardedServer = self._entity.make_server(
                (config.host, config.port),
                ssl_context=context,
                evt_handlers=handlers,
                server_class=GuardedServer,
            )
        except OSError as error:
            raise UsageError(
                f"{config.host}:{config.port}: can't be listened on ({error.strerror or error}). "
                "Give another --host or --port."
            ) from error
        server.read_seconds = config.network_timeout
        server.most_connections = most_connections(config.associations)
        return server

    @property
    def listening(self) -> bool:
        """Whether it takes associations."""
        return self._thread.is_alive()

    def stop(self, grace: float) -> None:
        """Accept no more associations; open ones have `grace` seconds to end."""
        self._server.shutdown()
        self._thread.join()
        end = time.monotonic() + grace
        while (left := self._server.active_associations) and time.monotonic() < end:
            time.sleep(0.02)
        for association in left:
            association.abort()
        for association in left:
            association.join(1.0)

    def _store(self, event: Any) -> int | Dataset:
        caller = event.assoc.requestor.ae_title
        try:
            return self._kept(event, caller)
        except (OSError, MemoryError, sqlite3.Error) as error:
            self._audit.note("turned away", caller=caller, why=type(error).__name__)
            return _OUT_OF_RESOURCES

    def _kept(self, event: Any, caller: str) -> int | Dataset:
        """Keep one image; returns the status for its sender."""
        content = event.encoded_dataset()
        if len(content) > self._config.max_bytes:
            self._audit.note("turned away", caller=caller, why="too large", bytes=len(content))
            return _OUT_OF_RESOURCES
        sop_uid = str(event.request.AffectedSOPInstanceUID)
        stated = stated_uids(content)
        if (refusal := _refusal(stated, sop_uid)) is not None:
            why, status = refusal
            self._audit.note("turned away", caller=caller, why=why, bytes=len(content))
            return status
        # An archive that routes whole studies sends heatmaps back, which are not scored again.
        if stated.own or self._spool.made(sop_uid):
            self._audit.note("own object", caller=caller, bytes=len(content))
            return _SUCCESS
        found, image = self._spool.receive(
            sop_uid, content, self._config.max_waiting, self._config.min_free
        )
        if found == "full":
            self._audit.note("turned away", caller=caller, why="queue or disk full")
            return _OUT_OF_RESOURCES
        self._audit.note(
            "known already" if found == "known" else "received",
            film=image,
            caller=caller,
            bytes=len(content),
            **({} if found in ("new", "known") else {"known_uid": found}),
        )
        return _SUCCESS

    def _echo(self, event: Any) -> int:
        self._audit.note("echo", caller=event.assoc.requestor.ae_title)
        return _SUCCESS

    def _rejected(self, event: Any) -> None:
        requestor = event.assoc.requestor
        self._audit.note("rejected", caller=requestor.ae_title, address=requestor.address)

    def _too_large(self, association: Any) -> None:
        caller = association.requestor.ae_title
        self._audit.note("turned away", caller=caller, why="message too large")


def _refusal(stated: StatedUids, sop_uid: str) -> tuple[str, Dataset] | None:
    """Why an image can't be taken, by the UIDs that its data set states.

    An image is stored under the UID of its message, so that its data set must state the same one.
    Without the UIDs of study and series (Type 1, PS3.3 C.7.2.1 and C.7.3.1) no report can be filed.

    Args:
        stated: UIDs of the data set.
        sop_uid: Affected SOP Instance UID of the message.

    Returns:
        Words for the audit log and the C-STORE response; `None` if the image can be taken.
    """
    if not stated.readable:
        return "its header can't be read", _response(_CANNOT_UNDERSTAND, "header can't be read")
    if not stated.sop:
        return "its data set states no UID", _lacking(_CANNOT_UNDERSTAND, "SOPInstanceUID")
    if stated.sop != sop_uid:
        comment = "SOPInstanceUID of data set and message differ"
        response = _response(_DOES_NOT_MATCH, comment, "SOPInstanceUID")
        return "its data set has another UID", response
    if keyword := stated.missing:
        return f"its data set states no {keyword}", _lacking(_DOES_NOT_MATCH, keyword)
    return None


def _lacking(status: int, keyword: str) -> Dataset:
    return _response(status, f"{keyword} is missing", keyword)


def _response(status: int, comment: str, keyword: str = "") -> Dataset:
    """A C-STORE response with its optional elements (PS3.7 C.5.8 to C.5.11, PS3.4 B.2.3)."""
    response = Dataset()
    response.Status = status
    response.ErrorComment = comment
    if keyword:
        response.OffendingElement = [tag_for_keyword(keyword)]
    return response


def entity(config: NodeConfig) -> AE:
    """The application entity of the node, with its time-outs."""
    own = AE(check_aet(config.aet, "--aet"))
    own.acse_timeout = config.acse_timeout
    own.network_timeout = config.network_timeout
    own.dimse_timeout = config.dimse_timeout
    own.connection_timeout = config.acse_timeout
    return own
