"""Reports to a DICOMweb server by STOW-RS, again and again until it takes them.

Comes in: reports that wait. Goes out: the same, stored. Knows nothing of films or models.
"""

from __future__ import annotations

from threading import Event

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, DicomWebError
from pneumoscope.delivery.dicom_node.sender import Sender
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool


class StowSender(Sender):
    """Stores reports one by one, so that of each it is known what became of it.

    Args:
        config: retries.
        server: who gets the reports.
        spool: where they come from.
        audit: is told of every one.
    """

    def __init__(self, config: NodeConfig, server: DicomWeb, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self._server = server

    def send(self, reports: list[Outgoing], stop: Event) -> bool:
        """Store reports; whether the server could be spoken to."""
        for report in reports:
            if stop.is_set():
                break
            try:
                found, status = self._server.store(report.sop_uid, report.path.read_bytes())
            except DicomWebError as error:
                self._audit.note(
                    "destination not reached",
                    destination=self._server.name,
                    why=error.why,
                    status=error.status,
                )
                return False
            if found == "stored":
                self._sent(report, status)
            else:
                self._refused(report, status)
        return True
