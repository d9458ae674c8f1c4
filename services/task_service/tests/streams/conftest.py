"""A real broker, database and object store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servicekit.bus import EventBus
from servicekit.database import close_engine, create_engine
from servicekit.objects import ObjectStore, open_object_store
from services.task_service.tests.streams.world import OWNER, World
from task_service.database.access import Database
from task_service.database.models import Base, UserRow
from tests.support.nats import NatsServer


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    engine = create_engine(f"sqlite:///{tmp_path}/tasks.db")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield Database(engine)
    await close_engine(engine)


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = open_object_store(f"file://{tmp_path}/objects")
    await store.prepare()
    yield store
    await store.close()


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[EventBus]:
    bus = await EventBus.connect(nats_server.url, name="test")
    await bus.ensure_streams()
    yield bus
    await bus.close()


@pytest.fixture
async def world(
    nats_server: NatsServer, bus: EventBus, database: Database, objects: ObjectStore
) -> AsyncIterator[World]:
    async with database.sessions.begin() as session:
        session.add(UserRow(name=OWNER.user))
    yield World(nats_server, bus, database, objects)
