"""Search a DICOMweb server for new images at intervals, and fetch them into the spool.

An image that the spool has seen is not fetched again, whatever its result was, unless its file was
lost. An image that is not available waits for its own retry while others are fetched; each try is
counted before it begins, because an image may end the program.
"""

from __future__ import annotations

import time
from datetime import date, timedelta
from threading import Event

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, Found, NotAvailableError
from pneumoscope.delivery.dicom_node.http_client import ServerError, stated_uids
from pneumoscope.delivery.dicom_node.scorer import MOST_ATTEMPTS, Audit
from pneumoscope.delivery.dicom_node.sender import Doubts, pause
from pneumoscope.delivery.dicom_node.spool import Spool

MODALITIES = ("CR", "DX")
_CALLER = "DICOMweb"
_MOST_TRIES = 3
"""Tries after which an image that is not available is set aside."""

_MOST_IN_A_ROW = 3
"""Consecutive failures after which the server may be the cause, and there is a pause."""


class Poller:
    """Searches until it is stopped.

    Args:
        config: how often, how far back.
        server: source of images.
        spool: destination of images.
        audit: log to which each event is written.
    """

    def __init__(self, config: NodeConfig, server: DicomWeb, spool: Spool, audit: Audit) -> None:
        self._config, self._server, self._spool, self._audit = config, server, spool, audit
        self._doubts = Doubts()
        self._unusable: dict[str, int] = {}

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; an image under way is finished first."""
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
        """Fetch each image that the server lists and the spool has not seen.

        Raises:
            ServerError: a request failed; images that were fetched stay.
            OSError, sqlite3.Error: the spool can't be written.
        """
        dates = _dates(self._config.dicomweb_days)
        for modality in MODALITIES:
            for number, (images, unusable) in enumerate(self._server.search(modality, dates)):
                self._note_unusable(f"{modality} {number}", unusable)
                self._fetch_all(images, stop)
                if stop.is_set():
                    return

    def _fetch_all(self, images: list[Found], stop: Event) -> None:
        """Fetch the images of one page; several failures in a row may be the server's fault.

        Raises:
            ServerError: a request failed; a later one may succeed.
        """
        in_a_row = 0
        wanted = [image for image in images if self._spool.fetchable(image.sop, time.time())]
        # Images that failed before come last, so that they can't keep the others from their turn.
        wanted.sort(key=lambda image: self._doubts.tries(image.sop))
        for image in wanted:
            self._doubts.ask(image.sop)
        for image in wanted:
            if stop.is_set():
                return
            in_a_row = 0 if self._fetch(image) else in_a_row + 1
            if in_a_row == _MOST_IN_A_ROW:
                raise ServerError(f"{in_a_row} images in a row could not be retrieved")

    def _note_unusable(self, page: str, count: int) -> None:
        """Tell of rows without UIDs when their number changes, not at each search."""
        if count != self._unusable.get(page, 0):
            self._audit.note("rows without UIDs", server=self._server.name, rows=count)
        self._unusable[page] = count

    def _fetch(self, image: Found) -> bool:
        """Fetch one image into the spool; returns whether the server works.

        A problem with this image alone is recorded, and the others are fetched.

        Raises:
            ServerError: a request failed; a later one may succeed.
            _FullError: the queue or the disk is full.
        """
        number, tries = self._spool.begin_fetch(image.sop)
        if tries > max(MOST_ATTEMPTS, self._config.most_refusals):
            self._failed(number, tries, "ended the program", most=0)
            return True
        try:
            began = time.monotonic()
            content = self._server.retrieve(image, self._config.max_bytes)
            stated = stated_uids(content)
            if stated.sop != image.sop:
                raise NotAvailableError("its UID differs from the one that was requested")
            if stated.missing:
                raise NotAvailableError(f"it states no {stated.missing}")
        except NotAvailableError as error:
            self._failed(number, tries, str(error), most=_MOST_TRIES)
            return True
        except ServerError as error:
            if error.everywhere:
                self._spool.not_fetched(number, "", counted=False)
                raise
            works, before = self._doubts.failed(image.sop)
            if works:
                self._failed(number, tries, str(error), most=self._config.most_refusals)
            else:
                due = time.time() + pause(self._config, max(before, tries - 1))
                self._spool.not_fetched(number, str(error), due, counted=False)
                self._audit.note(
                    "not retrieved", fetch=number, caller=_CALLER, why=str(error), tries=tries - 1
                )
            return False
        self._doubts.worked(image.sop)
        found, film = self._spool.receive(
            image.sop, content, self._config.max_waiting, self._config.min_free
        )
        if found == "full":
            self._spool.not_fetched(number, "", counted=False)
            self._audit.note("turned away", caller=_CALLER, why="queue or disk full")
            raise _FullError
        self._spool.fetched(image.sop)
        self._audit.note(
            "received",
            film=film,
            caller=_CALLER,
            bytes=len(content),
            seconds=round(time.monotonic() - began, 3),
        )
        return True

    def _failed(self, number: int, tries: int, why: str, *, most: int) -> None:
        """Record a failure of this image, the one of that number of tries."""
        give_up = tries >= most
        due = time.time() + pause(self._config, tries)
        self._spool.not_fetched(number, why, due, give_up=give_up)
        event = "given up" if give_up else "not retrieved"
        self._audit.note(event, fetch=number, caller=_CALLER, why=why, tries=tries)


class _FullError(Exception):
    """The queue or the disk is full."""


def _dates(days: int) -> str:
    """Range of study dates: `days` ago until tomorrow, since time zones differ; 0: any."""
    if not days:
        return ""
    today = date.today()
    first, last = today - timedelta(days), today + timedelta(1)
    return f"{first:%Y%m%d}-{last:%Y%m%d}"
