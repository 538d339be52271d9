"""Processes that work through one call at a time, and can be ended in the middle of one.

A call of a C library can't be interrupted, and a crash in one ends its whole process. So files from
others are read in processes like these: each call has a limit on time, each process one on memory,
and a process that exceeds one, or crashes, is replaced by a new one. The others go on meanwhile.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pneumoscope.errors import MissingError, Reason
from pneumoscope.images.budget import MOST_SECONDS, keep_freed_memory
from pneumoscope.inference.preparing import Decode, Decoder, Prepared
from pneumoscope.records import Prediction

MOST_MEMORY = 2 << 30
"""Bytes that a call may allocate: 50 megapixels in colour take about half of it."""

_PATIENCE = 3.0
"""A call may take so many times its seconds by the clock if the processor was busy elsewhere."""

_SLOW_SECONDS = 1.0
"""A call that takes longer no longer holds up the next one, as long as spare processes last."""

_TRIES = 2
"""Processes that a file may end before it is given up: one may have been killed for another's
memory."""

_START_SECONDS = 120.0
"""A new process may take to answer; on a busy machine Python alone takes seconds to start."""


class EndedError(Exception):
    """A call was not ended by itself: it took too long, or its process died.

    Attributes:
        late: whether it took too long.
    """

    def __init__(self, words: str, *, late: bool) -> None:
        super().__init__(words)
        self.late = late


class StoppedError(Exception):
    """A call was not ended since all processes were: nothing is known of what it was about."""


class CallError(Exception):
    """A call raised; the words name the type of its exception and what it said."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A process and this side of the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def end(self) -> None:
        """Kill it: it may be in a library that heeds no other signal."""
        self.process.kill()
        self.pipe.close()
        self.process.join()

    def processor_seconds(self) -> float | None:
        """Processor time that it has used so far; `None` where the system doesn't say."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rsplit(")", 1)[1]
        except (OSError, IndexError):
            return None
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Processes:
    """A number of processes; safe for any number of threads.

    Args:
        count: calls at a time.
        spare: more calls at a time, as long as so many are slow; else slow ones hold up others.
        seconds: processor time of a call, at most.
        memory: bytes that a call may allocate, at most.
        modules: what calls import, loaded once for all; counts for the first that are started.
    """

    def __init__(
        self,
        count: int,
        spare: int = 0,
        seconds: float = MOST_SECONDS,
        memory: int = MOST_MEMORY,
        modules: Iterable[str] = (),
    ) -> None:
        self._modules = tuple(modules)
        self._count, self._seconds, self._memory = count, seconds, memory
        self._places = threading.Semaphore(count)
        self._spare = threading.Semaphore(spare)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closed = False

    def start(self) -> None:
        """Begin all of them now, so that no call waits for it.

        Raises:
            MissingError: none answers.
        """
        try:
            workers = [self._started() for _ in range(self._count)]
            for worker in workers:
                worker.pipe.send((_nothing, ()))
            if not workers[0].pipe.poll(_START_SECONDS):
                raise EOFError("no answer")
            for worker in workers:
                worker.pipe.recv()
        except (OSError, EOFError) as error:
            self.close()
            raise MissingError(
                f"processes that read images can't be started ({error or type(error).__name__}); "
                f"wanted {self._count}. Let this user start processes, or give the machine more "
                "memory."
            ) from error
        with self._lock:
            self._idle += workers

    def close(self) -> None:
        """End all of them, whatever they are doing."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.end()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns; it, its arguments and the result must be picklable.

        Raises:
            EndedError: it took too long, or its process died.
            CallError: it raised.
            StoppedError: `close` was called.
        """
        self._places.acquire()
        place = self._places
        worker: _Worker | None = None
        try:
            worker = self._take()
            began, before = time.monotonic(), worker.processor_seconds()
            worker.pipe.send((function, arguments))
            if not worker.pipe.poll(_SLOW_SECONDS) and self._spare.acquire(blocking=False):
                place.release()
                place = self._spare
            self._wait(worker, began, before)
            done, result = worker.pipe.recv()
        except (OSError, EOFError) as error:
            self._drop(worker)
            if self._closed:
                raise StoppedError from error
            raise EndedError("its process died, killed or crashed", late=False) from error
        except BaseException:
            self._drop(worker)
            raise
        else:
            with self._lock:
                self._idle.append(worker)
        finally:
            place.release()
        if not done:
            raise CallError(result)
        return result

    def _wait(self, worker: _Worker, began: float, before: float | None) -> None:
        """Until there is a result.

        Raises:
            EndedError: it took too long.
        """
        while not worker.pipe.poll(min(self._seconds, 1.0)):
            passed = time.monotonic() - began
            now = worker.processor_seconds()
            used = passed if now is None or before is None else now - before
            if used > self._seconds or passed > _PATIENCE * self._seconds:
                raise EndedError(f"it took more than {self._seconds:g} s", late=True)

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise StoppedError
            if self._idle:
                return self._idle.pop()
        return self._started()

    def _drop(self, worker: _Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._all.discard(worker)
            worker.end()

    def _started(self) -> _Worker:
        if self._closed:
            raise StoppedError
        context = _context(self._modules)
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, self._memory), daemon=True)
        process.start()
        there.close()
        worker = _Worker(process, here)
        with self._lock:
            self._all.add(worker)
        return worker

    def prepared(self, decode: Decode, path: Path | str) -> Prepared | Prediction:
        """What `decode` makes of one file, or a row that says that reading it was ended."""
        return self._row(str(path), decode, str(path))

    def prepared_content(self, decode: Decoder, content: bytes, name: str) -> Prepared | Prediction:
        """The same for a file's content."""
        return self._row(name, decode.content, content, name)

    def _row(
        self, name: str, function: Callable[..., Any], *arguments: Any
    ) -> Prepared | Prediction:
        for _ in range(_TRIES):
            try:
                found: Prepared | Prediction = self.call(function, *arguments)
                return found
            except EndedError as error:
                if error.late:
                    return _too_slow(name, self._seconds)
            except CallError as error:
                return _failed(name, f"reading it failed ({error})")
        return _failed(
            name,
            f"{_TRIES} processes that read it died, killed or crashed. Convert it to PNG, or give "
            "the machine more memory",
        )


