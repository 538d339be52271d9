"""A data set's fingerprint: tells whether a run, a bundle and an evaluation saw the same data.

Comes in: hashed records. Goes out: a hex digest. Knows nothing of where files lie, so a copy of
a data set elsewhere has the same fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pneumoscope.records import ImageRecord


def fingerprint(records: Iterable[ImageRecord]) -> str:
    """SHA-256 over content, label and patient of every image, whatever their order."""
    lines = sorted(f"{r.sha256},{r.label},{r.patient}" for r in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
