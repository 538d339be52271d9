"""The contents of a spool: counts, items set aside, retrying them, and the table of results.

All functions work with or without a running node, because the queue can be read and changed beside
it; the node checks the queue every second. Items are identified by row number, without patient
data.

`SPOOL/results.jsonl` has a line per scored image, for `node results`. Unlike the audit log it names
patient, accession and study, because it is joined with the readings of radiologists: protect it
like the images. After a kill an image may have two lines; the last one counts.

`StatusServer` is `node --status-port`: `/healthz` and `/metrics` of a running node, on the loopback
interface. `/metrics` is the Prometheus text format 0.0.4, written here because the node does not
need the package `prometheus-client`. It holds counts, times and the model's fingerprint: no
patient, no UID, no AE title and no address.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pneumoscope.delivery.dicom_node.queue import QUEUE_FILE, Queue
from pneumoscope.delivery.dicom_report.objects import ReportObject
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom.patient import patient_age
from pneumoscope.images.grey import join_warnings
from pneumoscope.reading import json_lines
from pneumoscope.records import Prediction
from pneumoscope.storage import LineFile

_LOGGER = logging.getLogger(__name__)
_OUTGOING = ("waiting", "sent", "set aside", "kept")
_COUNTED = {
    "films": ("films", "1", ("waiting", "answered", "set aside")),
    "reports": ("reports", "kind <> 'fhir'", _OUTGOING),
    "fhir": ("reports", "kind = 'fhir'", _OUTGOING),
    "fetches": ("fetches", "1", ("waiting", "set aside")),
}
"""Names of the counts: their table, which rows of it, and the states that are counted."""

_FOLDERS = {"films": "incoming", "reports": "outgoing"}
"""Tables whose rows have a file, and the folder of the spool that it is in."""

RESULTS_FILE = "results.jsonl"
COLUMNS = (
    *("image", "study", "accession", "patient", "study_date", "received", "sex", "age"),
    *("status", "reason", "probability", "prediction", "threshold", "input_score"),
    *("model", "software", "warnings", "detail"),
)
"""Columns of `node results`, in order."""

_TAGS = [
    *("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate", "PatientSex"),
    *("PatientAge", "PatientBirthDate", "CurrentRequestedProcedureEvidenceSequence"),
]

_HOST = "127.0.0.1"
_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = 5.0
"""Time that a client has for its whole request and the response."""

_MOST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was set aside, or that failed and waits for a retry.

    Attributes:
        kind: `image`, `report` (a DICOM object), `FHIR bundle`, or `fetch` (an image that a server
            did not give).
        number: its row number; for an image the number in the audit log.
        film: row number of its image; `None` for a fetch.
        state: `set aside` or `waiting`.
        failures: number of failures.
        why: the reason, without patient data.
    """

    kind: str
    number: int
    film: int | None
    state: str
    failures: int
    why: str


def opened(folder: Path) -> Queue:
    """Open the queue of an existing spool.

    Raises:
        UsageError: there is no queue, or it is damaged.
    """
    if not (folder / QUEUE_FILE).is_file():
        raise UsageError(
            f"--spool {folder}: found no {QUEUE_FILE} there, wanted the spool of a node. Give the "
            "folder that the node was started with."
        )
    return Queue(folder, alone=False)


def counted(queue: Queue) -> dict[str, int]:
    """Count the items of each kind in each state, as in `films_waiting` and `fhir_sent`."""
    return {
        f"{name}_{state.replace(' ', '_')}": int(
            queue.rows(f"SELECT COUNT(*) FROM {table} WHERE {which} AND state = ?", (state,))[0][0]  # noqa: S608
        )
        for name, (table, which, states) in _COUNTED.items()
        for state in states
    }


def oldest_waiting(queue: Queue) -> float | None:
    """Unix time at which the longest waiting image was received; `None` if none waits."""
    rows = queue.rows("SELECT MIN(received) FROM films WHERE state = 'waiting'")
    return None if rows[0][0] is None else float(rows[0][0])


def aside(queue: Queue) -> list[Aside]:
    """Items that were set aside or wait for a retry, by kind, then in order of arrival."""
    rows = queue.rows(
        "SELECT 'image', id, id, state, attempts, why FROM films WHERE state = 'set aside'"
        " UNION ALL SELECT CASE kind WHEN 'fhir' THEN 'FHIR bundle' ELSE 'report' END,"
        " id, film, state, refusals, why FROM reports"
        " WHERE state = 'set aside' OR (state = 'waiting' AND why <> '')"
        " UNION ALL SELECT 'fetch', id, NULL, state, refusals, why FROM fetches WHERE why <> ''"
    )
    return [Aside(*row) for row in rows]


