"""Who is taken on, who waits, and who is turned away: a bounded queue before the threads that work.

Comes in: requests, and futures of films' answers. Goes out: the answers, in the event loop. What
can't be answered soon is refused at once, before its body is read: so those that are taken on are
answered in time, however many ask. Knows nothing of HTTP but the 503 that it refuses with.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest.problems import ClientGoneError, overloaded

ResultT = TypeVar("ResultT")

_WEIGHT = 0.1
"""Of the newest film in the running mean."""

_MOST_JUMP = 4.0
"""Times the mean that one film counts at most."""

SLOW_SECONDS = 2.0
"""A body that has been coming in for longer dawdles."""


@dataclass(slots=True, eq=False)
class Place:
    """One request that was taken on.

    Attributes:
        address: of its client.
        began: as of `time.monotonic`.
        receiving: whether its body is still coming in.
        ended: why it was ended to make room; "" while it wasn't.
        task: that works on it.
    """

    address: str
    began: float = field(default_factory=time.monotonic)
    receiving: bool = True
    ended: bool = False
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)

    @property
    def slow(self) -> bool:
        """Whether its body has been coming in for long: it costs nothing but its place."""
        return self.receiving and time.monotonic() - self.began > SLOW_SECONDS

    def end(self) -> None:
        """Stop waiting for its body."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()


class WorkQueue:
    """Counts what is under way. All methods run in the event loop.

    Args:
        config: how much may be under way, and for how long.

    Attributes:
        films: that wait for an answer, or are worked on though nobody waits any more.
        cost: running mean of the machine's seconds per film: how long a film took over how many
            there were (Little, A proof for the queuing formula L = λW, 1961).
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._places: set[Place] = set()
        self.films = 0
        self.cost = 0.1

    @property
    def requests(self) -> int:
        """Requests that were taken on and are not done."""
        return len(self._places)

    @property
    def expected(self) -> float:
        """Seconds until a request that comes now would have its answer."""
        busy = sum(not place.slow for place in self._places)
        return (max(busy, self.films) + 1) * self.cost

    @contextmanager
    def taken_on(self, address: str = "") -> Iterator[Place]:
        """Room for one request, until the block ends.

        Where there is none, the oldest request whose body dawdles gives its place, of the address
        that has most of them; and no address has more than half of all places for such.

        Raises:
            RequestError: 503, with the seconds after which to try again.
        """
        late = self.expected - self._config.longest_wait
        busy = any(not place.slow for place in self._places)
        # Where nothing else is under way, waiting would not make it faster.
        if busy and late > 0:
            words = f"{self.requests} requests are under way, no room for more"
            raise overloaded(words, late)
        self._make_room(address)
        if self.requests >= self._config.requests:
            words = f"{self.requests} requests are under way, no room for more"
            raise overloaded(words, self.expected)
        place = Place(address)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)

    def _make_room(self, address: str) -> None:
        slow = [place for place in self._places if place.slow]
        counts = Counter(place.address for place in slow)
        if slow and self.requests >= self._config.requests:
            self._end_oldest(slow, counts.most_common(1)[0][0])
        elif counts[address] > self._config.requests // 2:
            self._end_oldest(slow, address)

    def _end_oldest(self, places: list[Place], address: str) -> None:
        theirs = [place for place in places if place.address == address]
        oldest = min(theirs, key=lambda place: place.began)
        oldest.end()
        self._places.discard(oldest)

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
        # One that was made to take long must not turn others away.
        took = min((time.perf_counter() - began) / films, _MOST_JUMP * self.cost)
        self.cost += _WEIGHT * (took - self.cost)
        return result

    def _count_down(self) -> None:
        self.films -= 1
