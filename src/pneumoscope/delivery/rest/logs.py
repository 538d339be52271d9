"""What the server writes down: lines of JSON without file names, addresses or anything of patients.

Comes in: records of `logging`. Goes out: one line each. Of an exception its type and the lines of
code are told, never its words, which may hold what was in a file.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

LOGGER = logging.getLogger("pneumoscope.serve")

_NAMES = ("pneumoscope", "uvicorn")


class JsonFormatter(logging.Formatter):
    """One line of JSON per record: when, how grave, what, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if record.exc_info is None else "defect",
        }
        told |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            told["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            told["where"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]]
        return json.dumps(told)


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write down that something happened. `fields` must tell nothing of a patient."""
    LOGGER.log(level, name, extra={"fields": fields})


def write_json_lines(level: int, stream: TextIO | None = None) -> None:
    """Send all records of ours and of the HTTP server to `stream` (stderr) as lines of JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in _NAMES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level if name == "pneumoscope" else max(level, logging.WARNING))
