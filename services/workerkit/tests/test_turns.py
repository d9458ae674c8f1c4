"""Nobody's slow checks of data keep others waiting, and nobody's crowd of them fills the service (fault 56)."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from servicekit.errors import ResourceExhausted
from workerkit.turns import Limits, Turns

DEADLINE = 20.0


class Slow:
    """Checks that end when they are told to, and what has begun."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.may_end: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    async def check(self, user: str, name: str) -> None:
        self.may_end[name] = asyncio.Event()
        async with self.turns.of(user):
            self.begun.append(name)
            async with self._changed:
                self._changed.notify_all()
            await self.may_end[name].wait()

    def start(self, *names: str) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(self.check(name[0], name)) for name in names]

    async def has_begun(self, *names: str) -> None:
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(lambda: set(names) <= set(self.begun))
        assert sorted(self.begun) == sorted(names)

    def end(self, name: str) -> None:
        self.may_end[name].set()


@contextlib.asynccontextmanager
async def slow(limits: Limits) -> AsyncIterator[Slow]:
    checks = Slow(Turns(limits))
    try:
        yield checks
    finally:
        for event in checks.may_end.values():
            event.set()


async def test_users_are_served_in_turn() -> None:
    async with slow(Limits(at_once=3, of_user=2)) as checks:
        tasks = checks.start("a1", "a2", "a3", "a4", "b1", "b2", "c1")
        await checks.has_begun("a1", "a2", "b1")
        checks.end("b1")
        await checks.has_begun("a1", "a2", "b1", "b2")
        checks.end("a1")
        await checks.has_begun("a1", "a2", "b1", "b2", "a3")
        checks.end("a2")
        await checks.has_begun("a1", "a2", "b1", "b2", "a3", "c1")
        for name in ("a3", "b2", "c1"):
            checks.end(name)
        await checks.has_begun("a1", "a2", "a3", "a4", "b1", "b2", "c1")
        checks.end("a4")
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)


async def test_a_crowd_is_told_to_come_back() -> None:
    limits = Limits(at_once=2, of_user=1, waiting=3, waiting_of_user=2)
    async with slow(limits) as checks:
        checks.start("a1", "b1", "a2", "a3")
        await checks.has_begun("a1", "b1")
        with pytest.raises(
            ResourceExhausted, match="you have too many checks of data at once; try again in 5 s"
        ) as told:
            await checks.check("a", "a4")
        assert (told.value.reason, told.value.metadata) == ("TOO_MANY_CHECKS", {"retry_after_seconds": "5"})
        checks.start("b2")
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="there are too many"):
            await checks.check("b", "b3")


async def test_a_user_without_a_name_is_served_too() -> None:
    async with slow(Limits(at_once=1)) as checks:
        checks.start("first")
        await checks.has_begun("first")
        nameless = asyncio.create_task(checks.check("", "nameless"))
        await asyncio.sleep(0)  # it waits
        checks.end("first")
        await checks.has_begun("first", "nameless")
        checks.end("nameless")
        await nameless


async def test_who_gives_up_waiting_is_passed_over() -> None:
    async with slow(Limits(at_once=1, of_user=1, waiting=2)) as checks:
        _, given_up, _ = checks.start("a1", "b1", "b2")
        await checks.has_begun("a1")
        given_up.cancel()
        await asyncio.wait([given_up])
        checks.end("a1")
        await checks.has_begun("a1", "b2")


async def test_who_gives_up_as_the_turn_comes_hands_it_on() -> None:
    turns = Turns(Limits(at_once=1, of_user=1))

    async def take(user: str) -> str:
        async with turns.of(user):
            return user

    async with asyncio.timeout(DEADLINE):
        async with turns.of("a"):
            given_up, last = asyncio.create_task(take("b")), asyncio.create_task(take("c"))
            await asyncio.sleep(0)
        given_up.cancel()
        assert await last == "c"
        with pytest.raises(asyncio.CancelledError):
            await given_up


async def test_a_turn_lasts_until_its_thread_is_free() -> None:
    """A caller that goes away leaves a thread that goes on reading."""
    turns, entered, may_end = Turns(Limits(at_once=1, of_user=1)), threading.Event(), threading.Event()

    def read() -> str:
        entered.set()
        may_end.wait(DEADLINE)
        return "read"

    async def check() -> str:
        async with turns.of("a"):
            return await turns.run(read)

    async with asyncio.timeout(DEADLINE):
        first = asyncio.create_task(check())
        await asyncio.to_thread(entered.wait)
        first.cancel()
        second = asyncio.create_task(check())
        for _ in range(20):
            await asyncio.sleep(0)
        assert turns._running["a"] == 1
        assert not first.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == "read"


async def test_an_error_of_a_check_is_its_callers() -> None:
    turns = Turns()

    def fail() -> None:
        raise KeyError("x")

    for _ in range(2 * turns.limits.at_once):
        with pytest.raises(KeyError):
            async with turns.of("a"):
                await turns.run(fail)
