"""Reports to the destination, again and again until it takes them; and how, by C-STORE.

Comes in: reports that wait. Goes out: the same, sent. Knows nothing of films or models. A
destination that can't be reached is tried for ever, at growing intervals; a report that it refuses
is tried `most_refusals` times and then stays in the spool, given up.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from threading import Event
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import (
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
)

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.peers import Peer, client_context
from pneumoscope.delivery.dicom_node.receiver import entity
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool

_AT_A_TIME = 50
"""Reports that are sent in one association."""

_IDLE_SECONDS = 1.0
_SUCCESS = 0x0000
_WARNINGS = range(0xB000, 0xC000)
"""PS3.4 B.2.3: stored, with a remark."""


class Sender(ABC):
    """Sends until it is stopped; how, its kinds know.

    Args:
        config: retries.
        spool: where reports come from.
        audit: is told of every one.
    """

    def __init__(self, config: NodeConfig, spool: Spool, audit: Audit) -> None:
        self._config, self._spool, self._audit = config, spool, audit

    def run(self, stop: Event) -> None:
        """Work until `stop`; a report that is on its way is ended first."""
        failures = 0
        while not stop.is_set():
            reports = self._spool.due(time.time(), _AT_A_TIME)
            if not reports:
                self._spool.wait(_IDLE_SECONDS)
                continue
            if self.send(reports, stop):
                failures = 0
            else:
                stop.wait(pause(self._config, failures))
                failures += 1

    @abstractmethod
    def send(self, reports: list[Outgoing], stop: Event) -> bool:
        """Send reports until `stop`; whether the destination could be spoken to."""

    def _sent(self, report: Outgoing, status: int) -> None:
        self._spool.sent(report)
        self._audit.note("sent", film=report.film, kind=report.kind, status=status)

    def _refused(self, report: Outgoing, status: int | None) -> None:
        give_up = report.refusals + 1 >= self._config.most_refusals
        due = time.time() + pause(self._config, report.refusals)
        self._spool.refused(report, due, give_up=give_up)
        self._audit.note(
            "given up" if give_up else "refused by destination",
            film=report.film,
            kind=report.kind,
            status=status,
            refusals=report.refusals + 1,
        )


class StoreSender(Sender):
    """Sends by C-STORE.

    Args:
        config: retries and time-outs.
        destination: who gets the reports.
        spool: where they come from.
        audit: is told of every one.

    Raises:
        UsageError: TLS files can't be used.
    """

    def __init__(self, config: NodeConfig, destination: Peer, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self._destination = destination
        self._context = client_context(config)
        self._entity = entity(config)
        for report_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            self._entity.add_requested_context(report_class, syntaxes)

    def send(self, reports: list[Outgoing], stop: Event) -> bool:
        """Send reports in one association; whether the destination could be spoken to."""
        tls = (self._context, self._destination.host) if self._context else None
        association = self._entity.associate(
            self._destination.host,
            self._destination.port,
            ae_title=self._destination.aet,
            tls_args=tls,
        )
        if not association.is_established:
            self._audit.note("destination not reached", destination=str(self._destination))
            return False
        try:
            for report in reports:
                if stop.is_set():
                    break
                if not self._send_one(association, report):
                    return False
        finally:
            if association.is_established:
                association.release()
        return True

    def _send_one(self, association: Any, report: Outgoing) -> bool:
        """Send one report; `False` if the association is of no more use."""
        try:
            status = association.send_c_store(report.path).get("Status")
        except ValueError:  # the destination agreed on no context for it (PS3.8 7.1.1.13)
            self._refused(report, None)
            return True
        except RuntimeError:  # the association ended meanwhile
            status = None
        if status is None:
            self._audit.note("association lost", film=report.film, kind=report.kind)
            return False
        if status == _SUCCESS or status in _WARNINGS:
            self._sent(report, status)
        else:
            self._refused(report, status)
        return True


def pause(config: NodeConfig, failures: int) -> float:
    """Seconds before the next try: twice the last, up to the most."""
    # The exponent is bounded, for a destination that is away for days.
    return min(config.retry_first * 2.0 ** min(failures, 32), config.retry_most)
