"""Sockets, TLS and signals around the application, and limits of its connections.

SIGTERM and Ctrl-C close the socket; requests under way are completed first.

uvicorn waits without end for the rest of a request's head and for a client that does not read its
response, and it accepts connections until no descriptor is left. Here a periodic sweep closes
connections whose time is over, and a new connection beyond the limit replaces one without a request
under way: the oldest of the address that has most of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.export import told_by_place
from pneumoscope.delivery.rest.app import build_app
from pneumoscope.delivery.rest.guard import LOOPBACK_NAMES
from pneumoscope.delivery.rest.logs import LOGGER, event, write_uncaught_too
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import Predictor

BACKLOG = 128
_SPARE_DESCRIPTORS = 128
"""File descriptors left for files, pipes to processes, and the system."""

_SWEEP_SECONDS = 0.25
_LINGER_SECONDS = 5.0
"""Seconds in which a client may finish sending after an early response, so that it can read it."""

_MOST_CRUMBS = 5000
_LEAST_CRUMB = 64
"""Pieces that a body may have, and the mean size in bytes required of more pieces."""

KEY_VARIABLE = "PNEUMOSCOPE_API_KEY"
_LEAST_KEY = 16


class _Conversation(h11.Connection):
    """HTTP whose bodies must not arrive in tiny pieces: each costs as much as a large one."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._pieces = self._bytes = 0

    def next_event(self) -> Any:
        found = super().next_event()
        if isinstance(found, h11.Data):
            self._pieces += 1
            self._bytes += len(found.data)
            if self._pieces > _MOST_CRUMBS and self._bytes < _LEAST_CRUMB * self._pieces:
                raise h11.RemoteProtocolError("a body in tiny pieces")
        elif isinstance(found, h11.Request):
            self._pieces = self._bytes = 0
        return found


