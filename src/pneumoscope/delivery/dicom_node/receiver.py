"""C-ECHO and C-STORE: a film is acknowledged when it is in the spool, on disk, and not before.

Of an image the SOP Instance UID alone is looked at.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    Verification,
)

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.identity import stated_sop_uid
from pneumoscope.delivery.dicom_node.peers import check_aet, server_context
from pneumoscope.delivery.dicom_node.server import (
    GuardedServer,
    Meter,
    most_connections,
    serve,
)
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom.pixels import SUPPORTED_SYNTAXES

FILM_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""Objects that may be a chest X-ray. Others are not agreed on, so that their sender knows."""

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
_DOES_NOT_MATCH = 0xA900
_CANNOT_UNDERSTAND = 0xC000
"""PS3.4 B.2.3."""


class Receiver:
    """Listens as long as it is not stopped.

    Args:
        config: whom to listen to.
        spool: where films go.
        audit: is told of everything.

    Raises:
        UsageError: the address can't be listened on, or AE titles or TLS files can't be.
    """

    def __init__(self, config: NodeConfig, spool: Spool, audit: Audit) -> None:
        self._config, self._spool, self._audit = config, spool, audit
        _config.LOG_HANDLER_LEVEL = "none"  # each message written out, patients and all
        self._entity = entity(config)
        self._entity.require_called_aet = not config.any_called
        self._entity.require_calling_aet = [check_aet(a, "--callers") for a in config.callers]
        self._entity.maximum_associations = config.associations
        self._entity.add_supported_context(Verification)
        for film_class in FILM_CLASSES:
            self._entity.add_supported_context(film_class, sorted(SUPPORTED_SYNTAXES))
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

    def stop(self, grace: float) -> None:
        """Take no more associations; those that are there have `grace` seconds to end."""
        self._server.shutdown()
        self._thread.join()
        end = time.monotonic() + grace
        while (left := self._server.active_associations) and time.monotonic() < end:
            time.sleep(0.02)
        for association in left:
            association.abort()
        for association in left:
            association.join(1.0)

    def _store(self, event: Any) -> int:
        caller = event.assoc.requestor.ae_title
        try:
            return self._kept(event, caller)
        except (OSError, MemoryError, sqlite3.Error) as error:
            self._audit.note("turned away", caller=caller, why=type(error).__name__)
            return _OUT_OF_RESOURCES

    def _kept(self, event: Any, caller: str) -> int:
        """Keep one image; the status that its sender gets."""
        content = event.encoded_dataset()
        if len(content) > self._config.max_bytes:
            self._audit.note("turned away", caller=caller, why="too large", bytes=len(content))
            return _OUT_OF_RESOURCES
        sop_uid = str(event.request.AffectedSOPInstanceUID)
        # What is kept under a UID must be what has it, or it would stand in the way of that.
        stated = stated_sop_uid(content)
        if stated != sop_uid:
            why = "its data set has another UID" if stated else "its data set states no UID"
            self._audit.note("turned away", caller=caller, why=why, bytes=len(content))
            return _DOES_NOT_MATCH if stated else _CANNOT_UNDERSTAND
        found, film = self._spool.receive(
            sop_uid, content, self._config.max_waiting, self._config.min_free
        )
        if found == "full":
            self._audit.note("turned away", caller=caller, why="queue or disk full")
            return _OUT_OF_RESOURCES
        self._audit.note(
            "known already" if found == "known" else "received",
            film=film,
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


def entity(config: NodeConfig) -> AE:
    """The node as an application entity, with its time-outs."""
    own = AE(check_aet(config.aet, "--aet"))
    own.acse_timeout = config.acse_timeout
    own.network_timeout = config.network_timeout
    own.dimse_timeout = config.dimse_timeout
    own.connection_timeout = config.acse_timeout
    return own
