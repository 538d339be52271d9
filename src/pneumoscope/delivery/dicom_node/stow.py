"""Reports to a DICOMweb server by STOW-RS, one by one: of each it is known what became of it."""

from __future__ import annotations

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.answerer import Audit
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, DicomWebError
from pneumoscope.delivery.dicom_node.sender import Outcome, Sender, UnreachableError
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool


class StowSender(Sender):
    """Stores reports in a DICOMweb server.

    Args:
        config: retries.
        server: who gets the reports.
        spool: where they come from.
        audit: is told of every one.
    """

    def __init__(self, config: NodeConfig, server: DicomWeb, spool: Spool, audit: Audit) -> None:
        super().__init__(config, spool, audit)
        self._server = server
        self.name = server.name

    def send_one(self, report: Outgoing, content: bytes) -> Outcome:
        """Store one report."""
        try:
            found, status = self._server.store(report.sop_uid, content)
        except DicomWebError as error:
            if error.everywhere:
                raise UnreachableError(error.why, error.status) from error
            return Outcome(False, error.status, error.why, doubtful=True)
        return Outcome(found == "stored", status)

    def rest(self) -> None:
        """Connections are kept for the next time."""

    def abort(self) -> None:
        """End the request that is on its way."""
        self._server.stop()
