"""What the node did, one JSON object a line, without a word about a patient.

No name, identifier, date or UID of a patient, study or image is ever among the facts: an image is
known by a number of our own, which the spool alone can tell the image of.

The audit never stops what it tells of. A line that the disk refuses is dropped whole, and the next
one that is written says how many are missing.
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

Fact = str | int | float | bool | None


class Audit:
    """Appends to one file, from any thread; a line is on its way to disk when `note` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._lock = threading.Lock()
        self._open = True
        self._missing = 0
        self._end_last_line(path)

    def note(self, event: str, **facts: Fact) -> None:
        """Write one line: time (UTC), event, facts; where that can't be done, count it."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if not self._open:
                return
            missing = {"lines_missing": self._missing} if self._missing else {}
            line = json.dumps({"time": time, "event": event, **facts, **missing}) + "\n"
            if self._write(line.encode()):
                self._missing = 0
            else:
                self._missing += 1

    def close(self) -> None:
        """Close the file; what is noted after is dropped."""
        with self._lock:
            if self._open:
                os.close(self._file)
            self._open = False

    def _write(self, line: bytes) -> bool:
        """Write a line whole, or nothing of it."""
        try:
            before = os.fstat(self._file).st_size
            if os.write(self._file, line) == len(line):
                return True
            os.ftruncate(self._file, before)  # a disk that is nearly full takes a part
        except OSError:
            return False
        return False

    def _end_last_line(self, path: Path) -> None:
        """A line that a kill cut short must not swallow the next one."""
        try:
            with path.open("rb") as stream:
                stream.seek(-1, os.SEEK_END)
                torn = stream.read(1) != b"\n"
        except OSError:  # it is empty
            return
        if torn:
            self._write(b"\n")
