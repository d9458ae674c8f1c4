"""One replica at a time runs the background duties."""

import asyncio

from services.task_service.tests.harness import Service
from task_service.database.models import LeaseRow
from task_service.leader import Lease, keep_running, lead
from tests.support.waiting import eventually


async def test_one_of_many_gets_the_lease(service: Service) -> None:
    leases = [Lease(service.core.database, 30.0) for _ in range(6)]
    assert sum(await asyncio.gather(*(lease.acquire() for lease in leases))) == 1


async def test_the_holder_extends_and_others_wait(service: Service) -> None:
    first, second = Lease(service.core.database, 30.0), Lease(service.core.database, 30.0)
    assert await first.acquire()
    assert await first.acquire()
    assert not await second.acquire()
    await first.release()
    assert await second.acquire()
    await first.release()
    assert not await first.acquire()


async def test_a_lease_runs_out(service: Service) -> None:
    dead, heir = Lease(service.core.database, 0.05), Lease(service.core.database, 30.0)
    assert await dead.acquire()
    assert await eventually(heir.acquire)
    assert not await dead.acquire()


async def test_an_end_in_a_far_future_is_not_waited_for(service: Service) -> None:
    assert await Lease(service.core.database, 5.0).acquire()
    async with service.core.database.sessions.begin() as session:
        row = await session.get(LeaseRow, "background-duties")
        assert row is not None
        row.expire_time += 3600 * 1_000_000
    assert await Lease(service.core.database, 5.0).acquire()


async def test_duties_move_to_another_replica(service: Service) -> None:
    running: set[str] = set()
    together: list[int] = []

    def duty(name: str):  # type: ignore[no-untyped-def]
        async def run() -> None:
            running.add(name)
            together.append(len(running))
            try:
                await asyncio.Event().wait()
            finally:
                running.discard(name)

        return run

    replicas = {
        name: asyncio.create_task(lead(Lease(service.core.database, 0.3), {"duty": duty(name)}))
        for name in ("one", "two")
    }
    first = next(iter(await eventually(lambda: set(running))))
    replicas[first].cancel()
    await asyncio.gather(replicas[first], return_exceptions=True)
    other = {"one", "two"} - {first}
    await eventually(lambda: running == other)
    for task in replicas.values():
        task.cancel()
    await asyncio.gather(*replicas.values(), return_exceptions=True)
    assert max(together) == 1
    assert not running


async def test_a_holder_that_lost_its_lease_steps_down(service: Service) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def duty() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(lead(Lease(service.core.database, 0.3), {"duty": duty}))
    await asyncio.wait_for(started.wait(), 10)
    async with service.core.database.sessions.begin() as session:
        row = await session.get(LeaseRow, "background-duties")
        assert row is not None
        row.holder, row.expire_time = "somebody else", row.expire_time + 1_000_000
    await asyncio.wait_for(ended.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_duty_that_fails_starts_again(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("task_service.leader.RESTART_SECONDS", 0.0)
    calls = 0

    async def duty() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("once more")

    await keep_running("duty", duty)
    assert calls == 3
