"""Waiting on conditions, in place of sleeping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

SECONDS = 10.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.2


def wait_until(condition: Callable[[], T | None], seconds: float = SECONDS, what: str = "") -> T:
    """Calls condition until its result is true and returns that. TimeoutError names what was waited for."""
    deadline, pause = time.monotonic() + seconds, SHORTEST_PAUSE
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(_message(condition, seconds, what))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return result


@overload
async def eventually(condition: Callable[[], Awaitable[T | None]], seconds: float = SECONDS, what: str = "") -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], seconds: float = SECONDS, what: str = "") -> T: ...
async def eventually(condition: Callable[[], Any], seconds: float = SECONDS, what: str = "") -> Any:
    """Like wait_until, without blocking the event loop; the condition may be a coroutine function."""
    deadline, pause = time.monotonic() + seconds, SHORTEST_PAUSE
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(_message(condition, seconds, what))
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _message(condition: Callable[..., object], seconds: float, what: str) -> str:
    return f"waited {seconds:g} s in vain for {what or getattr(condition, '__qualname__', condition)}"
