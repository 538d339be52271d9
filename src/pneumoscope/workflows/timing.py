"""Measure the cost of a run: seconds per stage and peak memory."""

from __future__ import annotations

import sys
import time


class Stopwatch:
    """Wall time per stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Record the seconds since the previous lap under `name`."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all laps together."""
        return sum(self.laps.values())


def peak_memory_mb() -> int | None:
    """Peak memory of this process in MB; `None` if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20) if sys.platform == "darwin" else peak / 1024)
