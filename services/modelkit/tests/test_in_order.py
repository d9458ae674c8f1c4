"""Results come in order, few are made ahead, and nothing goes on after an end."""

import os
import threading
from collections.abc import Iterator

import pytest

from modelkit.in_order import MOST_THREADS, in_order


def test_results_come_in_the_order_of_the_items() -> None:
    """Also when an item is done before the one in front of it."""
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0 and len(os.sched_getaffinity(0)) > 1:
            assert second_done.wait(60)
        elif item == 1:
            second_done.set()
        return item * item

    assert list(in_order(work, range(50))) == [item * item for item in range(50)]


def test_few_items_are_taken_ahead() -> None:
    """What is made before it is asked for is bounded."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items())
    assert next(results) == 0
    assert len(taken) <= 2 * MOST_THREADS + 1
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 2 * MOST_THREADS + 1


def test_what_goes_wrong_is_raised_in_its_place() -> None:
    """What came before it is given; what would come after it is not begun."""
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("row 3")
        return item

    results = in_order(work, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(results)
    assert max(begun) <= 3 + 2 * MOST_THREADS + 1
