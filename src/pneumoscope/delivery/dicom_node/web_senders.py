"""Senders to HTTP servers: reports by STOW-RS, FHIR Bundles by a FHIR R4 transaction.

Items are sent one by one, so that the outcome of each is known.
"""

from __future__ import annotations

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, NotAvailableError
from pneumoscope.delivery.dicom_node.http_client import (
    HttpService,
    ServerError,
    ServiceOptions,
    TooLargeError,
)
from pneumoscope.delivery.dicom_node.scorer import Audit
from pneumoscope.delivery.dicom_node.sender import Outcome, Sender, UnreachableError
from pneumoscope.delivery.dicom_node.spool import Outgoing, Spool

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
