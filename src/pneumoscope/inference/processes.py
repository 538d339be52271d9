"""Worker processes with limits on time and memory, for reading untrusted files.

A call of a C library can't be interrupted, and a crash in one ends its whole process. So untrusted
files are read in worker processes. Each call has a time limit and each process a memory limit. A
process that exceeds a limit or crashes is replaced, while the others continue.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
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
from pneumoscope.reading import limit_memory
from pneumoscope.records import Prediction

MOST_MEMORY = 2 << 30
"""Bytes that a call may allocate; 50 megapixels in colour need about half of it."""

_PATIENCE = 3.0
"""Wall-time limit of a call, as a multiple of its processor-time limit, for busy machines."""

_SLOW_SECONDS = 1.0
"""A longer call stops blocking the next one, as long as spare processes are left."""

_TRIES = 2
"""Processes that may die on a file before it is given up: one may have been killed because of
another file's memory use."""

_START_SECONDS = 120.0
"""Time limit for the start of a process; on a busy machine Python alone takes seconds to start."""


class EndedError(Exception):
    """A call did not finish: it took too long, or its process died.

    Attributes:
        late: whether it took too long.
    """

    def __init__(self, words: str, *, late: bool) -> None:
        super().__init__(words)
        self.late = late


class StoppedError(Exception):
    """A call did not finish because all processes were closed; its file may be fine."""


class CallError(Exception):
    """A call raised an exception; the message names its type and text."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A process, and this side of its pipe."""

    process: BaseProcess
    pipe: Connection

    def end(self) -> None:
        """Kill it, because it may be in a library that ignores other signals."""
        self.process.kill()
        self.pipe.close()
        self.process.join()

    def processor_seconds(self) -> float | None:
        """Processor time used so far; `None` where the system does not report it."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rsplit(")", 1)[1]
        except (OSError, IndexError):
            return None
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Processes:
    """A pool of worker processes; safe for any number of threads.

    Args:
        count: number of concurrent calls.
        spare: further concurrent calls, which replace slow ones so that these don't block others.
        seconds: processor-time limit of a call.
        memory: bytes that a call may allocate.
        modules: modules that calls import, loaded once for all processes; only the values of the
            first pool in this process take effect.
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
        """Start all processes now, so that no call waits for it.

        Raises:
            MissingError: they do not respond.
        """
        try:
            workers = [self._started() for _ in range(self._count)]
            for worker in workers:
                worker.pipe.send((_nothing, ()))
            if not workers[0].pipe.poll(_START_SECONDS):
                raise EOFError("no response")
            for worker in workers:
                worker.pipe.recv()
        except (OSError, EOFError) as error:
            self.close()
            raise MissingError(
                f"processes that read images can't be started ({error or type(error).__name__}); "
                f"wanted {self._count}. Allow this user to start processes, or give the machine "
                "more memory."
            ) from error
        with self._lock:
            self._idle += workers

    def close(self) -> None:
        """Kill all processes, including running calls."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.end()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function` in a process; it, its arguments and the result must be picklable.

        Raises:
            EndedError: it took too long, or its process died.
            CallError: it raised an exception.
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
        """Wait for a result.

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
        """Apply `decode` to one file; returns an error row if reading it was aborted."""
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
            f"{_TRIES} processes that read it were killed or crashed. Convert it to PNG, or give "
            "the machine more memory",
        )


def decoded_in_processes(
    paths: Iterable[Path | str], decode: Decode, workers: int, window: int
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path in `workers` processes, in order, a window of files ahead.

    Raises:
        MissingError: the processes can't be started, or can't receive the function.
    """
    processes = Processes(workers)
    pool = ThreadPoolExecutor(workers)
    try:
        processes.start()
        try:
            processes.call(_nothing, decode)
        except EndedError as error:
            raise MissingError(
                f"processes that read images can't be started ({error}), wanted {workers}. Leave "
                "out --workers to read in threads."
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
        f"reading it took more than {seconds:g} s and was aborted. Save it again, as PNG or "
        "uncompressed DICOM"
    )
    return Prediction(name, Reason.TOO_COMPLEX.status, Reason.TOO_COMPLEX, detail=detail)


def _failed(name: str, detail: str) -> Prediction:
    return Prediction(name, "error", Reason.INTERNAL_ERROR, detail=detail)


def _context(modules: Iterable[str]) -> Any:
    """The start method of processes: never fork, because this process has threads that hold locks.

    A fork server, where available, preloads the modules, so a new process takes milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["__main__", __name__, "pneumoscope.images.dicom.decode", *modules]
    )
    return context


def _work(pipe: Connection, memory: int) -> None:
    """Main loop of a process: run calls until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    # It also handles SIGTERM, which a service manager may send to all processes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_silent()
    keep_freed_memory()
    limit_memory(memory)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = (True, function(*arguments))
        except Exception as error:  # noqa: BLE001 - reported to the caller
            result = (False, f"{type(error).__name__}: {error}"[:500])
        pipe.send(result)
        del result, arguments


def _end_with_parent() -> None:
    """Exit when the parent is gone: after its SIGKILL no signal reaches the children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _be_silent() -> None:
    """Suppress all output, because libraries print content of files and the parent owns the log."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _nothing(*_: Any) -> None:
    """Do nothing; used to check that calls arrive."""
