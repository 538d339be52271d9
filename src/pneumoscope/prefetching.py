"""Work ahead: the next items are made in threads while the present one is in use.

Comes in: an iterator. Goes out: the same items, or what was made of them, in the same order.
"""

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
    """The items, each fetched in a thread while those before it are in use.

    Args:
        items: is advanced in the thread alone.
        stop: called when nobody wants the rest (Ctrl-C), before the thread is waited for.
        most: how many are fetched before they are wanted.
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
    """Each item and what `work` makes of it, a few of them under way at a time.

    For work that leaves cores idle at its end: the next is begun before.

    Args:
        work: may be called in several threads at once.
        items: are advanced by who asks for the results.
        most: how many are under way; as many items are held.
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
        finally:  # after Ctrl-C, or when nobody wants the rest
            for _, made in flying:
                made.cancel()
