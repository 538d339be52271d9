"""Send reports to a destination, with retries, until it accepts them: C-STORE, STOW-RS, FHIR R4.

An unreachable destination is tried without end, at growing intervals, and no report counts a
failure for that. A report that the destination refuses, or during which it breaks off, waits for
its own retry while the others are sent; after `most_refusals` such failures it is set aside. A
report whose file was changed or lost is set aside at once.

To HTTP servers, reports (STOW-RS) and FHIR Bundles (a transaction each) are sent one by one, so
that the outcome of each is known.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from threading import Event
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, NotAvailableError
from pneumoscope.delivery.dicom_node.http_client import (
    HttpService,
    ServerError,
    ServiceOptions,
    TooLargeError,
)
from pneumoscope.delivery.dicom_node.peers import (
    LEAST_RATE,
    Connection,
    Deadline,
    Peer,
    client_context,
)
from pneumoscope.delivery.dicom_node.scorer import Audit
from pneumoscope.delivery.dicom_node.server import entity
from pneumoscope.delivery.dicom_node.spool import LostError, Outgoing, Spool

_REPORT_CLASSES = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, SegmentationStorage)

_AT_A_TIME = 50
"""Reports sent in one association."""

_MOST_IN_A_ROW = 3
"""Consecutive failures after which the destination may be the cause, and there is a pause."""

_IDLE_SECONDS = 1.0
_SUCCESS = 0x0000
_WARNINGS = range(0xB000, 0xC000)
"""PS3.4 B.2.3: stored with a warning."""

FHIR_TOKEN_VARIABLE = "PNEUMOSCOPE_FHIR_TOKEN"  # noqa: S105 - its name, not the token
_FHIR_OPTIONS = ServiceOptions(
    url="--fhir",
    token_file="--fhir-token-file",  # noqa: S106 - the option's name
    token_variable=FHIR_TOKEN_VARIABLE,
    kind="a FHIR R4 server",
    example="https://fhir.example/r4",
)
_FHIR_HEADERS = {
    "Content-Type": "application/fhir+json; fhirVersion=4.0",
    "Accept": "application/fhir+json",
    "Prefer": "return=minimal",
}
_FHIR_STORED = (200, 201)
_MOST_RESPONSE = 1 << 20


class UnreachableError(Exception):
    """The destination can't be reached; no report is at fault.

    Attributes:
        why: a short reason for the audit log.
        status: HTTP status, if there was one.
    """

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.why, self.status = why, status


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of sending one report.

    Attributes:
        stored: whether the destination has stored it.
        status: DIMSE or HTTP status of the response, if there was one.
        why: a short reason if it was not stored.
        doubtful: whether the destination may be at fault: its status says so, or it broke off.
    """

    stored: bool
    status: int | None = None
    why: str = ""
    doubtful: bool = False


class Doubts:
    """Decides whether a failure that may be the peer's fault counts against the item.

    It counts if the peer has handled another item since this one was first tried: then the peer
    works, and this item is the cause.
    """

    def __init__(self) -> None:
        self._first: dict[str | int, float] = {}
        self._tries: dict[str | int, int] = {}
        self._worked = 0.0

    def ask(self, item: str | int) -> None:
        """Record that an item is about to be tried."""
        self._first.setdefault(item, time.monotonic())

    def tries(self, item: str | int) -> int:
        """How often an item failed since it last succeeded."""
        return self._tries.get(item, 0)

    def worked(self, item: str | int) -> None:
        """Record that an item succeeded."""
        self._worked = time.monotonic()
        self._first.pop(item, None)
        self._tries.pop(item, None)

    def failed(self, item: str | int) -> tuple[bool, int]:
        """Record a failure; returns whether it counts, and how often the item failed before."""
        tries = self.tries(item)
        self._tries[item] = tries + 1
        return self._worked > self._first.get(item, math.inf), tries


