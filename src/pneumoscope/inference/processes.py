"""Files read in processes of their own, which may die without the run.

Comes in: paths, and what to do with each. Goes out: what came of each, in order. Knows nothing of
images: the `Decoder` is sent to each process once, then paths go there and results come back.

A process that dies (killed for its memory, or crashed in a decoder) loses what was in flight; the
oldest files of that are read again one by one, the rest by new processes. A file at which two
processes in a row died gets a row that says so.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

from pneumoscope.errors import MissingError, Reason
from pneumoscope.images.memory import keep_freed_memory
from pneumoscope.inference.preparing import Decoder, Prepared
from pneumoscope.records import Prediction

_CHUNK = 4
"""Files that go to a process at once: few, since each result is up to a megabyte."""

_TRIES = 2
"""Processes that a file may end before it is given up."""

_Found = list[Prepared | Prediction]
_DECODE: list[Decoder] = []
"""In a reading process: what it does with each file."""


def decoded_in_processes(
    paths: Iterable[Path | str], decode: Decoder, workers: int, window: int
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path in `workers` processes; in order, a window of files ahead.

    Raises:
        MissingError: the processes can't be started, or die before they have read anything.
    """
    chunks = _chunked(paths)
    pool = _started(decode, workers)
    try:
        flying = deque(
            (chunk, _sent(pool, chunk))
            for chunk in islice(chunks, max(window // _CHUNK, 2 * workers))
        )
        while flying:
            chunk, future = flying.popleft()
            try:
                found = future.result()
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                found = _read_one_by_one(chunk, decode)
                pool = _started(decode, workers)
                flying = deque((lost, _sent(pool, lost)) for lost, _ in flying)
            flying.extend((chunk, _sent(pool, chunk)) for chunk in islice(chunks, 1))
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def _chunked(paths: Iterable[Path | str]) -> Iterator[list[str]]:
    remaining = map(str, paths)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _sent(pool: ProcessPoolExecutor, chunk: list[str]) -> Future[_Found]:
    try:
        return pool.submit(_read, chunk)
    except BrokenProcessPool as error:  # found out when its turn comes
        lost: Future[_Found] = Future()
        lost.set_exception(error)
        return lost


def _read_one_by_one(paths: list[str], decode: Decoder) -> _Found:
    """Read what was lost, a file at a time, to tell the one at which processes die."""
    found: _Found = []
    pool = _started(decode, 1)
    try:
        for path in paths:
            for _ in range(_TRIES):
                try:
                    found += pool.submit(_read, [path]).result()
                    break
                except BrokenProcessPool:
                    pool.shutdown(cancel_futures=True)
                    pool = _started(decode, 1)
            else:
                found.append(_given_up(path))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _given_up(path: str) -> Prediction:
    detail = (
        f"{_TRIES} processes that read it died, killed or crashed. Convert it to PNG, or give the "
        "machine more memory"
    )
    return Prediction(path, "error", Reason.INTERNAL_ERROR, detail=detail)


def _started(decode: Decoder, workers: int) -> ProcessPoolExecutor:
    """Reading processes, all of them begun, one of which has answered.

    All at once, so that none is begun later: Python 3.11's executor was seen waiting for ever after
    a process had died, and one that is begun at that moment it would wait for without ending it.
    """
    # Spawned, not forked: the engine's threads would be copied in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (decode,))
    try:
        answers = [pool.submit(_read, []) for _ in range(workers)]
        answers[0].result()
    except (BrokenProcessPool, OSError) as error:
        pool.shutdown(cancel_futures=True)
        raise MissingError(
            f"found that processes that read images can't be started ({error}), wanted {workers}. "
            "Leave --workers out to read in threads."
        ) from error
    return pool


def _begin(decode: Decoder) -> None:
    """Set a reading process up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    _DECODE[:] = [decode]


def _end_with_parent() -> None:
    """After a SIGKILL of the first process nobody tells its children: they look for themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read(paths: list[str]) -> _Found:
    return [_DECODE[0](path) for path in paths]
