"""Series of metrics, on SQLite and PostgreSQL."""

import math
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from servicekit.database import create_engine
from servicekit.errors import NotFound
from services.task_service.tests.streams.world import OWNER, STRANGER
from task_service.database.access import Database
from task_service.database.metrics import store_points
from task_service.database.models import Base, TaskRow
from task_service.domain.lifecycle import State
from task_service.streams.metrics import MetricReader
from tunesmith.task.v1 import task_pb2

TASK = "t" * 26
Pairs = list[tuple[int, float]]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    postgresql = request.param == "postgresql"
    url = request.getfixturevalue("postgres_url") if postgresql else f"sqlite:///{tmp_path}/tasks.db"
    engine = create_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    database = Database(engine)
    async with database.sessions.begin() as session:
        for number, task_id in enumerate([TASK, "u" * 26], 1):
            session.add(
                TaskRow(
                    number=number,
                    id=task_id,
                    owner=OWNER.user,
                    name="",
                    kind=task_pb2.KIND_FINETUNE,
                    pool="",
                    request_hash="",
                    state=State.RUNNING,
                )
            )
    yield database
    await engine.dispose()


async def store(
    database: Database, name: str, points: Sequence[tuple[int, float]], run: int = 1, task: int = 1
) -> None:
    async with database.sessions.begin() as session:
        await store_points(session, {(task, name, run, step): (value, 0) for step, value in points})


async def series(database: Database, **options: object) -> dict[str, Pairs]:
    found = await MetricReader(database).series(OWNER, TASK, **options)  # type: ignore[arg-type]
    assert [item.name for item in found] == sorted({item.name for item in found})
    return {item.name: list(zip(item.steps, item.values, strict=True)) for item in found}


async def test_all_points_when_they_are_few(database: Database) -> None:
    loss = [(step, 1 / step) for step in range(1, 101)]
    await store(database, "loss", loss)
    await store(database, "grad_norm", loss[:3])
    await store(database, "loss", [(5, 5.0)], task=2)
    assert await series(database) == {"grad_norm": loss[:3], "loss": loss}
    assert await series(database, names=["loss", "unknown"]) == {"loss": loss}
    assert await series(database, after_step=98) == {"loss": loss[98:]}
    assert await series(database, after_step=100) == {}
    assert await series(database, max_points=100) == {"grad_norm": loss[:3], "loss": loss}


async def test_a_task_without_points(database: Database) -> None:
    assert await series(database) == {}


async def test_others_see_no_points(database: Database) -> None:
    for principal, task_id in [(STRANGER, TASK), (OWNER, "v" * 26)]:
        with pytest.raises(NotFound):
            await MetricReader(database).series(principal, task_id)


async def test_values_that_are_no_ordinary_numbers(database: Database) -> None:
    await store(database, "loss", [(1, math.nan), (2, math.inf), (3, -math.inf), (4, 0.0)])
    (points,) = (await series(database)).values()
    assert math.isnan(points[0][1])
    assert points[1:] == [(2, math.inf), (3, -math.inf), (4, 0.0)]


async def test_runs_share_one_axis(database: Database) -> None:
    """A run resumed from step 100 takes over where it logs first; what the run before had beyond is gone."""
    await store(database, "loss", [(step, 1.0) for step in range(10, 160, 10)], run=1)
    await store(database, "loss", [(step, 2.0) for step in range(110, 140, 10)], run=2)
    await store(database, "eval_loss", [(50, 1.0), (100, 1.0), (150, 1.0)], run=1)
    expected = [(step, 1.0) for step in range(10, 110, 10)] + [(110, 2.0), (120, 2.0), (130, 2.0)]
    assert await series(database) == {"eval_loss": [(50, 1.0), (100, 1.0), (150, 1.0)], "loss": expected}
    # A third one, from an early checkpoint, leaves nothing of the second.
    await store(database, "loss", [(step, 3.0) for step in (30, 40)], run=3)
    assert (await series(database))["loss"] == [(10, 1.0), (20, 1.0), (30, 3.0), (40, 3.0)]
    assert await series(database, names=["loss"], after_step=10) == {"loss": [(20, 1.0), (30, 3.0), (40, 3.0)]}


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 10, 99, 500])
async def test_thinning_keeps_ends_and_spikes(database: Database, limit: int) -> None:
    generator = random.Random(limit)
    steps = sorted(generator.sample(range(-1000, 100_000), 1500))
    points = [(step, generator.gauss(0, 1)) for step in steps]
    high, low = sorted(generator.sample(range(1, 1499), 2))
    points[high], points[low] = (steps[high], 1000.0), (steps[low], -1000.0)
    await store(database, "loss", points[:900], run=1)
    await store(database, "loss", points[900:], run=2)
    thinned = (await series(database, max_points=limit))["loss"]
    assert len(thinned) <= max(2, limit)
    assert set(thinned) <= set(points)
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    if limit >= 4:
        assert {points[high], points[low]} <= set(thinned)
    if limit == 500:
        assert len(thinned) > 350
        for start in range(0, 100_000, 10_000):
            span = [value for step, value in points if start <= step < start + 10_000]
            seen = [value for step, value in thinned if start <= step < start + 10_000]
            assert (max(span), min(span)) == (max(seen), min(seen))


async def test_thinning_shows_undefined_values_and_constant_ones(database: Database) -> None:
    points = [(step, 0.5) for step in range(1, 1001)]
    await store(database, "constant", points)
    points[500] = (501, math.nan)
    await store(database, "broken", points)
    await store(database, "diverged", [(step, math.nan) for step in range(1, 1001)])
    found = await series(database, max_points=30)
    assert {len(found["constant"]) <= 30, {value for _, value in found["constant"]} == {0.5}} == {True}
    assert [step for step, value in found["broken"] if math.isnan(value)] == [501]
    assert 2 <= len(found["diverged"]) <= 30
    assert all(math.isnan(value) for _, value in found["diverged"])
