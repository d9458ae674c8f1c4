"""What both databases do alike: transactions, concurrent writers, the outbox."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from servicekit import database, subjects
from servicekit.bus import EventBus
from servicekit.database import close_engine, create_engine, read_session_factory, session_factory
from servicekit.errors import Unavailable
from servicekit.outbox import Outbox, Relay, outbox_table
from tests.support.nats import NatsServer
from tests.support.waiting import eventually

metadata = MetaData()
OUTBOX = outbox_table(metadata)
JOBS = Table("jobs", metadata, Column("id", Integer, primary_key=True), Column("owner", String(20)))

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture(params=["sqlite", "postgresql"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite:///{tmp_path}/test.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = create_engine(url, pool_size=6)
    async with made.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield made
    await close_engine(made)


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    return session_factory(engine)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[EventBus]:
    connected = await EventBus.connect(nats_server.url, name="test")
    await connected.ensure_streams()
    yield connected
    await connected.close()


async def rows(sessions: Sessions, table: Table) -> int:
    async with sessions() as session:
        return int(await session.scalar(select(func.count()).select_from(table)) or 0)


async def test_sqlite_keeps_what_it_committed(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    async with engine.connect() as connection:
        assert {name: (await connection.scalar(text(f"PRAGMA {name}"))) for name in expected} == expected
    await engine.dispose()


async def test_a_new_database_waits_for_another_process_that_opens_it(tmp_path: Path) -> None:
    """Whoever writes to a database that is not in WAL mode yet keeps others from setting it; they must not fail."""
    file = tmp_path / "test.db"
    engine = create_engine(f"sqlite:///{file}")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        opening = asyncio.ensure_future(engine.connect().start())
        await asyncio.wait((opening,), timeout=0.2)
        assert not opening.done()
        other.execute("COMMIT")
        connection = await opening
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
        await connection.close()
    finally:
        other.close()
        await engine.dispose()


async def test_a_transaction_may_wait_longer_than_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_SECONDS", 0)
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    async with engine.connect() as first:
        await first.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="locked"):
            async with engine.begin() as second:
                await second.execute(text("SELECT 1"))
        patient = asyncio.ensure_future(_begun(engine.execution_options(busy_seconds=30)))
        await asyncio.wait((patient,), timeout=0.2)
        assert not patient.done()
        await first.rollback()
        await patient
    await engine.dispose()


async def _begun(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sqlite:.*postgresql:") as caught:
        create_engine("mysql://user:secret@host/name")
    assert "secret" not in str(caught.value)


async def test_a_failed_transaction_leaves_nothing(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await session.execute(insert(JOBS).values(id=1))
    with pytest.raises(IntegrityError):
        async with sessions.begin() as session:
            await session.execute(insert(JOBS).values(id=2))
            await session.execute(insert(JOBS).values(id=1))
    assert await rows(sessions, JOBS) == 1


async def test_writers_wait_for_each_other(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await session.execute(insert(JOBS).values(id=1, owner="0"))

    async def increment() -> None:
        async with sessions.begin() as session:
            value = await session.scalar(select(JOBS.c.owner).where(JOBS.c.id == 1).with_for_update())
            await session.execute(update(JOBS).where(JOBS.c.id == 1).values(owner=str(int(value or 0) + 1)))

    await asyncio.gather(*(increment() for _ in range(40)))
    async with sessions() as session:
        assert await session.scalar(select(JOBS.c.owner)) == "40"


async def test_readers_do_not_wait_for_a_writer(engine: AsyncEngine, sessions: Sessions) -> None:
    readers = read_session_factory(engine)
    async with sessions.begin() as session:
        await session.execute(insert(JOBS).values(id=1))
        async with asyncio.timeout(2), readers() as reader:
            assert (await reader.scalars(select(JOBS.c.id))).all() == []
    async with readers() as reader:
        assert (await reader.scalars(select(JOBS.c.id))).all() == [1]


async def test_one_of_many_claims_wins(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await session.execute(insert(JOBS), [{"id": number, "owner": None} for number in range(20)])

    async def claim(worker: str) -> list[int]:
        won = []
        for number in range(20):
            async with sessions.begin() as session:
                claimed = update(JOBS).where(JOBS.c.id == number, JOBS.c.owner.is_(None)).values(owner=worker)
                won += list(await session.scalars(claimed.returning(JOBS.c.id)))
        return won

    claims = await asyncio.gather(*(claim(f"worker-{number}") for number in range(5)))
    assert sorted(number for won in claims for number in won) == list(range(20))


async def add(sessions: Sessions, outbox: Outbox, count: int, first: int = 0) -> None:
    async with sessions.begin() as session:
        for number in range(first, first + count):
            await outbox.add(session, subjects.fact("t"), str(number).encode(), headers={"ce-id": str(number)})


async def stored(bus: EventBus, count: int) -> list[str]:
    consumer = bus.consumer(subjects.FACTS, "reader", "fact.>", max_ack_pending=5000)
    got: list[str] = []
    while len(got) < count:
        messages = await consumer.fetch(256, 10)
        assert messages, f"only {len(got)} of {count} messages came"
        for message in messages:
            assert message.headers["ce-id"] == message.data.decode()
            got.append(message.data.decode())
            await message.ack()
    assert await consumer.fetch(1, 0.2) == []
    return got


async def test_the_outbox_is_published_in_order(sessions: Sessions, bus: EventBus) -> None:
    outbox = Outbox(OUTBOX)
    relay = Relay(outbox, sessions, bus)
    assert await relay.relay_once() == 0
    await add(sessions, outbox, 600)
    while await relay.relay_once():
        pass
    assert await stored(bus, 600) == [str(number) for number in range(600)]
    assert await rows(sessions, OUTBOX) == 0


async def test_what_was_rolled_back_is_never_published(sessions: Sessions, bus: EventBus) -> None:
    outbox = Outbox(OUTBOX)
    with suppress(RuntimeError):
        async with sessions.begin() as session:
            await outbox.add(session, subjects.fact("t"), b"x")
            raise RuntimeError
    assert await Relay(outbox, sessions, bus).relay_once() == 0
    assert (await bus.sequences(subjects.FACTS))[1] == 0


async def test_a_relay_that_died_after_publishing_is_absorbed(sessions: Sessions, bus: EventBus) -> None:
    outbox = Outbox(OUTBOX)
    await add(sessions, outbox, 3)
    async with sessions() as session:
        kept = [dict(row._mapping) for row in await session.execute(select(OUTBOX).order_by(OUTBOX.c.position))]
    assert await Relay(outbox, sessions, bus).relay_once() == 3
    async with sessions.begin() as session:
        await session.execute(insert(OUTBOX), kept)
    assert await Relay(outbox, sessions, bus).relay_once() == 3
    assert await stored(bus, 3) == ["0", "1", "2"]


async def test_messages_for_later_wait(sessions: Sessions, bus: EventBus) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    outbox = Outbox(OUTBOX)
    relay = Relay(outbox, sessions, bus, clock=lambda: now)
    async with sessions.begin() as session:
        for number, seconds in enumerate((60, 0, 30)):
            due = now + timedelta(seconds=seconds)
            await outbox.add(
                session, subjects.fact("t"), str(number).encode(), headers={"ce-id": str(number)}, not_before=due
            )
    assert await relay.relay_once() == 1
    now += timedelta(seconds=31)
    assert await relay.relay_once() == 1
    now += timedelta(seconds=31)
    assert await relay.relay_once() == 1
    assert await stored(bus, 3) == ["1", "2", "0"]


async def test_the_relay_wakes_at_once(sessions: Sessions, bus: EventBus) -> None:
    outbox = Outbox(OUTBOX)
    running = asyncio.ensure_future(Relay(outbox, sessions, bus).run())
    consumer = bus.consumer(subjects.FACTS, "reader", "fact.>")
    took = []
    for number in range(5):
        waiting = asyncio.ensure_future(consumer.fetch(1, 10))
        await asyncio.wait([waiting], timeout=0.05)
        began = asyncio.get_running_loop().time()
        await add(sessions, outbox, 1, first=number)
        outbox.wake()
        (message,) = await waiting
        took.append(asyncio.get_running_loop().time() - began)
        await message.ack()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert min(took) < 0.3


async def test_the_relay_bridges_an_outage(sessions: Sessions, bus: EventBus, nats_server: NatsServer) -> None:
    outbox = Outbox(OUTBOX)
    running = asyncio.ensure_future(Relay(outbox, sessions, bus).run())
    await add(sessions, outbox, 100)
    nats_server.kill()
    await add(sessions, outbox, 100, first=100)
    with pytest.raises(Unavailable):
        await Relay(outbox, sessions, bus).relay_once()
    await asyncio.to_thread(nats_server.restart)

    async def empty() -> bool:
        return await rows(sessions, OUTBOX) == 0

    await eventually(empty, 30)
    assert sorted(await stored(bus, 200), key=int) == [str(number) for number in range(200)]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_cancelled_relay_holds_nothing_up(sessions: Sessions, bus: EventBus) -> None:
    outbox = Outbox(OUTBOX)
    relay = Relay(outbox, sessions, bus)
    async with asyncio.timeout(20):
        for number in range(200):
            running = asyncio.create_task(relay.relay_once())
            await asyncio.wait([running], timeout=number * 0.00003)
            running.cancel()
            await asyncio.wait([running])
            if number % 10 == 0:
                await add(sessions, outbox, 1, first=number)


async def test_headers_survive(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await Outbox(OUTBOX).add(session, "s", b"\x00\xff", headers={"name": "Grüße 模型"}, message_id="id")
    async with sessions() as session:
        row = (await session.execute(select(OUTBOX))).one()
    assert (row.message_id, bytes(row.payload)) == ("id", b"\x00\xff")
    assert json.loads(row.headers) == {"name": "Grüße 模型"}
