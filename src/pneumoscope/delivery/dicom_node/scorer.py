"""Score the images of the spool with the `Predictor`, and write the audit log.

A problem with one image affects that image only: it is set aside or tried again a few times, and
the others are scored. Files are read in worker processes that can be ended, because they are not
trusted.

The audit log is a file of JSON lines without patient data: no name, identifier, date or UID of a
patient, study or image. An image is identified by its row number in the spool's queue. An audit
line that the disk refuses is left out as a whole; the next line that is written states how many are
missing.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from pneumoscope.delivery.dicom_node.spool import FHIR, Incoming, LostError, Spool
from pneumoscope.delivery.dicom_node.status import note_result
from pneumoscope.delivery.dicom_report.objects import Reporter, ReportObject
from pneumoscope.delivery.dicom_report.source import source_image
from pneumoscope.delivery.fhir import Subject, bundle_identifier, fhir_bundle
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.grey import count_warnings, join_warnings
from pneumoscope.inference.overlay import shrunk
from pneumoscope.inference.predictor import BATCH, Predictor
from pneumoscope.inference.processes import CallError, EndedError, Processes, StoppedError
from pneumoscope.inference.results import Result
from pneumoscope.storage import LineFile

Fact = str | int | float | bool | None

_LOGGER = logging.getLogger(__name__)
MOST_ATTEMPTS = 5
"""Attempts after which an image that fails, or ends the process, is set aside."""

_IDLE_SECONDS = 1.0


class Audit:
    """Append events to one file; safe for any number of threads.

    A line was handed to the operating system when `note` returns.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)
        self._lock = threading.Lock()
        self._open = True
        self._missing = 0
        self._events: Counter[str] = Counter()
        self._results: Counter[tuple[str, str, str]] = Counter()

    def note(self, event: str, **facts: Fact) -> None:
        """Write one line with time (UTC), event and facts; count it if that fails."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if not self._open:
                return
            self._events[event] += 1
            if event == "answered":
                names = (str(facts.get(name) or "") for name in ("status", "reason", "prediction"))
                self._results[next(names), next(names), next(names)] += 1
            missing = {"lines_missing": self._missing} if self._missing else {}
            line = json.dumps({"time": time, "event": event, **facts, **missing}) + "\n"
            try:
                self._file.append(line.encode())
                self._missing = 0
            except OSError:
                self._missing += 1

    def events(self) -> dict[str, int]:
        """How often each event happened since the start, lines that were lost included."""
        with self._lock:
            return dict(self._events)

    def results(self) -> dict[tuple[str, str, str], int]:
        """Images since the start by status, reason and prediction; `""` where there is none."""
        with self._lock:
            return dict(self._results)

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            if self._open:
                self._file.close()
            self._open = False


Made = tuple[ReportObject, ...] | Reason


class Scorer:
    """Scores waiting images until it is stopped.

    Args:
        spool: source of images and destination of reports.
        predictor: the model.
        reporter: makes reports of results.
        audit: log to which each result is written.
        processes: worker processes that read files.
        fhir: whether each result becomes a FHIR Bundle as well.
    """

    def __init__(
        self,
        spool: Spool,
        predictor: Predictor,
        reporter: Reporter,
        audit: Audit,
        processes: Processes,
        *,
        fhir: bool = False,
    ) -> None:
        self._spool, self._audit = spool, audit
        self._fhir = fhir
        self._predictor, self._reporter = predictor, reporter
        self._processes = processes
        self._works = False

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; images under way are finished first."""
        while not stop.is_set():
            for number in self._spool.give_up(MOST_ATTEMPTS):
                self._audit.note("given up", film=number, why="ended the program")
            images = self._spool.take(BATCH)
            if images:
                self.score(images)
            else:
                self._spool.wait(_IDLE_SECONDS)

    def score(self, images: list[Incoming]) -> None:
        """Score images that were taken from the queue; put the rest back if the disk fails."""
        whole = [image for image in images if self._is_whole(image)]
        ended = 0
        began = time.monotonic()
        results = self._predictor.predict_files([image.path for image in whole], keep=shrunk)
        try:
            for image, result in zip(whole, results, strict=True):
                self._finish(image, result, began)
                self._works = True
                ended += 1
                began = time.monotonic()
        except StoppedError:  # they go on at the next start
            self._spool.put_back(whole[ended:])
        except (OSError, sqlite3.Error):
            self._spool.put_back(whole[ended:])
            raise
        except Exception as error:  # noqa: BLE001 - one image failed; it is tried alone
            self._failed(whole[ended:], error)
        finally:
            results.close()

    def _is_whole(self, image: Incoming) -> bool:
        try:
            self._spool.check(image)
        except LostError as lost:
            self._set_aside(image, lost.why)
            return False
        return True

    def _failed(self, images: list[Incoming], error: Exception) -> None:
        """Handle an exception that one image of a batch raised; which one is not known.

        The images stay counted as begun, and the queue gives such images one at a time.

        Raises:
            Exception: `error`, if no image was scored yet: the model may be the cause.
        """
        if not self._works:
            raise error
        _LOGGER.error("scoring images failed: %s", type(error).__name__)
        self._audit.note("failed", films=len(images), why=type(error).__name__)
        if len(images) == 1 and images[0].attempts >= MOST_ATTEMPTS:
            self._set_aside(images[0], f"failed {images[0].attempts} times: {type(error).__name__}")

    def _set_aside(self, image: Incoming, why: str) -> None:
        self._spool.set_aside(image, why)
        self._audit.note("set aside", film=image.number, why=why)

    def _finish(self, image: Incoming, result: Result, began: float) -> None:
        reports = self._reports(image, result)
        if reports is None:
            return
        prediction = result.prediction
        author = self._reporter.author
        note_result(self._spool.folder, image.sha256, reports, prediction, author)
        new = self._spool.answered(image, reports)
        self._audit.note(
            "answered",
            film=image.number,
            status=prediction.status,
            reason=prediction.reason.value if prediction.reason else None,
            probability=prediction.probability,
            prediction=prediction.prediction,
            threshold=prediction.threshold,
            input_score=prediction.input_score,
            # Kinds of warnings only: header values may name the patient.
            warnings=join_warnings(sorted(count_warnings([prediction.warnings]))),
            reports=new,
            seconds=round(time.monotonic() - began, 3),
        )

    def _reports(self, image: Incoming, result: Result) -> tuple[ReportObject, ...] | None:
        """The reports of a result; `None` if there are none, and the image was set aside."""
        try:
            made: Made = self._processes.call(
                made_reports, self._reporter, image.path, result, self._fhir
            )
        except (EndedError, CallError) as error:
            words = "took too long" if isinstance(error, EndedError) and error.late else "failed"
            self._set_aside(image, f"making its report {words}")
            return None
        if isinstance(made, Reason):
            self._set_aside(image, f"no report can be made: {made.value}")
            return None
        if self._fhir and all(item.kind != FHIR for item in made):
            self._audit.note("no FHIR bundle", film=image.number)
        return made


def made_reports(reporter: Reporter, path: Path, result: Result, fhir: bool = False) -> Made:
    """Make the reports of a result for the file `path`; runs in a worker process.

    Returns:
        The reports, or the reason why there are none.
    """
    try:
        content = path.read_bytes()
        made = reporter.objects(content, result)
        return (*made, *_fhir_bundles(reporter, content, result)) if fhir else made
    except ImageRefusedError as refusal:
        return refusal.reason


def _fhir_bundles(reporter: Reporter, content: bytes, result: Result) -> tuple[ReportObject, ...]:
    """The FHIR Bundle of a result; none if FHIR has no place even for its identifiers."""
    author = reporter.author
    subject = Subject.of(source_image(content, result.prediction.path, reporter.limits))
    with suppress(ValueError):
        text = fhir_bundle(subject, author, result.prediction, transaction=True)
        return (ReportObject(FHIR, "", bundle_identifier(subject, author), text.encode()),)
    return ()
