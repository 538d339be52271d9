"""The node as a whole: starts, watches and stops receiver, scorer and senders on one spool.

If one part fails, all stop and the exception is raised. A supervisor such as systemd starts the
node again; nothing that was acknowledged is lost.
"""

from __future__ import annotations

import logging
import math
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from pneumoscope.config import LimitsConfig, NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb
from pneumoscope.delivery.dicom_node.peers import Peer, parse_peer
from pneumoscope.delivery.dicom_node.poller import Poller
from pneumoscope.delivery.dicom_node.queue import Queue
from pneumoscope.delivery.dicom_node.scorer import Audit, Scorer, made_reports
from pneumoscope.delivery.dicom_node.sender import FhirSender, Sender, StoreSender, StowSender
from pneumoscope.delivery.dicom_node.server import Receiver
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.delivery.dicom_node.status import (
    Metric,
    StatusServer,
    counted,
    exposition,
    oldest_waiting,
)
from pneumoscope.delivery.dicom_report.objects import Reporter
from pneumoscope.delivery.dicom_report.source import checks_of
from pneumoscope.delivery.fhir import check_installed
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.preparing import threads
from pneumoscope.inference.processes import Processes

_LOGGER = logging.getLogger(__name__)

_WATCH_SECONDS = 0.2
_LEAST_GRACE_SECONDS = 1.0
_TROUBLE_SECONDS = 5.0
"""Pause after a write failed; the disk may be full for a while."""


