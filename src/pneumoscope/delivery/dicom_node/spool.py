"""Images and reports in transit: files, and a queue that says what is to be done with each.

    SPOOL/queue.sqlite    a row per image and per report, for ever: what came once is known again
    SPOOL/incoming/       an image each, until its reports are in the queue
    SPOOL/outgoing/       a report each, until it was sent
    SPOOL/quarantine/     files that were found damaged: never answered for, never sent
    SPOOL/audit.jsonl
    SPOOL/results.jsonl   what was answered, for `node results`
    SPOOL/lock            held by the node that has the spool

    image     waiting ──reports made──▶ answered      waiting ──its own fault──▶ set aside
    report    waiting ──taken──▶ sent                 waiting ──its own fault──▶ set aside
              (kept: nobody to send to)

The order of writing is what makes a kill harmless. In: file on disk, then row, then
acknowledgement. Answered: reports on disk, then their rows and the image's new state in one
transaction, then the image's file goes. Out: sent, then the row, then the file goes. Files without
a row that needs them are what a kill left over; they go on opening. Only between sending and its
row may a kill make a report be sent once more: the same bytes under the same UID, which an archive
keeps once. Names of files are our own: what a caller calls its image never gets near a path.

What fails is set aside by itself, and the rest goes on. `Lost` is raised where a file is not what
its row says: the digest of every file is in its row.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pneumoscope.delivery.dicom_node.queue import QUEUE_FILE, Queue
from pneumoscope.delivery.dicom_report.objects import ReportObject
from pneumoscope.storage import claim_folder, remove_leftovers, sha256_of_file, write_bytes

Received = Literal["new", "other content", "again", "known", "full"]
Table = Literal["films", "reports", "fetches"]

MISSING, DAMAGED, UNREADABLE = "file missing", "file damaged", "file can't be read"
FHIR: Final = "fhir"
"""The kind of an item of `outgoing/` that is a FHIR Bundle; others are DICOM objects."""

_SUFFIXES = (".dcm", ".json")
_LOST = (MISSING, DAMAGED, UNREADABLE)


@dataclass(frozen=True, slots=True)
class Incoming:
    """An image to be answered for.

    Attributes:
        number: of its row.
        path: its file.
        attempts: how often it was begun, this time included.
        sha256: hex digest of its file, "" where that is not known.
        variant: "", or its digest if another image came before under the same UID: so that its
            reports have UIDs of their own.
    """

    number: int
    path: Path
    attempts: int
    sha256: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A report to be sent; `film` is the number of the image that it is about."""

    number: int
    image: int
    kind: str
    sop_uid: str
    path: Path
    refusals: int
    sha256: str = ""