def decoded_in_processes(
    paths: Iterable[Path | str], decode: Decode, workers: int, window: int
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path in `workers` processes; in order, a window of files ahead.

    Raises:
        MissingError: the processes can't be started, or can't be sent what they are to do.
    """
    processes = Processes(workers)
    pool = ThreadPoolExecutor(workers)
    try:
        processes.start()
        try:
            processes.call(_nothing, decode)
        except EndedError as error:
            raise MissingError(
                f"found that processes that read images can't be started ({error}), wanted "
                f"{workers}. Leave --workers out to read in threads."
            ) from error
        remaining = iter(paths)
        flying: deque[Future[Prepared | Prediction]] = deque(
            pool.submit(processes.prepared, decode, path) for path in islice(remaining, window)
        )
        while flying:
            found = flying.popleft().result()
            flying.extend(
                pool.submit(processes.prepared, decode, path) for path in islice(remaining, 1)
            )
            yield found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.close()
        pool.shutdown()


def _too_slow(name: str, seconds: float) -> Prediction:
    detail = (
        f"reading it took more than {seconds:g} s and was ended. Save it anew, as PNG or "
        "uncompressed DICOM"
    )
    return Prediction(name, Reason.TOO_COMPLEX.status, Reason.TOO_COMPLEX, detail=detail)


def _failed(name: str, detail: str) -> Prediction:
    return Prediction(name, "error", Reason.INTERNAL_ERROR, detail=detail)


def _context(modules: Iterable[str]) -> Any:
    """How processes are begun: never as a copy of this one, whose threads hold locks.

    Where there is one, from a server that has loaded what they need: a new one takes milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "pneumoscope.images.dicom", *modules])
    return context


def _work(pipe: Connection, memory: int) -> None:
    """In a process: work through calls until the other side of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    # So does SIGTERM, where all processes of a service are told to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_silent()
    keep_freed_memory()
    _limit_memory(memory)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:  # noqa: BLE001 - who called is told of it
            answer = (False, f"{type(error).__name__}: {error}"[:500])
        pipe.send(answer)
        del answer, arguments


def _end_with_parent() -> None:
    """After a SIGKILL of the first process nobody tells its children: they look for themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _be_silent() -> None:
    """Let nothing be written: libraries print what is in a file, and the log is another's."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _limit_memory(most: int) -> None:
    """Let this process allocate no more than `most` bytes beside what it has."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + most
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _nothing(*_: Any) -> None:
    """See that calls arrive."""