class Protocol(H11Protocol):
    """One connection; `sweep` is called periodically.

    Attributes:
        address: of the client.
    """

    address = ""
    _gate: Connections
    _head_since: float | None = None
    _silent_since: float | None = None
    _answered_since: float | None = None
    _blocked_since: float | None = None

    def begin(self, gate: Connections) -> Protocol:
        """Register with the connections of `gate`."""
        self._gate = gate
        self.conn = _Conversation()
        return self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is open."""
        super().connection_made(transport)
        self.address = (self.client or ("", 0))[0]
        self._head_since = time.monotonic()
        self._gate.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        self._gate.closed(self)

    def data_received(self, data: bytes) -> None:
        """The client sent data."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """The response is complete; it may still be buffered here."""
        if self.conn.their_state is h11.SEND_BODY:
            self._answered_since = time.monotonic()
        super().on_response_complete()
        self._note()

    def _note(self) -> None:
        """Update what the client is doing: sending a head, nothing, or a body nobody reads."""
        now = time.monotonic()
        if self.conn.their_state is not h11.SEND_BODY:
            self._answered_since = None
        if self.conn.their_state is not h11.IDLE:
            self._head_since = self._silent_since = None
        elif self.conn.trailing_data[0]:
            self._head_since, self._silent_since = self._head_since or now, None
        elif self.cycle is not None:
            self._head_since, self._silent_since = None, self._silent_since or now

    def resume_writing(self) -> None:
        """The client has read most of the buffer."""
        super().resume_writing()
        self._blocked_since = None

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def since(self) -> float:
        """When its present activity began, for the order in which connections are closed."""
        times = (
            *(self._head_since, self._silent_since),
            *(self._answered_since, self._blocked_since),
        )
        return min((moment for moment in times if moment is not None), default=time.monotonic())

    def sweep(self, now: float, config: ServeConfig) -> None:
        """Close the connection if its time limit is exceeded."""
        if not self.transport.get_write_buffer_size():
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        for since, seconds in (
            (self._head_since, config.header_timeout),
            (self._silent_since, config.idle_timeout),
            (self._answered_since, _LINGER_SECONDS),
            (self._blocked_since, config.write_timeout),
        ):
            if since is not None and now - since > seconds:
                self.transport.abort()
                self._gate.closed(self)
                return


class Connections:
    """All connections of a server, and its listening socket.

    Args:
        config: limit of connections, time-outs.
        listening: the socket.
        tls: certificate and key for HTTPS, or `None`.
        make: makes the protocol of a new connection.
    """

    def __init__(
        self,
        config: ServeConfig,
        listening: socket.socket,
        tls: ssl.SSLContext | None,
        make: Callable[[], Protocol],
    ) -> None:
        self._config, self._listening, self._tls, self._make = config, listening, tls, make
        self._most = most_connections(config.connections)
        self._open: set[Protocol] = set()
        self._greeting: dict[socket.socket, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept connections in the running loop."""
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        self._keep(self._accept())
        self._keep(self._sweep())

    def close(self) -> None:
        """Accept no more; open ones continue. Called by uvicorn like a server of asyncio."""
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once; called by uvicorn."""

    def opened(self, protocol: Protocol) -> None:
        """Register an open connection."""
        self._open.add(protocol)

    def closed(self, protocol: Protocol) -> None:
        """Unregister a connection that is closed or about to be."""
        self._open.discard(protocol)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:  # the client has gone, or there are no descriptors
                event("connection not taken", why=type(error).__name__)
                await asyncio.sleep(0.1)
                continue
            if self._has_room():
                self._greeting[connection] = str(address[0])
                self._keep(self._greet(connection))
            else:
                connection.close()

    def _has_room(self) -> bool:
        """Whether one more connection fits, if necessary in place of an idle one."""
        if len(self._open) + len(self._greeting) < self._most:
            return True
        idle = [protocol for protocol in self._open if protocol.idle]
        addresses = Counter(protocol.address for protocol in idle)
        addresses.update(self._greeting.values())
        if not addresses:
            return False
        (busiest, _), *_ = addresses.most_common(1)
        event("connection ended", why="too many connections")
        theirs = [protocol for protocol in idle if protocol.address == busiest]
        if theirs:
            oldest = min(theirs, key=lambda protocol: protocol.since)
            oldest.transport.abort()
            self.closed(oldest)
        else:
            self._drop(next(s for s, address in self._greeting.items() if address == busiest))
        return True

    def _drop(self, connection: socket.socket) -> None:
        self._greeting.pop(connection, None)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    async def _greet(self, connection: socket.socket) -> None:
        """Run the TLS handshake, if configured, and pass the connection to its protocol."""
        seconds = self._config.header_timeout if self._tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._make().begin(self),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=seconds,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            connection.close()
        finally:
            self._greeting.pop(connection, None)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            for protocol in list(self._open):
                protocol.sweep(now, self._config)


def most_connections(wanted: int) -> int:
    """Limit of open connections: as configured, and below the number of descriptors."""
    try:
        import resource
    except ImportError:  # not on Windows
        return wanted
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < wanted + _SPARE_DESCRIPTORS:
        more = wanted + _SPARE_DESCRIPTORS
        more = more if hard == resource.RLIM_INFINITY else min(more, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(min(wanted, files - _SPARE_DESCRIPTORS), 8)


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket, and its address for messages."""

    socket: socket.socket
    url: str


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """Read the API keys of the file and of the environment.

    Raises:
        UsageError: the file can't be read or holds no key, a key is too short to be one, or there
            is none although other machines could send requests.
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
    if not found and not config.no_api_key and not _is_loopback(config.host):
        raise UsageError(
            f"--host {config.host}: found no API key, wanted one, since other machines can reach "
            f"this address. Give --api-key-file or ${KEY_VARIABLE}, listen on 127.0.0.1, or give "
            "--no-api-key if something else keeps others out."
        )
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


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
    settings = uvicorn.Config(
        build_app(predictor, config, limits, api_keys(config), allowed_hosts(config)),
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
