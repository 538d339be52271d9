"""Films and reports in transit: files, and a queue in SQLite that says what is to be done.

Comes in: films as bytes, then their reports. Goes out: what is to be answered, what is to be sent.
Knows nothing of DICOM's messages, of models or of the network.

    SPOOL/queue.sqlite    a row per film and per report, for ever: what came once is known again
    SPOOL/incoming/       a film each, until its reports are in the queue
    SPOOL/outgoing/       a report each, until it was sent
    SPOOL/audit.jsonl

    film      waiting ──reports made──▶ answered
    report    waiting ──taken──▶ sent    (given up after too many refusals; kept: nobody to send to)

The order of writing is what makes a kill harmless. In: file on disk, then row, then
acknowledgement. Answered: reports on disk, then their rows and the film's new state in one
transaction, then the film's file goes. Out: sent, then the row, then the file goes. Files without
a row that needs them are what a kill left over; they go on opening. Only between sending and its
row may a kill make a report be sent once more: the same bytes under the same UID, which an archive
keeps once. Names of files are our own: what a caller calls its film never gets near a path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pneumoscope.delivery.dicom_report.objects import ReportObject
from pneumoscope.errors import UsageError
from pneumoscope.storage import claim_folder, remove_leftovers, write_bytes

Received = Literal["new", "known", "known, other bytes", "full"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS films (
    id INTEGER PRIMARY KEY,
    sop_uid TEXT NOT NULL,
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    file TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'answered')),
    attempts INTEGER NOT NULL DEFAULT 0,
    received REAL NOT NULL,
    UNIQUE (sop_uid, model)
);
CREATE INDEX IF NOT EXISTS films_waiting ON films (id) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS reports (
    id INTEGER PRIMARY KEY,
    film INTEGER NOT NULL REFERENCES films (id),
    kind TEXT NOT NULL,
    sop_uid TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'given up', 'kept')),
    refusals INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS reports_waiting ON reports (due) WHERE state = 'waiting';
"""
_LOCK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Film:
    """A film to be answered for.

    Attributes:
        number: of its row.
        path: its file.
        attempts: how often it was begun, this time included.
    """

    number: int
    path: Path
    attempts: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A report to be sent; `film` is the number of the film that it is about."""

    number: int
    film: int
    kind: str
    sop_uid: str
    path: Path
    refusals: int


class Spool:
    """One node's films and reports; safe for any number of threads of one process.

    Args:
        folder: made if it is not there.
        model: fingerprint of the model that answers; a film is known again for the same model only.
        sending: whether reports will be sent; else they are kept.

    Raises:
        UsageError: another node has this spool, or a file stands where the folder should be.
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path, model: str, *, sending: bool) -> None:
        self.folder = folder
        self._incoming, self._outgoing = folder / "incoming", folder / "outgoing"
        for place in (folder, self._incoming, self._outgoing):
            claim_folder(place)
        self._model = model
        self._sending = sending
        self._lock = threading.RLock()
        self.changed = threading.Condition()
        self._database = _opened(folder)
        with self._transaction() as database:
            # Whether reports are sent is a setting that may change between two starts.
            old, new = ("kept", "waiting") if sending else ("waiting", "kept")
            database.execute("UPDATE reports SET state = ? WHERE state = ?", (new, old))
        self._sweep()

    def close(self) -> None:
        """Give the spool free for another process."""
        with self._lock:
            self._database.close()

    def receive(
        self, sop_uid: str, content: bytes, most_waiting: int, min_free: int
    ) -> tuple[Received, int]:
        """Keep a film. When this returns it is on disk, or was before.

        Returns:
            What it was, and the number of the film: `full` (and 0) if it was not taken.

        Raises:
            OSError, sqlite3.Error: it could not be kept.
        """
        digest = hashlib.sha256(content).hexdigest()
        if known := self._known(sop_uid, digest):
            return known
        free = shutil.disk_usage(self.folder).free
        if self.count("films", "waiting") >= most_waiting or free < min_free + len(content):
            return "full", 0
        name = f"{uuid.uuid4().hex}.dcm"
        _put(self._incoming / name, content)
        try:
            with self._transaction() as database:
                number = database.execute(
                    "INSERT INTO films (sop_uid, model, sha256, file, state, received)"
                    " VALUES (?, ?, ?, ?, 'waiting', ?)",
                    (sop_uid, self._model, digest, name, time.time()),
                ).lastrowid
        except sqlite3.IntegrityError:  # the same film by two associations at once
            (self._incoming / name).unlink()
            return self._known(sop_uid, digest) or ("full", 0)
        self.wake()
        return "new", int(number or 0)

    def knows(self, sop_uid: str) -> bool:
        """Whether a film came before, for the model that answers."""
        query = "SELECT 1 FROM films WHERE sop_uid = ? AND model = ?"
        return bool(self._rows(query, (sop_uid, self._model)))

    def _known(self, sop_uid: str, digest: str) -> tuple[Received, int] | None:
        rows = self._rows(
            "SELECT id, sha256 FROM films WHERE sop_uid = ? AND model = ?", (sop_uid, self._model)
        )
        if not rows:
            return None
        number, kept = rows[0]
        return ("known" if kept == digest else "known, other bytes"), number

    def take(self, most: int) -> list[Film]:
        """The films that have waited longest; each is counted as begun, before it is.

        What was begun before and never ended may have ended its process: it is given alone, and
        those that never were come first.
        """
        with self._transaction() as database:
            rows = database.execute(
                "SELECT id, file, attempts FROM films WHERE state = 'waiting'"
                " ORDER BY attempts, id LIMIT ?",
                (most,),
            ).fetchall()
            rows = [row for row in rows if row[2] == 0] or rows[:1]
            database.executemany(
                "UPDATE films SET attempts = attempts + 1 WHERE id = ?", [(r[0],) for r in rows]
            )
        return [Film(number, self._incoming / file, tried + 1) for number, file, tried in rows]

    def put_back(self, films: Iterable[Film]) -> None:
        """Films that were taken and could not be ended for no fault of theirs."""
        with self._transaction() as database:
            database.executemany(
                "UPDATE films SET attempts = attempts - 1 WHERE id = ? AND state = 'waiting'",
                [(film.number,) for film in films],
            )

    def answered(self, film: Film, reports: Iterable[ReportObject]) -> int:
        """Keep a film's reports, and let go of the film; returns how many were new."""
        files = []
        for report in reports:
            name = f"{uuid.uuid4().hex}.dcm"
            _put(self._outgoing / name, report.content)
            state = "waiting" if self._sending else "kept"
            files.append((film.number, report.kind, report.sop_uid, name, state))
        new = 0
        with self._transaction() as database:
            for values in files:
                new += database.execute(
                    "INSERT OR IGNORE INTO reports (film, kind, sop_uid, file, state)"
                    " VALUES (?, ?, ?, ?, ?)",
                    values,
                ).rowcount
            database.execute("UPDATE films SET state = 'answered' WHERE id = ?", (film.number,))
        film.path.unlink(missing_ok=True)
        self.wake()
        return new

    def due(self, now: float, most: int) -> list[Outgoing]:
        """Reports to be sent by now, oldest first."""
        rows = self._rows(
            "SELECT id, film, kind, sop_uid, file, refusals FROM reports"
            " WHERE state = 'waiting' AND due <= ? ORDER BY due, id LIMIT ?",
            (now, most),
        )
        return [
            Outgoing(number, film, kind, uid, self._outgoing / file, refusals)
            for number, film, kind, uid, file, refusals in rows
        ]

    def sent(self, report: Outgoing) -> None:
        """The destination has it."""
        self._update("UPDATE reports SET state = 'sent' WHERE id = ?", (report.number,))
        report.path.unlink(missing_ok=True)

    def refused(self, report: Outgoing, due: float, *, give_up: bool) -> None:
        """The destination did not want it: again when due, or never; its file stays."""
        self._update(
            "UPDATE reports SET refusals = refusals + 1, due = ?, state = ? WHERE id = ?",
            (due, "given up" if give_up else "waiting", report.number),
        )

    def count(self, table: Literal["films", "reports"], state: str) -> int:
        """How many rows have a state."""
        query = f"SELECT COUNT(*) FROM {table} WHERE state = ?"  # noqa: S608 - a name of ours
        return int(self._rows(query, (state,))[0][0])

    def wait(self, seconds: float) -> None:
        """Until something changed, or for so many seconds."""
        with self.changed:
            self.changed.wait(seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self.changed:
            self.changed.notify_all()

    def _sweep(self) -> None:
        """Remove files that no row needs, and those that were half-written."""
        needed = {name for (name,) in self._rows("SELECT file FROM films WHERE state = 'waiting'")}
        needed |= {name for (name,) in self._rows("SELECT file FROM reports WHERE state <> 'sent'")}
        for place in (self._incoming, self._outgoing):
            remove_leftovers(place)
            for path in place.glob("*.dcm"):
                if path.name not in needed:
                    path.unlink()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def _update(self, query: str, values: tuple[Any, ...]) -> None:
        with self._transaction() as database:
            database.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # of what fails itself, SQLite ends some
                    self._database.execute("ROLLBACK")
                raise


def _opened(folder: Path) -> sqlite3.Connection:
    """The queue, held by this process alone until it ends, however it ends."""
    database = sqlite3.connect(
        folder / "queue.sqlite",
        timeout=_LOCK_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # each commit is on disk when it returns
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        database.close()
        raise UsageError(
            f"--spool {folder}: its queue can't be opened ({error}). One node has it at a time: "
            "stop the other one, or give another folder."
        ) from error
    return database


def _put(path: Path, content: bytes) -> None:
    """Write a file so that it is there after a power cut: its bytes and its name."""
    write_bytes(path, content)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