class Node:
    """A running node.

    Args:
        config: its settings.
        predictor: the model.
        limits: limits for reading one image.

    Attributes:
        port: the DICOM port that it listens on.

    Raises:
        UsageError: a setting is invalid.
        OSError: the spool can't be written.
    """

    def __init__(
        self, config: NodeConfig, predictor: Predictor, limits: LimitsConfig | None = None
    ) -> None:
        destination = parse_peer(config.forward, "--forward") if config.forward else None
        self._web = web = DicomWeb(config) if config.dicomweb else None
        stows = web is not None and not config.dicomweb_silent
        if destination and stows:
            raise UsageError(
                "--forward and --dicomweb: reports would go to both. Give one of them, or "
                "--dicomweb-silent to only fetch images by DICOMweb."
            )
        if config.fhir:
            check_installed()
        reporter = Reporter(
            predictor.manifest,
            limits,
            predictor.precision,
            segmentation=config.segmentation,
            checks=checks_of(predictor),
        )
        self._config = config
        folder = Path(config.spool)
        self.spool = Spool(
            folder,
            reporter.author.key,
            sending=bool(destination or stows),
            sending_fhir=bool(config.fhir),
        )
        self.audit = Audit(folder / "audit.jsonl")
        self._stop = Event()
        self._parts: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="dicom-node")
        modules = ["highdicom", made_reports.__module__]
        modules += ["fhir.resources.R4B.bundle"] if config.fhir else []
        self._processes = Processes(threads(), modules=tuple(modules))
        self._senders: list[Sender] = []
        self._status: StatusServer | None = None
        self._author = reporter.author
        self._started = time.time()
        self._last_trouble = -math.inf
        try:
            self._processes.start()
            self._add_senders(destination, web if stows else None)
            if config.status_port:
                self._status = StatusServer(config.status_port, self.health, self.metrics)
            self._receiver = Receiver(config, self.spool, self.audit)
        except BaseException:
            self._close()
            raise
        self.port = self._receiver.port
        reading = predictor.adapted(limits or LimitsConfig(), processes=self._processes)
        scorer = Scorer(
            self.spool, reading, reporter, self.audit, self._processes, fhir=bool(config.fhir)
        )
        self._begin(scorer.run)
        for sender in self._senders:
            self._begin(sender.run)
        if web:
            self._begin(Poller(config, web, self.spool, self.audit).run)
        waiting = self.spool.count("films", "waiting")
        self.audit.note(
            "started", port=self.port, model=reporter.author.fingerprint, waiting=waiting
        )
        _LOGGER.info(
            "%s listens on %s:%d; reports go to %s%s; images waiting: %d",
            config.aet,
            config.host,
            self.port,
            destination or (config.dicomweb if stows else folder / "outgoing"),
            f", FHIR Bundles to {config.fhir}" if config.fhir else "",
            waiting,
        )

        if self._status:
            _LOGGER.info("/healthz and /metrics: http://127.0.0.1:%d", self._status.port)

    def _add_senders(self, destination: Peer | None, web: DicomWeb | None) -> None:
        """One sender for DICOM objects, if they are sent, and one for FHIR Bundles."""
        config = self._config
        if destination:
            self._senders.append(StoreSender(config, destination, self.spool, self.audit))
        elif web:
            self._senders.append(StowSender(config, web, self.spool, self.audit))
        if config.fhir:
            self._senders.append(FhirSender(config, self.spool, self.audit))

    def _begin(self, work: Callable[[Event], None]) -> None:
        self._parts.append(self._pool.submit(self._through_trouble, work))

    def _through_trouble(self, work: Callable[[Event], None]) -> None:
        """Run a part; start it again after a write failed, since a full disk may be emptied."""
        while True:
            try:
                work(self._stop)
                return
            except (OSError, sqlite3.OperationalError) as error:
                self._last_trouble = time.monotonic()
                _LOGGER.error("the spool can't be written: %s; trying again", error)
                if self._stop.wait(_TROUBLE_SECONDS):
                    return

    def run(self, stop: Event) -> None:
        """Run until `stop` is set.

        Raises:
            Exception: an internal error (bug) that ended one of the parts.
        """
        while not stop.is_set():
            done, _ = wait(self._parts, timeout=_WATCH_SECONDS, return_when=FIRST_COMPLETED)
            for part in done:
                part.result()

    def health(self) -> str:
        """`""` while every part works, else why not, in words without patient data."""
        if self._stop.is_set():
            return "stopping"
        if not self._parts:
            return "starting"
        if not self._receiver.listening or any(part.done() for part in self._parts):
            return "a part of the node has ended"
        if time.monotonic() - self._last_trouble < _TROUBLE_SECONDS * 2:
            return "the spool can't be written"
        try:
            self.spool.queue.rows("SELECT 1 FROM films LIMIT 1")
        except sqlite3.Error:
            return "the queue can't be read"
        return ""

    def metrics(self) -> str:
        """Counts and times of the node in the Prometheus text format, without patient data."""
        return exposition(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        author = self._author
        info = {"version": author.version, "model": author.fingerprint}
        yield Metric("info", "gauge", "version and model fingerprint", ((info, 1),))
        yield Metric.single("start_time_seconds", "gauge", "Unix time of the start", self._started)
        yield Metric.single("healthy", "gauge", "1 where /healthz is 200", not self.health())
        yield Metric("items", "gauge", "items of the spool", tuple(_items(self.spool.queue)))
        oldest = oldest_waiting(self.spool.queue)
        waited = max(time.time() - oldest, 0.0) if oldest else 0.0
        words = "age of the image that waits longest for its result"
        yield Metric.single("oldest_waiting_seconds", "gauge", words, waited)
        free = shutil.disk_usage(self.spool.folder).free
        yield Metric.single("spool_free_bytes", "gauge", "free space of the spool's disk", free)
        events = [({"event": name}, count) for name, count in sorted(self.audit.events().items())]
        words = "events of the audit log since the start"
        yield Metric("events_total", "counter", words, tuple(events))
        names = ("status", "reason", "prediction")
        results = [
            (dict(zip(names, labels, strict=True)), count)
            for labels, count in sorted(self.audit.results().items())
        ]
        yield Metric("results_total", "counter", "results since the start", tuple(results))

    def stop(self) -> dict[str, int]:
        """Accept no more images, finish those under way, keep the rest for the next start.

        Returns:
            The number of items by kind and state, since the spool exists.
        """
        end = time.monotonic() + self._config.grace
        self._receiver.stop(self._config.grace)
        self._stop.set()
        self.spool.wake()
        left = max(end - time.monotonic(), _LEAST_GRACE_SECONDS)
        if wait(self._parts, left).not_done:
            # A slow peer or a file that takes long: it is continued at the next start.
            for sender in self._senders:
                sender.abort()
            if self._web:
                self._web.stop()
            self._processes.close()
            wait(self._parts)
        counts = counted(self.spool.queue)
        self.audit.note("stopped", **counts)
        self._close()
        return counts

    def _close(self) -> None:
        if self._status:
            self._status.close()
        self._processes.close()
        self._pool.shutdown()
        for sender in self._senders:
            sender.close()
        if self._web:
            self._web.close()
        self.audit.close()
        self.spool.close()


def _items(queue: Queue) -> Iterator[tuple[dict[str, str], int]]:
    kinds = {"films": "image", "reports": "report", "fhir": "FHIR bundle", "fetches": "fetch"}
    for name, count in counted(queue).items():
        table, _, state = name.partition("_")
        yield {"kind": kinds[table], "state": state.replace("_", " ")}, count
