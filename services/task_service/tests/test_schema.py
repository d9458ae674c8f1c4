"""Migrations make what the models say, once, whole or not at all."""

import asyncio

import pytest
from alembic import command, op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, select

from servicekit.database import create_engine
from task_service.database import schema
from task_service.database.models import Base, UserRow


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata))


async def test_migrated_tables_are_those_of_the_models(database_url: str) -> None:
    engine = create_engine(database_url)
    await schema.migrate(engine)
    await schema.migrate(engine)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    engines = [create_engine(database_url) for _ in range(4)]
    await asyncio.gather(*(schema.migrate(engine) for engine in engines))
    for engine in engines:
        await engine.dispose()


async def test_an_interrupted_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_table = op.create_table

    def fail_half_way(name: str, *columns: object, **options: object) -> object:
        if name == "tasks":
            raise KeyboardInterrupt
        return create_table(name, *columns, **options)

    engine = create_engine(database_url)
    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", fail_half_way)
        with pytest.raises(KeyboardInterrupt):
            await schema.migrate(engine)
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == []
    await schema.migrate(engine)
    await engine.dispose()


async def test_a_database_of_the_first_version_keeps_its_tasks(database_url: str) -> None:
    def first_version(connection: Connection) -> None:
        command.upgrade(schema.alembic_config(connection), "0001")
        connection.execute(insert(UserRow).values(name="alice"))

    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(first_version)
        assert not await connection.run_sync(lambda sync: inspect(sync).has_table("datasets"))
    await schema.migrate(engine)
    async with engine.connect() as connection:
        assert (await connection.execute(select(UserRow.name))).scalar_one() == "alice"
        assert await connection.run_sync(differences) == []
    await engine.dispose()
