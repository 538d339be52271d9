"""Associations with other application entities of which no wait is without end.

pynetdicom's time-outs start anew with every byte, and without a time-out on the socket it waits
without end for the rest of a message. So a peer that sends half a message, or a byte now and then,
would block it. Here a deadline cuts the connection; it is renewed by whole messages alone.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pynetdicom import AE, evt

from pneumoscope.delivery.dicom_node.peers import Peer

LEAST_RATE = 16 << 10
"""Bytes per second, beyond the time-out, below which a peer counts as unreachable."""


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
