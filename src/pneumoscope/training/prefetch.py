"""Work ahead by one: the next batch is made in a thread while the present one is in use.

Comes in: an iterator. Goes out: the same items in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], stop: Callable[[], object] = lambda: None) -> Iterator[Item]:
    """The items, each fetched in a thread while the one before it is in use.

    Args:
        items: is advanced in the thread alone.
        stop: called when nobody wants the rest (Ctrl-C), before the thread is waited for.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            following = pool.submit(next, items, None)
            while (current := following.result()) is not None:
                following = pool.submit(next, items, None)
                yield current
        finally:
            stop()