class Sender(ABC):
    """Sends waiting reports until it is stopped; subclasses implement one protocol each.

    Args:
        config: retries.
        spool: source of reports.
        audit: log to which each outcome is written.
    """

    name = ""
    fhir = False
    """Whether it sends FHIR Bundles instead of DICOM objects."""

    def __init__(self, config: NodeConfig, spool: Spool, audit: Audit) -> None:
        self._config, self._spool, self._audit = config, spool, audit
        self._doubts = Doubts()

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; a report under way is finished first."""
        failures = 0
        while not stop.is_set():
            reports = self._spool.due(time.time(), _AT_A_TIME, fhir=self.fhir)
            if not reports:
                self._spool.wait(_IDLE_SECONDS)
                continue
            if self.send_all(reports, stop):
                failures = 0
            else:
                stop.wait(pause(self._config, failures))
                failures += 1

    def send_all(self, reports: list[Outgoing], stop: Event) -> bool:
        """Send reports until `stop` is set; `False` if the destination needs a pause."""
        in_a_row = 0
        for report in reports:
            self._doubts.ask(report.number)
        try:
            for report in reports:
                if stop.is_set():
                    return True
                outcome = self._outcome(report)
                if outcome is None:
                    continue
                in_a_row = 0 if outcome.stored else in_a_row + 1
                if in_a_row == _MOST_IN_A_ROW:
                    return False
        except UnreachableError as error:
            self._audit.note(
                "destination not reached", destination=self.name, why=error.why, status=error.status
            )
            return False
        finally:
            self.rest()
        return True

    def _outcome(self, report: Outgoing) -> Outcome | None:
        """Send a report and record its outcome; `None` if its file was lost.

        Raises:
            UnreachableError: there was no connection.
        """
        try:
            self._spool.check(report)
            content = report.path.read_bytes()
        except LostError as lost:
            self._set_aside(report, lost.why)
            return None
        try:
            outcome = self.send_one(report, content)
        except UnreachableError:
            raise
        except Exception as error:  # noqa: BLE001 - this report fails; the others are sent
            outcome = Outcome(False, why=type(error).__name__)
        if outcome.stored:
            self._doubts.worked(report.number)
            self._spool.sent(report)
            self._audit.note("sent", film=report.image, kind=report.kind, status=outcome.status)
        else:
            self._refused(report, outcome)
        return outcome

    @abstractmethod
    def send_one(self, report: Outgoing, content: bytes) -> Outcome:
        """Send one report.

        Raises:
            UnreachableError: the destination can't be reached.
        """

    @abstractmethod
    def rest(self) -> None:
        """Called when nothing more is waiting to be sent."""

    @abstractmethod
    def abort(self) -> None:
        """End the transfer under way, from another thread."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close connections that outlive a pause; called when the node stops."""

    def _set_aside(self, report: Outgoing, why: str) -> None:
        self._spool.set_aside(report, why)
        self._audit.note("set aside", film=report.image, kind=report.kind, why=why)

    def _refused(self, report: Outgoing, outcome: Outcome) -> None:
        works, tries = self._doubts.failed(report.number)
        counted = works or not outcome.doubtful
        refusals = report.refusals + counted
        give_up = counted and refusals >= self._config.most_refusals
        due = time.time() + pause(self._config, max(tries, report.refusals))
        why = outcome.why or f"status {outcome.status}"
        self._spool.refused(report, due, give_up=give_up, why=why, counted=counted)
        if not counted:
            self._audit.note(
                "destination not reached", destination=self.name, why=why, status=outcome.status
            )
            return
        self._audit.note(
            "given up" if give_up else "refused by destination",
            film=report.image,
            kind=report.kind,
            status=outcome.status,
            why=outcome.why,
            refusals=refusals,
        )


