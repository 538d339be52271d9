"""Items are prefetched while the current one is in use; none is lost, repeated or left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pneumoscope.prefetching import overlapped, prefetched


def test_yields_the_same_items_in_the_same_order() -> None:
    assert list(prefetched(iter(range(50)))) == list(range(50))
    assert list(prefetched(iter([]))) == []


def test_makes_the_next_item_while_this_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    taken = prefetched(items())
    for number in taken:
        if number < 3:
            assert made[number + 1].wait(30), "the next one is not made in advance"
        # One item in advance only, because items may be large.
        assert not any(event.is_set() for event in made[number + 2 :])


def test_as_many_as_asked_for_are_made_ahead() -> None:
    made: list[int] = []
    fifth = threading.Event()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            if number == 5:
                fifth.set()
            yield number

    taken = prefetched(items(), most=5)
    assert next(taken) == 0
    assert fifth.wait(30)
    assert len(made) == 6
    assert list(taken) == list(range(1, 20))


def test_items_are_made_in_one_other_thread() -> None:
    seen = []

    def items() -> Iterator[int]:
        for number in range(10):
            seen.append(threading.get_ident())
            yield number

    list(prefetched(items()))
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()


def test_an_error_in_the_making_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk")

    before = threading.active_count()
    taken: list[int] = []
    with pytest.raises(OSError, match="disk"):
        taken.extend(prefetched(items()))
    assert taken == [1, 2]
    assert threading.active_count() == before


@pytest.mark.parametrize("leaving", ["close", "error"])
def test_leaving_early_calls_stop_and_leaves_no_thread(leaving: str) -> None:
    before, stopped = threading.active_count(), threading.Event()

    def items() -> Iterator[int]:
        number = 0
        while not (number and stopped.wait(0.001)):  # endless without the stop signal
            yield number
            number += 1

    taken = prefetched(items(), stopped.set)
    assert next(taken) == 0
    if leaving == "close":
        taken.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            taken.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert stopped.is_set()
    assert threading.active_count() == before


def test_two_are_under_way_and_come_out_in_order() -> None:
    both = threading.Barrier(2)

    def work(number: int) -> int:
        if number < 2:
            both.wait(30)  # would break if the second were not begun before the first is done
        return number * number

    assert list(overlapped(work, range(20))) == [(n, n * n) for n in range(20)]
    assert list(overlapped(work, [])) == []


def test_no_more_items_are_taken_than_are_under_way() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = overlapped(str, items(), most=3)
    assert next(results) == (0, "0")
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("leaving", ["close", "work", "items"])
def test_whatever_ends_it_leaves_no_thread(leaving: str) -> None:
    before = threading.active_count()

    def work(number: int) -> int:
        if leaving == "work" and number == 3:
            raise OSError("disk")
        return number

    def items() -> Iterator[int]:
        yield from range(5)
        if leaving == "items":
            raise OSError("disk")
        yield from range(5, 100)

    results = overlapped(work, items())
    if leaving == "close":
        assert next(results) == (0, 0)
        results.close()
    else:
        with pytest.raises(OSError, match="disk"):
            list(results)
    assert threading.active_count() == before
