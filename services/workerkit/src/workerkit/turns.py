"""Turns at looking at data: a few at once, few of them for one user, and users that wait are served in turn."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from servicekit.errors import ResourceExhausted

P = ParamSpec("P")
T = TypeVar("T")

TOO_MANY_CHECKS = "TOO_MANY_CHECKS"
RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Turns at once, in all and of one user; requests that wait for one, in all and of one user."""

    at_once: int = 6
    of_user: int = 2
    waiting: int = 512
    waiting_of_user: int = 128


class InThread(Protocol):
    """Runs a function that blocks in a thread, as asyncio.to_thread and Turns.run do."""

    async def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


class Turns:
    """Has threads of its own: what else the service does in threads never waits for somebody's data."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._threads = ThreadPoolExecutor(self.limits.at_once, "data-check")
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the user that is served next comes first

    @contextlib.asynccontextmanager
    async def of(self, user: str) -> AsyncIterator[None]:
        """A user's turn, for which it waits. Raises ResourceExhausted when too many wait already."""
        if self._may_begin(user):
            self._running[user] += 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._running[user] -= 1
            self._begin_next()

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function that blocks, in a thread; one that is cancelled ends when the thread is free again."""
        call: Callable[[], T] = lambda: function(*args, **kwargs)  # noqa: E731
        work = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.gather(work, return_exceptions=True)
            raise

    def _may_begin(self, user: str) -> bool:
        return self._running.total() < self.limits.at_once and self._running[user] < self.limits.of_user

    async def _wait(self, user: str) -> None:
        mine = self._waiting.get(user, ())
        if len(mine) >= self.limits.waiting_of_user or sum(map(len, self._waiting.values())) >= self.limits.waiting:
            which = "you have" if len(mine) >= self.limits.waiting_of_user else "there are"
            raise ResourceExhausted(
                f"{which} too many checks of data at once; try again in {RETRY_AFTER_SECONDS} s",
                reason=TOO_MANY_CHECKS,
                metadata={"retry_after_seconds": str(RETRY_AFTER_SECONDS)},
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(user, turn)
            else:  # it came at the same moment
                self._running[user] -= 1
                self._begin_next()
            raise

    def _begin_next(self) -> None:
        while (user := next(filter(self._may_begin, self._waiting), None)) is not None:
            turns = self._waiting.pop(user)
            turn = turns.popleft()
            if turns:
                self._waiting[user] = turns  # behind the others
            if not turn.cancelled():
                self._running[user] += 1
                turn.set_result(None)
        self._running += Counter()  # forgets who has none

    def _forget(self, user: str, turn: Any) -> None:
        turns = self._waiting.get(user, deque())
        with contextlib.suppress(ValueError):
            turns.remove(turn)
        if not turns:
            self._waiting.pop(user, None)
