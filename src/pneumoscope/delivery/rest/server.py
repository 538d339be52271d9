"""Sockets, TLS and signals around the application.

SIGTERM and Ctrl-C close the socket; requests under way are completed first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.export import told_by_place
from pneumoscope.delivery.rest.app import build_app
from pneumoscope.delivery.rest.connections import BACKLOG, Connections, Protocol
from pneumoscope.delivery.rest.guard import LOOPBACK_NAMES
from pneumoscope.delivery.rest.logs import LOGGER, event, write_uncaught_too
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import Predictor

KEY_VARIABLE = "PNEUMOSCOPE_API_KEY"
_LEAST_KEY = 16
_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket, and its address for messages."""

    socket: socket.socket
    url: str


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """Read the API keys of the file and of the environment.

    Raises:
        UsageError: the file can't be read or holds no key, or a key is too short to be one.
    """
    keys = [os.environ.get(KEY_VARIABLE, "").strip()]
    if config.api_key_file:
        try:
            lines = Path(config.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--api-key-file {config.api_key_file}: can't be read ({error}). Give a text file "
                "with one key per line."
            ) from error
        keys += [line.strip() for line in lines]
        if not any(keys[1:]):
            raise UsageError(f"--api-key-file {config.api_key_file}: holds no key, wanted one")
    found = tuple(key for key in keys if key)
    if short := [key for key in found if len(key) < _LEAST_KEY]:
        raise UsageError(
            f"an API key has {len(short[0])} characters, wanted {_LEAST_KEY} or more. Make one: "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return found


def bind(config: ServeConfig) -> Bound:
    """Bind the port, before a model is loaded.

    Raises:
        UsageError: the address is not one of this machine, the port is taken or not permitted, or
            a TLS file is missing.
    """
    check_tls(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        taken = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {config.host} --port {config.port}: can't listen there ({error}). Give "
            "another port, or 0 for a free one."
        ) from error
    scheme = "https" if config.tls_certificate else "http"
    shown = f"[{config.host}]" if family == socket.AF_INET6 else config.host
    return Bound(taken, f"{scheme}://{shown}:{taken.getsockname()[1]}/")


def allowed_hosts(config: ServeConfig) -> tuple[str, ...]:
    """Host names that requests may use: this machine's, the given address, and those added.

    Raises:
        UsageError: one of them is not a host name.
    """
    for name in config.allowed_host:
        if not name or any(c in name for c in "/@ ") or "://" in name:
            raise UsageError(
                f"--allowed-host: found {name!r}, wanted a name as in pneumoscope.example, without "
                "scheme or port"
            )
    own = f"[{config.host}]" if ":" in config.host else config.host
    return (*LOOPBACK_NAMES, own, *config.allowed_host)


def check_tls(config: ServeConfig) -> None:
    """Check that certificate and key are both given and exist, or neither.

    Raises:
        UsageError: one is missing.
    """
    given = {"--tls-certificate": config.tls_certificate, "--tls-key": config.tls_key}
    if any(given.values()):
        for name, file in given.items():
            if not file or not Path(file).is_file():
                raise UsageError(f"{name} {file}: no such file. Give both, as PEM files.")


def serve(predictor: Predictor, config: ServeConfig, limits: LimitsConfig, bound: Bound) -> None:
    """Serve until SIGTERM or Ctrl-C, then complete the requests under way.

    Args:
        predictor: the model.
        config: limits of requests, TLS.
        limits: limits for reading one image.
        bound: where to listen.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    write_uncaught_too()
    keys = api_keys(config)
    if not keys and not config.host.startswith(_LOOPBACK):
        LOGGER.warning("other machines can ask, and no API key is wanted")
    settings = uvicorn.Config(
        build_app(predictor, config, limits, keys, allowed_hosts(config)),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=Protocol,
        ws="none",
        timeout_keep_alive=max(round(config.idle_timeout), 1),
        timeout_graceful_shutdown=max(round(config.stop_timeout), 1),
        ssl_certfile=config.tls_certificate or None,
        ssl_keyfile=config.tls_key or None,
    )
    server = _Server(settings, config, bound)
    # uvicorn raises the signal again once it has stopped; what was asked for is done by then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with told_by_place(LOGGER):
            server.run([bound.socket])
    finally:
        signal.signal(signal.SIGTERM, before)
        event("stopped", logging.INFO)


class _Server(uvicorn.Server):
    """Accepts connections through `Connections`, and logs when and where it is ready."""

    def __init__(self, settings: uvicorn.Config, config: ServeConfig, bound: Bound) -> None:
        super().__init__(settings)
        self._taken_on, self._bound = config, bound

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(1)

        def protocol() -> Protocol:
            return Protocol(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )

        taking: Any = Connections(self._taken_on, self._bound.socket, self.config.ssl, protocol)
        taking.start()
        self.servers = [taking]
        self.started = True
        event("listening", url=self._bound.url)
