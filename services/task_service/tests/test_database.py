"""Transactions whose caller goes away."""

import asyncio

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.database import close_engine, create_engine
from task_service.database.access import Database
from task_service.database.models import LeaseRow
from task_service.database.schema import migrate


async def write(session: AsyncSession) -> None:
    await session.execute(select(1))
    session.add(LeaseRow(name="n", holder="h", expire_time=1))
    await session.flush()
    await session.execute(text("DELETE FROM leases"))


async def read(database: Database) -> None:
    async with database.reading() as session:
        await session.execute(select(LeaseRow))
        await session.execute(select(1))


@pytest.mark.parametrize("kind", ["write", "read"])
async def test_a_cancelled_caller_holds_nothing_up(database_url: str, kind: str) -> None:
    """Whatever the moment: what comes next finds no transaction that nobody ends, and every connection in the pool."""
    engine = create_engine(database_url, pool_size=4)
    await migrate(engine)
    database = Database(engine)
    async with asyncio.timeout(20):
        for number in range(300):
            running = asyncio.create_task(database.transaction(write) if kind == "write" else read(database))
            await asyncio.wait([running], timeout=number * 0.00003)
            running.cancel()
            await asyncio.wait([running])
            if number % 10 == 0:
                await database.transaction(write)
        await asyncio.gather(*(read(database) for _ in range(4)))
    assert engine.pool.checkedout() == 0
    await close_engine(engine)
