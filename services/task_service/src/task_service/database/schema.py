"""Brings the database to the newest schema: one transaction, one process at a time, forward only."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_KEY = 0x74756E65  # any number that nobody else uses in this database
# Processes that start together wait for the one that migrates; a large database may take long.
WAIT_SECONDS = 600.0


async def migrate(engine: AsyncEngine) -> None:
    """Runs the migrations that the database has not seen. When it is interrupted, nothing has changed."""
    async with engine.execution_options(busy_seconds=WAIT_SECONDS).begin() as connection:
        # SQLite has the writer's lock already, because the transaction began IMMEDIATE.
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        await connection.run_sync(_upgrade)


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for a connection; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    command.upgrade(alembic_config(connection), "head")
