"""New images from a DICOMweb server into the spool, searched for every so often.

What the spool has seen is not fetched again, whatever the result was. An image that can't be had
waits by itself, and the others are fetched.
"""

from __future__ import annotations

import time
from datetime import date, timedelta
from threading import Event

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, Found, NotAvailableError
from pneumoscope.delivery.dicom_node.http_client import ServerError
from pneumoscope.delivery.dicom_node.scorer import Audit
from pneumoscope.delivery.dicom_node.sender import Doubts, pause
from pneumoscope.delivery.dicom_node.spool import Spool
from pneumoscope.delivery.dicom_node.wire import stated_uids

MODALITIES = ("CR", "DX")
_CALLER = "DICOMweb"
_MOST_TRIES = 3
"""An image that is not there so often is set aside."""

_MOST_IN_A_ROW = 3
"""Images that fail one after the other: then it may be the server, and there is a pause."""


class Poller:
    """Searches until it is stopped.

    Args:
        config: how often, how far back.
        server: where films are.
        spool: where they go.
        audit: is told of everything.
    """

    def __init__(self, config: NodeConfig, server: DicomWeb, spool: Spool, audit: Audit) -> None:
        self._config, self._server, self._spool, self._audit = config, server, spool, audit
        self._doubts = Doubts()

    def run(self, stop: Event) -> None:
        """Work until `stop`; a film that is on its way is ended first."""
        failures = 0
        while not stop.is_set():
            try:
                self.search(stop)
                failures = 0
                wait = self._config.poll
            except _FullError:
                wait = self._config.poll
            except ServerError as error:
                self._audit.note(
                    "server not reached",
                    server=self._server.name,
                    why=error.why,
                    status=error.status,
                )
                wait = pause(self._config, failures)
                failures += 1
            stop.wait(wait)

    def search(self, stop: Event) -> None:
        """Every film that is there and not in the spool, into the spool.

        Raises:
            ServerError: the server can't be asked now; what was fetched stays.
            OSError, sqlite3.Error: the spool can't be written.
        """
        for modality in MODALITIES:
            seen: set[Found] = set()
            offset = 0
            while not stop.is_set():
                page = self._page(modality, offset)
                new = [image for image in page if image not in seen]
                self._fetch_all(new, stop)
                if stop.is_set():
                    return
                # A server may give shorter pages than asked for, or all that it has each time.
                if not new:
                    break
                seen.update(new)
                offset += len(page)

    def _fetch_all(self, images: list[Found], stop: Event) -> None:
        """Images of one page; so many failures in a row may be the server's.

        Raises:
            ServerError: the server can't be asked now.
        """
        in_a_row = 0
        wanted = [image for image in images if self._spool.fetchable(image.sop, time.time())]
        for image in wanted:
            self._doubts.ask(image.sop)
        for image in wanted:
            if stop.is_set():
                return
            in_a_row = 0 if self._fetch(image) else in_a_row + 1
            if in_a_row == _MOST_IN_A_ROW:
                raise ServerError(f"{in_a_row} images in a row could not be retrieved")

    def _page(self, modality: str, offset: int) -> list[Found]:
        try:
            return self._server.search(modality, _dates(self._config.dicomweb_days), offset)
        except NotAvailableError as error:
            raise ServerError("search answered with too much") from error

    def _fetch(self, image: Found) -> bool:
        """One image into the spool.

        What is wrong with it alone is put down, and the others are fetched.

        Raises:
            ServerError: the server can't be asked now.
            _FullError: there is no room for any.
        """
        try:
            began = time.monotonic()
            content = self._server.retrieve(image, self._config.max_bytes)
            stated = stated_uids(content)
            if stated.sop != image.sop:
                raise NotAvailableError("it has another UID than was asked for")
            if stated.missing:
                raise NotAvailableError(f"it states no {stated.missing}")
        except NotAvailableError as error:
            self._failed(image, str(error), counted=True, most=_MOST_TRIES)
            return True
        except ServerError as error:
            if error.everywhere:
                raise
            works, _ = self._doubts.failed(image.sop)
            self._failed(image, str(error), counted=works, most=self._config.most_refusals)
            return False
        self._doubts.worked(image.sop)
        found, number = self._spool.receive(
            image.sop, content, self._config.max_waiting, self._config.min_free
        )
        if found == "full":
            self._audit.note("turned away", caller=_CALLER, why="queue or disk full")
            raise _FullError
        self._spool.fetched(image.sop)
        self._audit.note(
            "received",
            film=number,
            caller=_CALLER,
            bytes=len(content),
            seconds=round(time.monotonic() - began, 3),
        )
        return True

    def _failed(self, image: Found, why: str, *, counted: bool, most: int) -> None:
        number, refusals = self._spool.not_fetched(image.sop, why, counted=counted)
        give_up = counted and refusals >= most
        due = time.time() + pause(self._config, refusals)
        self._spool.fetch_again(number, due, give_up=give_up)
        event = "given up" if give_up else "not retrieved"
        self._audit.note(event, fetch=number, caller=_CALLER, why=why, tries=refusals)


class _FullError(Exception):
    """The spool takes no more images now."""


def _dates(days: int) -> str:
    """Studies from so many days ago until tomorrow, for clocks and time zones differ; 0: any."""
    if not days:
        return ""
    today = date.today()
    first, last = today - timedelta(days), today + timedelta(1)
    return f"{first:%Y%m%d}-{last:%Y%m%d}"
