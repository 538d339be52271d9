"""`node --status-port`: `/healthz` and `/metrics` of a running node, on the loopback interface.

`/metrics` is the Prometheus text format 0.0.4, written here because the node does not need the
package `prometheus-client`. It holds counts, times and the model's fingerprint: no patient, no UID,
no AE title and no address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pneumoscope.errors import UsageError

_HOST = "127.0.0.1"
_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = 5.0
"""A client that sends nothing for this long is disconnected."""

_MOST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: without the prefix `pneumoscope_node_`.
        kind: `gauge` or `counter`.
        help: one line.
        samples: labels and value of each sample.
    """

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Mapping[str, str], float], ...]

    @classmethod
    def single(cls, name: str, kind: str, help_text: str, value: float) -> Metric:
        """A metric without labels."""
        return cls(name, kind, help_text, (({}, value),))


def exposition(metrics: Iterable[Metric]) -> str:
    """Metrics in the Prometheus text format."""
    lines = []
    for metric in metrics:
        name = f"pneumoscope_node_{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        for labels, value in metric.samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{f'{{{inner}}}' if inner else ''} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class StatusServer:
    """Answers `GET /healthz` and `GET /metrics` until it is closed.

    Args:
        port: on 127.0.0.1; 0: any free one.
        health: returns `""` where the node works, else a short reason.
        metrics: returns the text of `/metrics`.

    Attributes:
        port: that it listens on.

    Raises:
        UsageError: the port is taken.
    """

    def __init__(self, port: int, health: Callable[[], str], metrics: Callable[[], str]) -> None:
        handler = type("Handler", (_Handler,), {"health": [health], "metrics": [metrics]})
        try:
            self._server = _Server((_HOST, port), handler)
        except OSError as error:
            raise UsageError(
                f"--status-port {port}: {_HOST}:{port} can't be listened on "
                f"({error.strerror or error}). Give another port."
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="node-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Serves a bounded number of connections at a time; further ones are closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects early is no event of the node."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    health: list[Callable[[], str]]
    metrics: list[Callable[[], str]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            reason = self.health[0]()
            self._respond(503 if reason else 200, _TEXT, f"{reason or 'ok'}\n")
        elif path == "/metrics":
            try:
                text = self.metrics[0]()
            except Exception:  # noqa: BLE001 - a scrape that fails must not look like one that works
                self._respond(503, _TEXT, "the queue can't be read\n")
            else:
                self._respond(200, _METRICS, text)
        else:
            self._respond(404, _TEXT, "Found here: /healthz and /metrics\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _respond(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        """The header `Server`, without versions."""
        return "pneumoscope"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is not worth a line."""
