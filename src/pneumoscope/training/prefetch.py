"""Work ahead: the next items are made in a thread while the present one is in use.

Comes in: an iterator. Goes out: the same items in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(
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