class StoreSender(Sender):
    """Sends by C-STORE, several reports in one association.

    Args:
        config: retries and time-outs.
        destination: the peer that receives the reports.
        spool: source of reports.
        audit: log to which each outcome is written.

    Raises:
        UsageError: TLS files can't be used.
    """

    def __init__(self, config: NodeConfig, destination: Peer, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self.name = str(destination)
        context = client_context(config)
        self._tls = (context, destination.host) if context else None
        own = entity(config)
        for report_class in _REPORT_CLASSES:
            syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            own.add_requested_context(report_class, syntaxes)
        self._connection = Connection(own, destination)
        self._association: Any = None

    def send_one(self, report: Outgoing, content: bytes) -> Outcome:
        """Send one report, in the open association or a new one."""
        dataset = dcmread(BytesIO(content))
        association = self._associated()
        seconds = self._config.dimse_timeout + len(content) / LEAST_RATE
        try:
            with Deadline(seconds, self.abort):
                status = association.send_c_store(dataset).get("Status")
        except ValueError:  # no presentation context was accepted for it (PS3.8 7.1.1.13)
            return Outcome(False, why="not accepted")
        except RuntimeError:  # the association ended in between
            status = None
        if status is None:
            self._audit.note("association lost", film=report.image, kind=report.kind)
            self.abort()
            return Outcome(False, why="association lost")
        return Outcome(status == _SUCCESS or status in _WARNINGS, status)

    def _associated(self) -> Any:
        if self._association is not None and self._association.is_established:
            return self._association
        self._association = self._connection.associate(tls_args=self._tls)
        if not self._association.is_established:
            self._association = None
            raise UnreachableError("no association")
        return self._association

    def rest(self) -> None:
        """Release the association."""
        if self._association is not None and self._association.is_established:
            with Deadline(self._config.acse_timeout, self.abort):
                self._association.release()
        self._association = None

    def abort(self) -> None:
        """Close the connection, also while it is being made."""
        self._connection.cut()


def pause(config: NodeConfig, failures: int) -> float:
    """Seconds before the next try: twice the last pause, up to a maximum."""
    # The exponent is bounded: a destination may be unreachable for days.
    return min(config.retry_first * 2.0 ** min(failures, 32), config.retry_most)


class StowSender(Sender):
    """Stores reports in a DICOMweb server (PS3.18 10.5).

    Args:
        config: retries.
        server: the destination.
        spool: where reports come from.
        audit: where each outcome is written.
    """

    def __init__(self, config: NodeConfig, server: DicomWeb, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self._server = server
        self.name = server.name

    def send_one(self, report: Outgoing, content: bytes) -> Outcome:
        """Store one report."""
        try:
            found, status = self._server.store(report.sop_uid, content)
        except ServerError as error:
            return _failed(error)
        except NotAvailableError:  # the report may have been stored
            return Outcome(False, why="response too large", doubtful=True)
        return Outcome(found == "stored", status)

    def rest(self) -> None:
        """Keep the connections for the next reports."""

    def abort(self) -> None:
        """End the request under way."""
        self._server.stop()


class FhirSender(Sender):
    """Posts the Bundle of each result to a FHIR R4 server as a transaction.

    The server stores a Bundle of type `transaction` as a whole or not at all (FHIR R4, RESTful API,
    3.1.0.11). Its entries are `PUT` under identifiers that follow from model and image, so that
    sending it again updates the same resources to the same content.

    Args:
        config: address, token file, time-outs, TLS, retries.
        spool: where Bundles come from.
        audit: where each outcome is written.

    Raises:
        UsageError: the address or the token can't be used.
    """

    fhir = True

    def __init__(self, config: NodeConfig, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self._server = HttpService(config.fhir, config.fhir_token_file, _FHIR_OPTIONS, config)
        self.name = self._server.name

    def send_one(self, report: Outgoing, content: bytes) -> Outcome:
        """Post one Bundle. Only the status counts; the response body may name the patient."""
        try:
            status, _, _ = self._server.exchange(
                "POST", "", _FHIR_HEADERS, _MOST_RESPONSE, content=content
            )
        except ServerError as error:
            return _failed(error)
        except TooLargeError as error:
            status = error.status
        return Outcome(status in _FHIR_STORED, status)

    def rest(self) -> None:
        """Keep the connections for the next Bundles."""

    def abort(self) -> None:
        """End the request under way."""
        self._server.stop()

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


def _failed(error: ServerError) -> Outcome:
    """The outcome of a request that failed, perhaps by the server's fault.

    Raises:
        UnreachableError: there was no connection at all.
    """
    if error.everywhere:
        raise UnreachableError(error.why, error.status) from error
    return Outcome(False, error.status, error.why, doubtful=True)
