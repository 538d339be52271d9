"""The spool: images and reports in transit on disk, and a queue with the state of each.

    SPOOL/queue.sqlite    a row per image and per report, kept permanently to recognise repeats
    SPOOL/incoming/       image files, until their reports are in the queue
    SPOOL/outgoing/       reports (.dcm) and FHIR Bundles (.json), until they were sent
    SPOOL/quarantine/     damaged files, which are never scored and never sent
    SPOOL/audit.jsonl     the audit log, without patient data
    SPOOL/results.jsonl   results for `node results`, with patient data
    SPOOL/lock            held by the node that uses the spool

    image     waiting ──reports made──▶ answered      waiting ──its own fault──▶ set aside
    report    waiting ──accepted──▶ sent              waiting ──its own fault──▶ set aside
              (kept: there is no destination)

The order of writing makes a kill at any time harmless. Receiving: file on disk, then row, then
acknowledgement. Scoring: reports on disk, then their rows and the new state of the image in one
transaction, then the image file is removed. Sending: sent, then the row, then the file is removed.
Files that no row needs are left over from a kill and are removed on opening. Only a kill between
sending and its row can repeat a report: the same bytes under the same UID, which an archive keeps
once. File names are generated, so that no name from a sender becomes part of a path.

A failure affects one item only, and the rest continues. `LostError` is raised if a file differs
from its row, which has the digest of the file.
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
from pneumoscope.images.dicom.file import image_digest
from pneumoscope.storage import claim_folder, remove_leftovers, sha256_of_file, write_bytes

Received = Literal["new", "other content", "again", "known", "full"]
Table = Literal["films", "reports", "fetches"]

MISSING, DAMAGED, UNREADABLE = "file missing", "file damaged", "file can't be read"
FHIR: Final = "fhir"
"""The kind of an item of `outgoing/` that is a FHIR Bundle; others are DICOM objects."""

_SUFFIXES = (".dcm", ".json")
_LOST = (MISSING, DAMAGED, UNREADABLE)
_RESULT_LOST = (
    "(films.state = 'answered' AND EXISTS (SELECT 1 FROM reports WHERE reports.film = films.id"
    " AND reports.state = 'set aside' AND reports.why IN (?, ?, ?)))"
)
"""Whether an image has to be scored again, because the file of one of its reports was lost."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received image that waits to be scored.

    Attributes:
        number: its row number.
        path: its file.
        attempts: number of attempts to score it, including this one.
        sha256: hex digest of its file, `""` if unknown.
    """

    number: int
    path: Path
    attempts: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A report that waits to be sent; `image` is the row number of its image."""

    number: int
    image: int
    kind: str
    sop_uid: str
    path: Path
    refusals: int
    sha256: str = ""


