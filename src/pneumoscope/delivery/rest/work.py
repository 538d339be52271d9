"""Who is taken on, who waits, and who is turned away: a bounded queue before the threads that work.

Comes in: requests, and futures of films' answers. Goes out: the answers, in the event loop. What
can't be answered soon is refused at once, before its body is read: so those that are taken on are
answered in time, however many ask. Knows nothing of HTTP but the 503 that it refuses with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest.problems import ClientGoneError, overloaded

ResultT = TypeVar("ResultT")

_WEIGHT = 0.1
"""Of the newest film in the running mean."""


class WorkQueue:
    """Counts what is under way. All methods run in the event loop.

    Args:
        config: how much may be under way, and for how long.

    Attributes:
        requests: that were taken on and are not done.
        films: that wait for an answer, or are worked on though nobody waits any more.
        cost: running mean of the machine's seconds per film: how long a film took over how many
            there were (Little, A proof for the queuing formula L = λW, 1961).
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
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
        full = self.requests >= self._config.requests
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

    async def result(self, job: Future[ResultT], gone: Awaitable[None]) -> ResultT:
        """What `job` comes to.

        Args:
            job: a film's answer, under way; cancelled if nobody waits for it.
            gone: ends when nobody wants the result any more.

        Raises:
            ClientGoneError: `gone` ended first.
        """
        loop = asyncio.get_running_loop()
        leaving = asyncio.ensure_future(gone)
        began = time.perf_counter()
        self.films += 1
        beside = self.films
        # Counted until the threads are done with it, even if nobody waits for it any more.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_down))
        running = asyncio.wrap_future(job)
        ends: set[asyncio.Future[Any]] = {running, leaving}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise ClientGoneError("the client hung up before it had its answer")
            result = running.result()
        finally:
            running.cancel()  # of what was begun, the threads make an end all the same
            leaving.cancel()
        films = max(1.0, (beside + self.films) / 2)
        self.cost += _WEIGHT * ((time.perf_counter() - began) / films - self.cost)
        return result

    def _count_down(self) -> None:
        self.films -= 1
