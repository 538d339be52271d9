"""What the server writes down: lines of JSON without file names, addresses or anything of patients.

All that is logged by anything in this process becomes such a line. Of our own events the fields are
told. Of what a library says, and of an exception, only where in the code it was: the words may hold
what was in a file. What would be said too often is counted instead.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

LOGGER = logging.getLogger("pneumoscope.serve")

_OURS = "pneumoscope"
_MOST_LINES, _PER_SECONDS = 20, 10.0
"""Lines of one kind in so many seconds; requests and images are told each."""

_MOST_KINDS = 1000
_EACH = frozenset({"request", "film"})


class JsonFormatter(logging.Formatter):
    """One line of JSON per record: when, how grave, what, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        ours = _is_ours(record)
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if ours else "library",
        }
        if record.exc_info:
            told["event"] = "defect"
        if not ours:
            told |= {"logger": record.name, "at": f"{record.filename}:{record.lineno}"}
        told |= getattr(record, "fields", {})
        if unsaid := getattr(record, "unsaid", 0):
            told["not_said"] = unsaid
        if record.exc_info and record.exc_info[0] is not None:
            told["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            told["where"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]]
        return json.dumps(told)


class Seldom(logging.Filter):
    """Lets so many records of one kind pass in a while, and has the next one say how many didn't.

    A kind is a place in the code; of our own events, each name is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._kinds: dict[Any, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if _is_ours(record) and record.msg in _EACH:
            return True
        kind = (record.name, record.pathname, record.lineno, record.msg if _is_ours(record) else "")
        now = time.monotonic()
        with self._lock:
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.clear()
            said = self._kinds.setdefault(kind, [now, 0, 0])
            if now - said[0] > _PER_SECONDS:
                said[0], said[1] = now, 0
            said[1] += 1
            if said[1] > _MOST_LINES:
                said[2] += 1
                return False
            record.unsaid, said[2] = int(said[2]), 0
        return True


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write down that something happened. `fields` must tell nothing of a patient."""
    LOGGER.log(level, name, extra={"fields": fields})


def write_json_lines(level: int, stream: TextIO | None = None) -> None:
    """Send all that is logged to `stream` (stderr) as lines of JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    for name in list(logging.Logger.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger(_OURS).setLevel(level)


def write_uncaught_too() -> None:
    """Send what nobody caught, in any thread, the same way."""
    sys.excepthook = _uncaught
    threading.excepthook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)
    sys.unraisablehook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _uncaught(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> None:
    LOGGER.error("defect", exc_info=(kind, error or kind(), where))


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == _OURS or record.name.startswith(f"{_OURS}.")
