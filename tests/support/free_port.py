"""A port for a server that is started in a moment."""

from __future__ import annotations

import secrets
import socket

_BELOW_EPHEMERAL = range(20_000, 32_000)
"""Where systems don't look for a port of their own: what else a test starts won't be given it."""


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    while True:
        port = secrets.choice(_BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