class LostError(Exception):
    """The file of one image or report is missing or was changed; other items are unaffected."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Spool:
    """One node's images and reports; safe for any number of threads of one process.

    Args:
        folder: created if it does not exist.
        model: `Author.key`, the model and its checks; an image is scored once per model.
        sending: whether reports are sent; else they are kept.
        sending_fhir: whether FHIR Bundles are sent; else they are kept.

    Raises:
        UsageError: another node uses this spool, its queue is damaged, or the path is a file.
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
        # The setting whether reports are sent may change between two starts.
        for fhir, sends in self._sending.items():
            old, new = ("kept", "waiting") if sends else ("waiting", "kept")
            self.queue.update(
                "UPDATE reports SET state = ? WHERE state = ? AND (kind = ?) = ?",
                (new, old, FHIR, fhir),
            )
        self._sweep(known)

    def close(self) -> None:
        """Release the spool for another process."""
        self.queue.close()

    def receive(
        self, sop_uid: str, content: bytes, most_waiting: int, min_free: int
    ) -> tuple[Received, int]:
        """Keep an image; when this returns, it is on disk.

        An image is identified by its UID together with `image_digest`, so that it is the same in
        another transfer syntax.

        Args:
            sop_uid: SOP Instance UID.
            content: a Part 10 file.
            most_waiting: waiting images beyond which none is accepted.
            min_free: free disk space that must remain, bytes.

        Returns:
            How it was received, and the row number of the image: `full` (and 0) if it was not
            accepted; `again` if it is known but has no result, because its file or report was lost.

        Raises:
            OSError, sqlite3.Error: the image could not be written.
        """
        digest, image = hashlib.sha256(content).hexdigest(), image_digest(content)
        number, lost = self._known(sop_uid, image, digest)
        if number and not lost:
            return "known", number
        free = shutil.disk_usage(self.folder).free
        if self.count("films", "waiting") >= most_waiting or free < min_free + len(content):
            return "full", 0
        name = f"{uuid.uuid4().hex}.dcm"
        _put(self._incoming / name, content)
        if number:
            self.queue.update(
                "UPDATE films SET file = ?, sha256 = ?, state = 'waiting', attempts = 0, why = ''"
                " WHERE id = ?",
                (name, digest, number),
            )
            self.wake()
            return "again", number
        found: Received = "other content" if self.knows(sop_uid) else "new"
        try:
            with self.queue.transaction() as database:
                row = database.execute(
                    "INSERT INTO films (sop_uid, model, sha256, image, file, state, received)"
                    " VALUES (?, ?, ?, ?, ?, 'waiting', ?)",
                    (sop_uid, self._model, digest, image, name, time.time()),
                ).lastrowid
                database.execute(
                    "DELETE FROM fetches WHERE sop_uid = ? AND model = ?", (sop_uid, self._model)
                )
        except sqlite3.IntegrityError:  # the same image in two associations at once
            (self._incoming / name).unlink()
            return "known", self._known(sop_uid, image, digest)[0]
        self.wake()
        return found, int(row or 0)

    def knows(self, sop_uid: str) -> bool:
        """Whether an image with this UID was received before, for the present model."""
        query = "SELECT 1 FROM films WHERE sop_uid = ? AND model = ?"
        return bool(self.queue.rows(query, (sop_uid, self._model)))

    def made(self, sop_uid: str) -> bool:
        """Whether an object with this UID was made here, by any model."""
        return bool(self.queue.rows("SELECT 1 FROM reports WHERE sop_uid = ?", (sop_uid,)))

    def _known(self, sop_uid: str, image: str, digest: str) -> tuple[int, bool]:
        """The row number of an image, 0 for none, and whether it has no result.

        The row of an older version has the digest of the file alone.
        """
        rows = self.queue.rows(
            f"SELECT id, state = 'set aside' OR {_RESULT_LOST} FROM films"  # noqa: S608 - ours
            " WHERE sop_uid = ? AND model = ? AND (image = ? OR sha256 = ?)"
            " ORDER BY sha256 = ? DESC LIMIT 1",
            (*_LOST, sop_uid, self._model, image, digest, digest),
        )
        return (rows[0][0], bool(rows[0][1])) if rows else (0, False)

    def give_up(self, most_attempts: int) -> list[int]:
        """Set aside the images with too many attempts; returns their numbers.

        Their files are not read, because reading them may have ended the program.
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
        """Take the images that have waited longest, and count an attempt for each.

        An image whose earlier attempt was not finished may have ended its process: it is given
        alone, after the images without an attempt.
        """
        with self.queue.transaction() as database:
            rows = database.execute(
                "SELECT id, file, attempts, sha256 FROM films WHERE state = 'waiting'"
                " ORDER BY attempts, id LIMIT ?",
                (most,),
            ).fetchall()
            rows = [row for row in rows if row[2] == 0] or rows[:1]
            database.executemany(
                "UPDATE films SET attempts = attempts + 1 WHERE id = ?", [(r[0],) for r in rows]
            )
        return [
            Incoming(number, self._incoming / file, tried + 1, digest)
            for number, file, tried, digest in rows
        ]

    def put_back(self, images: Iterable[Incoming]) -> None:
        """Return images that were taken but not scored, and uncount their attempt."""
        with self.queue.transaction() as database:
            database.executemany(
                "UPDATE films SET attempts = attempts - 1 WHERE id = ? AND state = 'waiting'",
                [(image.number,) for image in images],
            )

    def check(self, item: Incoming | Outgoing) -> None:
        """Check a file against its digest; a damaged one is moved to quarantine.

        Raises:
            LostError: the file is missing, damaged, or can't be read.
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
        """Set an item aside until `node retry`; `why` must not hold patient data."""
        table = "films" if isinstance(item, Incoming) else "reports"
        self.queue.update(
            f"UPDATE {table} SET state = 'set aside', why = ? WHERE id = ?",  # noqa: S608 - ours
            (why, item.number),
        )

    def answered(self, image: Incoming, reports: Iterable[ReportObject]) -> int:
        """Keep the reports of an image and remove the image; returns how many were new.

        A report that was kept before stays as it is, unless it was set aside.
        """
        files = []
        for report in reports:
            if self._stays(report.sop_uid):
                continue
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
            # What was lost and not made again would else be fetched at every search.
            database.execute(
                "UPDATE reports SET why = 'not made again' WHERE film = ? AND state = 'set aside'"
                " AND why IN (?, ?, ?)",
                (image.number, *_LOST),
            )
            database.execute(
                "UPDATE films SET state = 'answered', why = '' WHERE id = ?", (image.number,)
            )
        with suppress(OSError):  # it is removed on the next opening
            image.path.unlink(missing_ok=True)
        self.wake()
        return new

    def _stays(self, report_uid: str) -> bool:
        query = "SELECT 1 FROM reports WHERE sop_uid = ? AND state <> 'set aside'"
        return bool(self.queue.rows(query, (report_uid,)))

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
        """Record that the destination has stored a report, and remove its file."""
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
        """Record that a report was not stored; it is due again later, or set aside."""
        self.queue.update(
            "UPDATE reports SET refusals = refusals + ?, due = ?, state = ?, why = ? WHERE id = ?",
            (int(counted), due, "set aside" if give_up else "waiting", why, report.number),
        )

    def fetchable(self, sop_uid: str, now: float) -> bool:
        """Whether to fetch an image of a server now: new or lost, and no retry is pending."""
        rows = self.queue.rows(
            "SELECT state = 'waiting' AND due <= ? FROM fetches WHERE sop_uid = ? AND model = ?",
            (now, sop_uid, self._model),
        )
        if rows:
            return bool(rows[0][0])
        kept = self.queue.rows(
            "SELECT 1 FROM films WHERE sop_uid = ? AND model = ?"  # noqa: S608 - a text of ours
            f" AND NOT (state = 'set aside' AND why IN (?, ?, ?)) AND NOT {_RESULT_LOST}",
            (sop_uid, self._model, *_LOST, *_LOST),
        )
        return not kept

    def begin_fetch(self, sop_uid: str) -> tuple[int, int]:
        """Count a fetch before it is tried, since it may end the program.

        Returns:
            Its row number, and how often it was counted, this time included.
        """
        with self.queue.transaction() as database:
            database.execute(
                "INSERT INTO fetches (sop_uid, model, state, refusals) VALUES (?, ?, 'waiting', 1)"
                " ON CONFLICT (sop_uid, model) DO UPDATE SET refusals = refusals + 1",
                (sop_uid, self._model),
            )
            found: tuple[int, int] = database.execute(
                "SELECT id, refusals FROM fetches WHERE sop_uid = ? AND model = ?",
                (sop_uid, self._model),
            ).fetchone()
        return found

    def not_fetched(
        self,
        number: int,
        why: str,
        due: float = 0.0,
        *,
        counted: bool = True,
        give_up: bool = False,
    ) -> None:
        """Record a failed fetch, to be tried again when it is due, or set aside.

        Args:
            number: as `begin_fetch` returned it.
            why: the reason, without patient data; `""`: as it was.
            due: Unix time of the next try.
            counted: whether the try counts.
            give_up: whether the image is set aside.
        """
        self.queue.update(
            "UPDATE fetches SET refusals = refusals - ?, why = COALESCE(NULLIF(?, ''), why),"
            " due = ?, state = ? WHERE id = ?",
            (int(not counted), why, due, "set aside" if give_up else "waiting", number),
        )

    def fetched(self, sop_uid: str) -> None:
        """Remove the record of failed fetches of an image."""
        self.queue.update(
            "DELETE FROM fetches WHERE sop_uid = ? AND model = ?", (sop_uid, self._model)
        )

    def count(self, table: Table, state: str) -> int:
        """The number of rows in a state."""
        query = f"SELECT COUNT(*) FROM {table} WHERE state = ?"  # noqa: S608 - a name of ours
        return int(self.queue.rows(query, (state,))[0][0])

    def wait(self, seconds: float) -> None:
        """Wait until something changes, for at most `seconds`."""
        with self.changed:
            self.changed.wait(seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self.changed:
            self.changed.notify_all()

    def _sweep(self, known: bool) -> None:
        """Remove files that no row needs, and partly written ones.

        If the queue is new, they belong to a lost queue and are moved to quarantine.
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
    """Write a file so that its bytes and its name survive a power cut."""
    write_bytes(path, content)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
