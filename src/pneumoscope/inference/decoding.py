"""Many files to network inputs, read ahead of the engine: in threads, or in processes.

Comes in: paths, and a `Decoder`. Goes out: for every path, in order, what the network wants or why
there is nothing. No more than a window of them is held at once. Knows nothing of models.

Threads are the default: decoding releases Python's lock, so on two cores they take no more time
than processes, and start at once (`benchmarks/RESULTS.md`). Processes pay where there are so many
cores that Python's own share becomes the limit, and where a file that crashes a decoder must not
end the run (`processes.py`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from pneumoscope.images.memory import keep_freed_memory
from pneumoscope.inference.preparing import Decode, Prepared
from pneumoscope.records import Prediction

WINDOW = 32
"""Images that are read or being read ahead of the engine, at most."""


def threads() -> int:
    """Threads that read: half the cores, since the engine wants them too; 2 to 8."""
    return min(max(2, (os.cpu_count() or 1) // 2), 8)


def decoded(
    paths: Iterable[Path | str], decode: Decode, workers: int = 0
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path, in order, ahead of who asks for the next.

    Args:
        paths: taken as they are wanted, a window ahead.
        decode: what to do with each.
        workers: processes that do it; 0 for threads of this one.

    Raises:
        MissingError: processes can't be started here.
    """
    if workers:
        from pneumoscope.inference.processes import decoded_in_processes

        yield from decoded_in_processes(paths, decode, workers, WINDOW)
        return
    keep_freed_memory()
    pool = ThreadPoolExecutor(threads())
    try:
        remaining = iter(paths)
        flying: deque[Future[Prepared | Prediction]] = deque(
            pool.submit(decode, path) for path in islice(remaining, WINDOW)
        )
        while flying:
            done = flying.popleft().result()
            flying.extend(pool.submit(decode, path) for path in islice(remaining, 1))
            yield done
    finally:  # after Ctrl-C, or when nobody wants the rest, what waits is not read any more
        pool.shutdown(cancel_futures=True)
