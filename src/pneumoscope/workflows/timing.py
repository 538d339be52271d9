"""What a run cost: seconds per stage and the most memory it held."""

from __future__ import annotations

import sys
import time


class Stopwatch:
    """Wall time between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before under `name`."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds in all laps."""
        return sum(self.laps.values())


def peak_memory_mb() -> int | None:
    """The most memory that this process held, in MB; `None` where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20) if sys.platform == "darwin" else peak / 1024)
