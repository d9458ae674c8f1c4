"""Deleted tasks leave nothing behind, whenever the reaper dies."""

import signal
from pathlib import Path

import pytest
from sqlalchemy import func, select

from servicekit import subjects
from servicekit.errors import Unavailable
from servicekit.objects.file import FileObjectStore
from services.task_service.tests.streams.world import World, run_until_killed
from task_service.database.metrics import store_points
from task_service.database.models import (
    AttemptRow,
    CheckpointRow,
    LogArchiveRow,
    MetricPointRow,
    TaskDependencyRow,
    TaskLabelRow,
    TaskRow,
    TaskSourceRow,
    TaskSpecRow,
)
from task_service.domain.lifecycle import State
from task_service.streams import reaper as reaper_module
from task_service.streams.reaper import Reaper

FAR = 2**60
A, B = "a" * 26, "b" * 26
TABLES = (TaskRow, TaskSpecRow, TaskLabelRow, AttemptRow, CheckpointRow, LogArchiveRow, MetricPointRow)


async def full_task(world: World, task_id: str, **values: object) -> TaskRow:
    """A task with something of everything."""
    row = await world.create_task(task_id, state=State.COMPLETED, **values)
    async with world.database.sessions.begin() as session:
        session.add(TaskLabelRow(task_number=row.number, digest="k=v"))
        session.add(AttemptRow(task_number=row.number, attempt=1, run=1, worker="w"))
        session.add(CheckpointRow(task_number=row.number, attempt=1, run=1, step=5, prefix="p"))
        session.add(LogArchiveRow(task_number=row.number))
        await store_points(session, {(row.number, name, 1, step): (1.0, 0) for name in "xyz" for step in range(50)})
    for key in ("log.txt", "attempts/1/checkpoint-5/manifest.json", "attempts/1/checkpoint-5/model.safetensors"):
        await world.objects.put_bytes(f"tasks/{task_id}/{key}", b"content")
    await world.log(task_id, ["line"])
    return row


async def counts(world: World) -> list[int]:
    async with world.database.reading() as session:
        return [(await session.scalar(select(func.count()).select_from(table))) or 0 for table in TABLES]


async def keys(world: World) -> list[str]:
    return [info.key async for info in world.objects.list("tasks/")]


def reaper(world: World) -> Reaper:
    return Reaper(world.database, world.bus, world.objects)


async def test_everything_of_a_deleted_task_goes_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "POINTS", 40)
    await full_task(world, A)
    only_one = await counts(world)
    await full_task(world, B, delete_time=1)
    assert await reaper(world).reap_due() == 1
    assert await counts(world) == only_one
    assert {key.split("/")[1] for key in await keys(world)} == {A}
    assert await world.message_count(subjects.LOGS, "log.>") == 1
    assert await reaper(world).reap_due() == 0


async def test_it_waits_for_workers_that_may_still_write(world: World) -> None:
    await full_task(world, A, delete_time=1, reap_time=FAR)
    assert await reaper(world).reap_due() == 0


async def test_it_waits_for_tasks_that_read_the_output(world: World) -> None:
    await full_task(world, A, delete_time=1)
    dependent = await world.create_task(B, state=State.RUNNING)
    async with world.database.sessions.begin() as session:
        session.add(TaskDependencyRow(task_number=dependent.number, position=0, depends_on=A))
    assert await reaper(world).reap_due() == 0
    await world.set_task(dependent, state=State.COMPLETED)
    assert await reaper(world).reap_due() == 1


async def test_it_waits_for_tasks_that_start_from_it(world: World) -> None:
    await full_task(world, A, delete_time=1)
    export = await world.create_task(B, state=State.RUNNING)
    async with world.database.sessions.begin() as session:
        session.add(TaskSourceRow(task_number=export.number, source_id=A, steps=[5]))
    assert await reaper(world).reap_due() == 0
    await world.set_task(export, state=State.FAILED)
    assert await reaper(world).reap_due() == 1


class Refusing(FileObjectStore):
    """A store that cannot delete the objects of one task."""

    async def delete_prefix(self, prefix: str) -> None:
        if A in prefix:
            raise Unavailable("the object store is away")
        await super().delete_prefix(prefix)


async def test_one_tasks_trouble_is_not_anothers(world: World, tmp_path: Path) -> None:
    await full_task(world, A, delete_time=1)
    await full_task(world, B, delete_time=1)
    refusing = Refusing(tmp_path / "objects")
    assert await Reaper(world.database, world.bus, refusing).reap_due() == 1
    await refusing.close()
    assert {key.split("/")[1] for key in await keys(world)} == {A}
    assert await reaper(world).reap_due() == 1
    assert await keys(world) == []


STEPS = ["objects.delete_prefix", "bus.purge", "database.transaction"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_dying_at_any_step_leaves_nothing_behind(world: World, tmp_path: Path, step: str, when: str) -> None:
    await full_task(world, A, delete_time=1)
    assert await run_until_killed(world, tmp_path, "reaper", step, when) == -signal.SIGKILL
    assert await reaper(world).reap_due() == 1
    assert await counts(world) == [0] * len(TABLES)
    assert (await keys(world), await world.message_count(subjects.LOGS, "log.>")) == ([], 0)
