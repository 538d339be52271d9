"""What the node did, one JSON object a line, without a word about a patient.

Comes in: an event and its facts. Goes out: a line in `audit.jsonl`. No name, identifier, date or
UID of a patient, study or film is ever among the facts: a film is known by a number of our own,
which the spool alone can tell the film of.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

Fact = str | int | float | bool | None


class Audit:
    """Appends to one file, from any thread; a line is on its way to disk when `note` returns."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def note(self, event: str, **facts: Fact) -> None:
        """Write one line: time (UTC), event, facts."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **facts}) + "\n"
        with self._lock:
            if not self._stream.closed:
                self._stream.write(line.encode())

    def close(self) -> None:
        """Close the file; what is noted after is dropped."""
        with self._lock:
            self._stream.close()
