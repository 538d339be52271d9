"""Who is taken on, who waits, and who is turned away: a bounded queue before a few threads.

Comes in: functions that answer for one film. Goes out: their results, in the event loop. What can't
be begun soon is refused at once, before its body is read: so those that are taken on are answered
in time, however many ask. Knows nothing of HTTP but the 503 that it refuses with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest.problems import ClientGoneError, overloaded

ResultT = TypeVar("ResultT")

_WEIGHT = 0.1
"""Of the newest film in the running mean."""


class WorkQueue:
    """A few threads, and what waits for them. All methods but the work run in the event loop.

    Args:
        config: how many threads, how many may wait, and for how long.

    Attributes:
        requests: that were taken on and are not done.
        films: that wait for a thread or are in one.
        cost: running mean of the machine's seconds per film: its time in a thread over how many
            were in threads beside it.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._pool = ThreadPoolExecutor(config.workers, "film")
        self.requests = 0
        self.films = 0
        self.cost = 0.1

    @property
    def expected(self) -> float:
        """Seconds until a request that comes now would have its answer."""
        return (max(self.requests, self.films) + 1) * self.cost

    @contextmanager
    def taken_on(self) -> Iterator[None]:
        """Room for one request, until the block ends.

        Raises:
            RequestError: 503, with the seconds after which to try again.
        """
        full = self.requests >= self._config.workers + self._config.waiting
        late = self.expected - self._config.longest_wait
        # Where nothing else is under way, waiting would not make it faster.
        if full or (self.requests and late > 0):
            words = f"{self.requests} requests are under way, no room for more"
            raise overloaded(words, self.expected if full else late)
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def run(self, work: Callable[[], ResultT], gone: Awaitable[None]) -> ResultT:
        """The result of `work`, done in a thread.

        Args:
            work: answers for one film.
            gone: ends when nobody wants the result any more; it is then not begun.

        Raises:
            ClientGoneError: `gone` ended first.
        """
        loop = asyncio.get_running_loop()
        leaving = asyncio.ensure_future(gone)
        try:
            job = self._pool.submit(_timed, work)
            self.films += 1
            beside = self.films
            # Counted until the thread is done with it, even if nobody waits for it any more.
            job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_down))
            running = asyncio.wrap_future(job)
            ends: set[asyncio.Future[Any]] = {running, leaving}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not running.done():
                    raise ClientGoneError("the client hung up before it had its answer")
                seconds, result = running.result()
            finally:
                running.cancel()  # of what was begun, the thread makes an end all the same
        finally:
            leaving.cancel()
        beside = min(max(beside, self.films + 1), self._config.workers)
        self.cost += _WEIGHT * (seconds / beside - self.cost)
        return result

    def close(self) -> None:
        """Begin nothing more; what was begun is finished."""
        self._pool.shutdown(cancel_futures=True)

    def _count_down(self) -> None:
        self.films -= 1


def _timed(work: Callable[[], ResultT]) -> tuple[float, ResultT]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
