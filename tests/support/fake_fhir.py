"""A FHIR R4 server on loopback that takes transaction Bundles: for the node's `--fhir`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.http_stub import served

ROOT = "/fhir"


@dataclass
class FhirServer:
    """Stands for a FHIR server.

    Attributes:
        url: its base address.
        posted: the bytes of each Bundle that was stored, as often as it came.
        resources: what is stored, by the address of its entry (`Device/…`).
        faults: statuses for the next Bundles; 0 stores one and hangs up without a response.
        token: wanted in `Authorization`.
        refused: texts; for a Bundle that holds one of them the response is 422.
        requests: method and path of every request.
        padding: bytes added to every response.
    """

    url: str = ""
    posted: list[bytes] = field(default_factory=list)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[int] = field(default_factory=list)
    token: str = ""
    refused: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    padding: int = 0

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The stored resources of one type."""
        return [r for r in list(self.resources.values()) if r["resourceType"] == kind]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: FhirServer

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        self.kept.requests.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.kept.token and self.headers.get("Authorization") != self.kept.token:
            self._respond(401)
            return
        assert self.headers["Content-Type"].startswith("application/fhir+json")
        fault = self.kept.faults.pop(0) if self.kept.faults else 200
        if any(text in content for text in self.kept.refused):
            fault = 422
        if fault in (0, 200):
            self._store(content)
        if fault == 0:
            self.close_connection = True
            return
        self._respond(fault)

    def _store(self, content: bytes) -> None:
        bundle = json.loads(content)
        assert (self.path, bundle["type"]) == (ROOT, "transaction")
        for entry in bundle["entry"]:
            request, resource = entry["request"], entry["resource"]
            assert request["method"] == "PUT"
            assert request["url"] == f"{resource['resourceType']}/{resource['id']}"
            self.kept.resources[request["url"]] = resource
        self.kept.posted.append(content)

    def _respond(self, status: int) -> None:
        content = b'{"resourceType": "Bundle", "type": "transaction-response"}'
        content += b" " * self.kept.padding
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fhir_server(**how: Any) -> Iterator[FhirServer]:
    """A server that listens until the block ends."""
    kept = FhirServer(**how)
    handler = type("Handler", (_Handler,), {"kept": kept})
    with served(handler) as address:
        kept.url = f"{address}{ROOT}"
        yield kept
