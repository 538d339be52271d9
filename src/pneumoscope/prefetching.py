"""Prefetching: the next items are computed in threads while the current one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(
    items: Iterator[Item], stop: Callable[[], object] = lambda: None, *, most: int = 1
) -> Iterator[Item]:
    """Yield the items in order, fetching the next ones in a thread meanwhile.

    Args:
        items: an iterator; it is advanced in the thread only.
        stop: called when the consumer stops early (Ctrl-C), before the thread is joined.
        most: number of items fetched in advance.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = deque(pool.submit(next, items, None) for _ in range(most))
        try:
            while (current := following.popleft().result()) is not None:
                following.append(pool.submit(next, items, None))
                yield current
        finally:
            for waiting in following:
                waiting.cancel()
            stop()


def overlapped(
    work: Callable[[Item], Made], items: Iterable[Item], *, most: int = 2
) -> Generator[tuple[Item, Made]]:
    """Yield each item with the result of `work` on it, in order; a few calls overlap.

    For work that leaves cores idle at its end: the next call starts before the previous one ends.

    Args:
        work: must be safe to call from several threads.
        items: an iterable; it is advanced in the consumer's thread.
        most: number of concurrent calls, and of items held.
    """
    with ThreadPoolExecutor(most) as pool:
        flying: deque[tuple[Item, Future[Made]]] = deque()
        try:
            for item in items:
                flying.append((item, pool.submit(work, item)))
                if len(flying) == most:
                    first, made = flying.popleft()
                    yield first, made.result()
            while flying:
                first, made = flying.popleft()
                yield first, made.result()
        finally:  # after Ctrl-C, or if the consumer stops early
            for _, made in flying:
                made.cancel()
