"""New films from a DICOMweb server into the spool, searched for every so often.

Comes in: a server. Goes out: films in the spool, as if they had been sent. What the spool has seen
is not fetched again, whatever it was answered; knows nothing of models, looks into no film.
"""

from __future__ import annotations

import time
from datetime import date, timedelta
from threading import Event

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.dicomweb import (
    DicomWeb,
    DicomWebError,
    Found,
    NotThereError,
)
from pneumoscope.delivery.dicom_node.sender import pause
from pneumoscope.delivery.dicom_node.spool import Spool

MODALITIES = ("CR", "DX")
_CALLER = "DICOMweb"
_MOST_TRIES = 3
"""A film that can't be had so often is left, until the next start."""


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
        self._tries: dict[str, int] = {}

    def run(self, stop: Event) -> None:
        """Work until `stop`; a film that is on its way is ended first."""
        failures = 0
        while not stop.is_set():
            try:
                self.search(stop)
                failures = 0
                wait = self._config.poll
            except DicomWebError as error:
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
            DicomWebError: the server can't be asked now; what was fetched stays.
            OSError, sqlite3.Error: the spool can't be written.
        """
        for modality in MODALITIES:
            seen: set[Found] = set()
            offset = 0
            while not stop.is_set():
                page = self._page(modality, offset)
                new = [film for film in page if film not in seen]
                for film in new:
                    if stop.is_set() or not self._fetch(film):
                        return
                # A server may give shorter pages than asked for, or all that it has each time.
                if not new:
                    break
                seen.update(new)
                offset += len(page)

    def _page(self, modality: str, offset: int) -> list[Found]:
        try:
            return self._server.search(modality, _dates(self._config.dicomweb_days), offset)
        except NotThereError as error:
            raise DicomWebError("search answered with too much") from error

    def _fetch(self, film: Found) -> bool:
        """One film into the spool, if it is new; `False` if there is no room for any."""
        if self._spool.knows(film.sop) or self._tries.get(film.sop, 0) >= _MOST_TRIES:
            return True
        try:
            began = time.monotonic()
            content = self._server.retrieve(film, self._config.max_bytes)
        except NotThereError as error:
            self._tries[film.sop] = self._tries.get(film.sop, 0) + 1
            self._audit.note("not retrieved", caller=_CALLER, why=str(error))
            return True
        found, number = self._spool.receive(
            film.sop, content, self._config.max_waiting, self._config.min_free
        )
        if found == "full":
            self._audit.note("turned away", caller=_CALLER, why="queue or disk full")
            return False
        self._audit.note(
            "received",
            film=number,
            caller=_CALLER,
            bytes=len(content),
            seconds=round(time.monotonic() - began, 3),
        )
        return True


def _dates(days: int) -> str:
    """Studies from so many days ago until tomorrow, for clocks and time zones differ; 0: any."""
    if not days:
        return ""
    today = date.today()
    first, last = today - timedelta(days), today + timedelta(1)
    return f"{first:%Y%m%d}-{last:%Y%m%d}"
