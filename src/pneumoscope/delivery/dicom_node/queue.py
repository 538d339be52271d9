"""The queue of a spool: its tables in SQLite, and the lock that one node holds.

A node holds the lock `SPOOL/lock` as long as it runs, so that a spool has one node at a time. `node
status` and `node retry` read and change the queue beside it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pneumoscope.errors import UsageError
from pneumoscope.storage import open_alone

QUEUE_FILE = "queue.sqlite"
_VERSION = 3
_DIGESTS_SINCE = 2
_LOCK_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE films (
    id INTEGER PRIMARY KEY,
    sop_uid TEXT NOT NULL,
    model TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    file TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'answered', 'set aside')),
    attempts INTEGER NOT NULL DEFAULT 0,
    received REAL NOT NULL,
    why TEXT NOT NULL DEFAULT '',
    UNIQUE (sop_uid, model, sha256)
);
CREATE INDEX films_waiting ON films (id) WHERE state = 'waiting';
CREATE TABLE reports (
    id INTEGER PRIMARY KEY,
    film INTEGER NOT NULL REFERENCES films (id),
    kind TEXT NOT NULL,
    sop_uid TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL,
    file TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'set aside', 'kept')),
    refusals INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    why TEXT NOT NULL DEFAULT ''
);
CREATE INDEX reports_waiting ON reports (due) WHERE state = 'waiting';
CREATE TABLE fetches (
    id INTEGER PRIMARY KEY,
    sop_uid TEXT NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'set aside')),
    refusals INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    why TEXT NOT NULL DEFAULT '',
    UNIQUE (sop_uid, model)
);
"""

_BEFORE_VERSION_2 = """
ALTER TABLE reports RENAME TO reports_1;
ALTER TABLE films RENAME TO films_1;
DROP INDEX IF EXISTS films_waiting;
DROP INDEX IF EXISTS reports_waiting;
"""
_AFTER_VERSION_1 = """
INSERT INTO films (id, sop_uid, model, sha256, file, state, attempts, received)
    SELECT id, sop_uid, model, sha256, file, state, attempts, received FROM films_1;
INSERT INTO reports (id, film, kind, sop_uid, sha256, file, state, refusals, due)
    SELECT id, film, kind, sop_uid, '', file,
        CASE state WHEN 'given up' THEN 'set aside' ELSE state END, refusals, due FROM reports_1;
DROP TABLE reports_1;
DROP TABLE films_1;
"""
"""Version 1 stored no digest of reports: '' is not checked."""

_SINCE_VERSION_3 = """
ALTER TABLE films ADD COLUMN image TEXT NOT NULL DEFAULT '';
UPDATE films SET image = sha256;
CREATE UNIQUE INDEX films_image ON films (sop_uid, model, image);
"""
"""Before, an image was identified by the digest of its file."""


class Queue:
    """The tables of a queue; safe for any number of threads.

    Args:
        folder: the spool.
        alone: whether to hold the lock, as a node does.

    Raises:
        UsageError: another node has the spool, or the queue is damaged.
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self._lock = threading.RLock()
        self._held: IO[bytes] | None = _held(folder) if alone else None
        try:
            self._database = _opened(folder)
        except BaseException:
            self._let_go()
            raise

    def close(self) -> None:
        """Close the database and release the lock."""
        with self._lock:
            self._database.close()
            self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held.close()

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """The rows that a query returns."""
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def update(self, query: str, values: tuple[Any, ...] = ()) -> int:
        """Change rows in one transaction; returns their number."""
        with self.transaction() as database:
            return database.execute(query, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: the whole block is on disk when it ends, or nothing of it."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite ends some failed transactions itself
                    self._database.execute("ROLLBACK")
                raise


def _held(folder: Path) -> IO[bytes]:
    try:
        return open_alone(folder / "lock")
    except BlockingIOError as error:
        raise UsageError(
            f"--spool {folder}: another node uses it. A spool has one node at a time: stop the "
            "other node, or give another folder."
        ) from error


def _opened(folder: Path) -> sqlite3.Connection:
    """Open the database and bring its tables to this version.

    Raises:
        UsageError: the database can't be opened, or is damaged.
    """
    database = sqlite3.connect(
        folder / QUEUE_FILE,
        timeout=_LOCK_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # each commit is on disk when it returns
        _migrate(database)
        database.execute("PRAGMA foreign_keys = ON")
    except sqlite3.OperationalError as error:
        database.close()
        raise UsageError(
            f"--spool {folder}: its queue can't be opened ({error}). One node has it at a time: "
            "stop the other one, or give another folder."
        ) from error
    except sqlite3.DatabaseError as error:
        database.close()
        raise UsageError(
            f"--spool {folder}: {QUEUE_FILE} is damaged ({error}). Move it aside: the images of "
            "incoming/ go to quarantine/ then, to be sent again."
        ) from error
    return database


def _migrate(database: sqlite3.Connection) -> None:
    """Create the tables or migrate those of an older version, in one transaction."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version >= _VERSION:
        return
    old = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'films'").fetchone()
    script = ""
    if version < _DIGESTS_SINCE:
        script = _BEFORE_VERSION_2 + _SCHEMA + _AFTER_VERSION_1 if old else _SCHEMA
    script += _SINCE_VERSION_3
    database.execute("PRAGMA legacy_alter_table = ON")
    database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {_VERSION}; COMMIT;")