class LostError(Exception):
    """The file of one image or report is not what was put there; nothing else is concerned."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Spool:
    """One node's images and reports; safe for any number of threads of one process.

    Args:
        folder: made if it is not there.
        model: fingerprint of the model that answers; an image is known again for the same model
            only.
        sending: whether reports will be sent; else they are kept.
        sending_fhir: whether FHIR Bundles will be sent; else they are kept.

    Raises:
        UsageError: another node has this spool, its queue is damaged, or a file stands where the
            folder should be.
        OSError: the folder can't be written.
    """

    def __init__(
        self, folder: Path, model: str, *, sending: bool, sending_fhir: bool = False
    ) -> None:
        self.folder = folder
        self._incoming, self._outgoing = folder / "incoming", folder / "outgoing"
        self._quarantine = folder / "quarantine"
        for place in (folder, self._incoming, self._outgoing, self._quarantine):
            claim_folder(place)
        self._model = model
        self._sending = {False: sending, True: sending_fhir}
        self.changed = threading.Condition()
        known = (folder / QUEUE_FILE).exists()
        self.queue = Queue(folder, alone=True)
        # Whether reports are sent is a setting that may change between two starts.
        for fhir, sends in self._sending.items():
            old, new = ("kept", "waiting") if sends else ("waiting", "kept")
            self.queue.update(
                "UPDATE reports SET state = ? WHERE state = ? AND (kind = ?) = ?",
                (new, old, FHIR, fhir),
            )
        self._sweep(known)

    def close(self) -> None:
        """Give the spool free for another process."""
        self.queue.close()

    def receive(
        self, sop_uid: str, content: bytes, most_waiting: int, min_free: int
    ) -> tuple[Received, int]:
        """Keep an image. When this returns it is on disk, or was before.

        What is known is the UID together with the content.

        Returns:
            What it was, and the number of the image: `full` (and 0) if it was not taken; `again`
            if it is known and has no result, since it or its report was lost here.

        Raises:
            OSError, sqlite3.Error: it could not be kept.
        """
        digest = hashlib.sha256(content).hexdigest()
        number, lost = self._known(sop_uid, digest)
        if number and not lost:
            return "known", number
        free = shutil.disk_usage(self.folder).free
        if self.count("films", "waiting") >= most_waiting or free < min_free + len(content):
            return "full", 0
        name = f"{uuid.uuid4().hex}.dcm"
        _put(self._incoming / name, content)
        if number:
            self.queue.update(
                "UPDATE films SET file = ?, state = 'waiting', attempts = 0, why = '' WHERE id = ?",
                (name, number),
            )
            self.wake()
            return "again", number
        found: Received = "other content" if self.knows(sop_uid) else "new"
        try:
            with self.queue.transaction() as database:
                row = database.execute(
                    "INSERT INTO films (sop_uid, model, sha256, file, state, received)"
                    " VALUES (?, ?, ?, ?, 'waiting', ?)",
                    (sop_uid, self._model, digest, name, time.time()),
                ).lastrowid
                database.execute(
                    "DELETE FROM fetches WHERE sop_uid = ? AND model = ?", (sop_uid, self._model)
                )
        except sqlite3.IntegrityError:  # the same image by two associations at once
            (self._incoming / name).unlink()
            return "known", self._known(sop_uid, digest)[0]
        self.wake()
        return found, int(row or 0)

    def knows(self, sop_uid: str) -> bool:
        """Whether an image came before under this UID, for the model that answers."""
        query = "SELECT 1 FROM films WHERE sop_uid = ? AND model = ?"
        return bool(self.queue.rows(query, (sop_uid, self._model)))

    def _known(self, sop_uid: str, digest: str) -> tuple[int, bool]:
        """The number of an image, 0 for none, and whether there will be no report of it."""
        rows = self.queue.rows(
            "SELECT id, state = 'set aside' OR EXISTS (SELECT 1 FROM reports WHERE film = films.id"
            " AND state = 'set aside' AND why IN (?, ?, ?))"
            " FROM films WHERE sop_uid = ? AND model = ? AND sha256 = ?",
            (*_LOST, sop_uid, self._model, digest),
        )
        return (rows[0][0], bool(rows[0][1])) if rows else (0, False)

    def give_up(self, most_attempts: int) -> list[int]:
        """Set aside the images that were begun too often; returns their numbers.

        By their rows alone: their files, at which the program may have ended, are not looked at.
        """
        rows = self.queue.rows(
            "SELECT id FROM films WHERE state = 'waiting' AND attempts >= ?", (most_attempts,)
        )
        if rows:
            self.queue.update(
                "UPDATE films SET state = 'set aside', why = 'ended the program ' || attempts ||"
                " ' times' WHERE state = 'waiting' AND attempts >= ?",
                (most_attempts,),
            )
        return [number for (number,) in rows]

    def take(self, most: int) -> list[Incoming]:
        """The images that have waited longest; each is counted as begun, before it is.

        What was begun before and never ended may have ended its process: it is given alone, and
        those that never were come first.
        """
        with self.queue.transaction() as database:
            rows = database.execute(
                "SELECT id, file, attempts, sha256, EXISTS (SELECT 1 FROM films AS older WHERE"
                " older.sop_uid = films.sop_uid AND older.model = films.model AND"
                " older.id < films.id) FROM films WHERE state = 'waiting'"
                " ORDER BY attempts, id LIMIT ?",
                (most,),
            ).fetchall()
            rows = [row for row in rows if row[2] == 0] or rows[:1]
            database.executemany(
                "UPDATE films SET attempts = attempts + 1 WHERE id = ?", [(r[0],) for r in rows]
            )
        return [
            Incoming(number, self._incoming / file, tried + 1, digest, digest if later else "")
            for number, file, tried, digest, later in rows
        ]

    def put_back(self, images: Iterable[Incoming]) -> None:
        """Images that were taken and could not be ended for no fault of theirs."""
        with self.queue.transaction() as database:
            database.executemany(
                "UPDATE films SET attempts = attempts - 1 WHERE id = ? AND state = 'waiting'",
                [(image.number,) for image in images],
            )

    def check(self, item: Incoming | Outgoing) -> None:
        """See that a file is what was put there; a damaged one goes to quarantine.

        Raises:
            LostError: it is missing, damaged, or can't be read.
        """
        try:
            if item.sha256 and sha256_of_file(item.path) != item.sha256:
                with suppress(OSError):
                    item.path.replace(self._quarantine / item.path.name)
                raise LostError(DAMAGED)
            item.path.stat()
        except FileNotFoundError as error:
            raise LostError(MISSING) from error
        except OSError as error:
            raise LostError(UNREADABLE) from error

    def set_aside(self, item: Incoming | Outgoing, why: str) -> None:
        """Do nothing more with an item, until `node retry`; `why` tells nothing of a patient."""
        table = "films" if isinstance(item, Incoming) else "reports"
        self.queue.update(
            f"UPDATE {table} SET state = 'set aside', why = ? WHERE id = ?",  # noqa: S608 - ours
            (why, item.number),
        )

    def answered(self, image: Incoming, reports: Iterable[ReportObject]) -> int:
        """Keep an image's reports, and let go of the image; returns how many were new."""
        files = []
        for report in reports:
            fhir = report.kind == FHIR
            name = f"{uuid.uuid4().hex}.{'json' if fhir else 'dcm'}"
            _put(self._outgoing / name, report.content)
            state = "waiting" if self._sending[fhir] else "kept"
            digest = hashlib.sha256(report.content).hexdigest()
            files.append((image.number, report.kind, report.sop_uid, digest, name, state))
        new = 0
        with self.queue.transaction() as database:
            for values in files:
                new += database.execute(
                    "INSERT INTO reports (film, kind, sop_uid, sha256, file, state)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (sop_uid) DO UPDATE SET"
                    " sha256 = excluded.sha256, file = excluded.file, state = excluded.state,"
                    " refusals = 0, due = 0, why = '' WHERE reports.state = 'set aside'",
                    values,
                ).rowcount
            database.execute(
                "UPDATE films SET state = 'answered', why = '' WHERE id = ?", (image.number,)
            )
        with suppress(OSError):  # it goes on the next opening
            image.path.unlink(missing_ok=True)
        self.wake()
        return new

    def due(self, now: float, most: int, *, fhir: bool = False) -> list[Outgoing]:
        """DICOM objects (or FHIR Bundles) that are due to be sent, oldest first."""
        rows = self.queue.rows(
            "SELECT id, film, kind, sop_uid, file, refusals, sha256 FROM reports"
            " WHERE state = 'waiting' AND due <= ? AND (kind = ?) = ? ORDER BY due, id LIMIT ?",
            (now, FHIR, fhir, most),
        )
        return [
            Outgoing(number, image, kind, uid, self._outgoing / file, refusals, digest)
            for number, image, kind, uid, file, refusals, digest in rows
        ]

    def sent(self, report: Outgoing) -> None:
        """The destination has it."""
        self.queue.update("UPDATE reports SET state = 'sent' WHERE id = ?", (report.number,))
        with suppress(OSError):
            report.path.unlink(missing_ok=True)

    def refused(
        self,
        report: Outgoing,
        due: float,
        *,
        give_up: bool,
        why: str = "",
        counted: bool = True,
    ) -> None:
        """The destination did not take it: again when due, or never; its file stays."""
        self.queue.update(
            "UPDATE reports SET refusals = refusals + ?, due = ?, state = ?, why = ? WHERE id = ?",
            (int(counted), due, "set aside" if give_up else "waiting", why, report.number),
        )

    def fetchable(self, sop_uid: str, now: float) -> bool:
        """Whether an image of a server is to be fetched: it is new, and no failure forbids it."""
        rows = self.queue.rows(
            "SELECT state = 'waiting' AND due <= ? FROM fetches WHERE sop_uid = ? AND model = ?",
            (now, sop_uid, self._model),
        )
        return bool(rows[0][0]) if rows else not self.knows(sop_uid)

    def not_fetched(self, sop_uid: str, why: str, *, counted: bool) -> tuple[int, int]:
        """An image could not be fetched; the number of its row and how often that counted."""
        with self.queue.transaction() as database:
            database.execute(
                "INSERT INTO fetches (sop_uid, model, state, refusals, why)"
                " VALUES (?, ?, 'waiting', ?, ?) ON CONFLICT (sop_uid, model) DO UPDATE SET"
                " refusals = refusals + excluded.refusals, why = excluded.why",
                (sop_uid, self._model, int(counted), why),
            )
            found: tuple[int, int] = database.execute(
                "SELECT id, refusals FROM fetches WHERE sop_uid = ? AND model = ?",
                (sop_uid, self._model),
            ).fetchone()
        return found

    def fetch_again(self, number: int, due: float, *, give_up: bool) -> None:
        """When an image that could not be fetched is to be, or that it never is."""
        self.queue.update(
            "UPDATE fetches SET due = ?, state = ? WHERE id = ?",
            (due, "set aside" if give_up else "waiting", number),
        )

    def fetched(self, sop_uid: str) -> None:
        """Forget how often an image could not be fetched."""
        self.queue.update(
            "DELETE FROM fetches WHERE sop_uid = ? AND model = ?", (sop_uid, self._model)
        )

    def count(self, table: Table, state: str) -> int:
        """How many rows have a state."""
        query = f"SELECT COUNT(*) FROM {table} WHERE state = ?"  # noqa: S608 - a name of ours
        return int(self.queue.rows(query, (state,))[0][0])

    def wait(self, seconds: float) -> None:
        """Until something changed, or for so many seconds."""
        with self.changed:
            self.changed.wait(seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self.changed:
            self.changed.notify_all()

    def _sweep(self, known: bool) -> None:
        """Remove files that no row needs, and those that were half-written.

        Beside a queue that is new they are what an older queue knew: they are kept, aside.
        """
        unsent = "SELECT file FROM reports WHERE state <> 'sent'"
        needed = {name for (name,) in self.queue.rows(unsent)}
        unanswered = "SELECT file FROM films WHERE state <> 'answered'"
        needed |= {name for (name,) in self.queue.rows(unanswered)}
        for place in (self._incoming, self._outgoing):
            remove_leftovers(place)
            for path in place.glob("*.*"):
                if path.name in needed or path.suffix not in _SUFFIXES:
                    continue
                if known:
                    path.unlink()
                else:
                    path.replace(self._quarantine / path.name)


def _put(path: Path, content: bytes) -> None:
    """Write a file so that it is there after a power cut: its bytes and its name."""
    write_bytes(path, content)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
