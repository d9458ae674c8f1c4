"""The rules of quotas: months, what is left, when that is little."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_service.domain.quota import UNLIMITED, Quota, next_period, period


def microseconds(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp() * 1_000_000)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("time", "month", "reset"),
    [
        ((2026, 11, 30, 23, 59, 59), 202611, (2026, 12, 1)),
        ((2026, 12, 31, 23, 59, 59), 202612, (2027, 1, 1)),
        ((2027, 1, 1), 202701, (2027, 2, 1)),
        ((2028, 2, 29), 202802, (2028, 3, 1)),
    ],
)
def test_a_period_is_a_month_in_utc(time: tuple[int, ...], month: int, reset: tuple[int, ...]) -> None:
    assert period(microseconds(*time)) == month
    assert next_period(microseconds(*time)) == microseconds(*reset)


@pytest.mark.parametrize(
    ("allowance", "low_from"),
    [(100, 10), (1000, 100), (40, 5), (10, 5), (4, 2), (1, 0), (0, 0)],
)
def test_a_tenth_or_five_are_little(allowance: int, low_from: int) -> None:
    left = [remaining for remaining in range(allowance + 1) if Quota(allowance, allowance - remaining).low]
    assert left == list(range(low_from + 1))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_left_is_never_negative(allowance: int, used: int) -> None:
    quota = Quota(allowance, used)
    assert quota.remaining == max(0, allowance - used)
    assert quota.exhausted == (used >= allowance)
    assert quota.low or not quota.exhausted


def test_without_a_limit_nothing_is_ever_spent() -> None:
    quota = Quota(UNLIMITED, 10**9)
    assert (quota.remaining, quota.exhausted, quota.low) == (-1, False, False)