def try_again(queue: Queue, folder: Path) -> dict[str, int]:
    """Queue all items that were set aside again, with their failures reset.

    An item whose file is lost stays set aside: its sender has to send the image again.

    Returns:
        The number of items of each kind: `films` (images), `reports`, `fhir` and `fetches`.
    """
    return {
        name: _try_again(queue, folder, table, which)
        for name, (table, which, _) in _COUNTED.items()
    }


def _try_again(queue: Queue, folder: Path, table: str, which: str) -> int:
    """Queue the set-aside rows of a table for which `which` holds; returns their number."""
    counter = "attempts" if table == "films" else "refusals"
    due = "" if table == "films" else ", due = 0"
    rows = queue.rows(
        f"SELECT id, {'file' if table in _FOLDERS else 'NULL'} FROM {table}"  # noqa: S608
        f" WHERE {which} AND state = 'set aside'"
    )
    ready = [
        number
        for number, file in rows
        if file is None or (folder / _FOLDERS[table] / file).is_file()
    ]
    for number in ready:
        queue.update(
            f"UPDATE {table} SET state = 'waiting', {counter} = 0, why = ''{due}"  # noqa: S608
            " WHERE id = ? AND state = 'set aside'",
            (number,),
        )
    return len(ready)


def note_result(
    spool: Path,
    sha256: str,
    reports: Sequence[ReportObject],
    prediction: Prediction,
    author: Author,
) -> None:
    """Append the result of one image, `sha256` of its file; it is on disk when this returns.

    Patient and study are read from the report, which the node wrote, not from the image, which is
    not trusted. Without a report there is no identifier to join by, and no line is written.

    Raises:
        OSError: the file can't be written.
    """
    report = next((made for made in reports if made.kind == "report"), None)
    if report is None:
        return
    row = {
        **_study(report.content),
        "sha256": sha256,
        "received": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": prediction.status,
        "reason": prediction.reason.value if prediction.reason else "",
        "probability": prediction.probability,
        "prediction": prediction.prediction,
        "threshold": prediction.threshold,
        "input_score": prediction.input_score,
        "model": author.fingerprint[:16],
        "software": author.version,
        "warnings": join_warnings(prediction.warnings),
        "detail": " ".join(prediction.detail.split()),
    }
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    # Readable by its owner only: it names patients and is kept.
    with LineFile(spool / RESULTS_FILE, 0o600) as file:
        file.append(line, sync=True)


def read_results(spool: Path) -> list[dict[str, Any]]:
    """The results of a spool, one per image and model, in order of their first line.

    Images are told apart by UID and content; older lines state no content.

    Raises:
        UsageError: the folder has no results.
    """
    path = spool / RESULTS_FILE
    if not path.is_file():
        raise UsageError(
            f"--spool {spool}: found no {RESULTS_FILE} there, wanted the spool of a node that has "
            "scored an image. Give the folder that the node was started with."
        )
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    damaged = 0
    for row, _ in json_lines(path):
        if row is not None and {"image", "model"} <= row.keys():
            key = (row["image"], row["model"], str(row.get("sha256", "")))
            found[key] = {name: row.get(name) for name in COLUMNS}
        else:
            damaged += 1
    if damaged:
        _LOGGER.warning("%s: %d damaged lines were left out", path, damaged)
    return list(found.values())


def _study(report: bytes) -> dict[str, str]:
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(report), specific_tags=_TAGS)
    evidence = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    stated, born, date = (
        str(dataset.get(tag) or "") for tag in ("PatientAge", "PatientBirthDate", "StudyDate")
    )
    age, _ = patient_age(stated, born, date)
    return {
        "image": str(evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID),
        "study": str(dataset.StudyInstanceUID),
        "accession": str(dataset.get("AccessionNumber") or ""),
        "patient": str(dataset.get("PatientID") or ""),
        "study_date": date,
        "sex": str(dataset.get("PatientSex") or ""),
        "age": "" if age is None else f"{age.low:.1f}",
    }


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
    """Serves `GET /healthz` and `GET /metrics` until it is closed.

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
        # The time-out of a socket starts anew with every byte.
        timer = threading.Timer(_SECONDS, _cut, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects early is no event of the node."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)


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
