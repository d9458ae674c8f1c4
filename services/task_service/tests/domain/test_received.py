"""Ranges of received numbers hold exactly what was added."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from task_service.domain import received


@given(st.lists(st.integers(1, 60), max_size=200))
def test_each_number_is_new_once(numbers: list[int]) -> None:
    ranges: received.Ranges = []
    seen: set[int] = set()
    for number in numbers:
        assert received.add(ranges, number) == (number not in seen)
        seen.add(number)
        held = [item for first, last in ranges for item in range(first, last + 1)]
        assert held == sorted(seen)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(ranges))


def test_a_sequence_in_order_stays_one_range() -> None:
    ranges: received.Ranges = []
    for number in range(1, 10_001):
        received.add(ranges, number)
    assert ranges == [[1, 10_000]]


def test_a_gap_is_closed_when_its_number_comes_late() -> None:
    ranges = [[1, 4], [6, 9]]
    assert received.add(ranges, 5)
    assert ranges == [[1, 9]]
