"""Async SQLAlchemy for SQLite and PostgreSQL, set up so that a commit is on disk when it returns."""

import asyncio
import logging
import sqlite3
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

logger = logging.getLogger(__name__)

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 15
PRIMARY_CODE = 0xFF  # of a result; the bits above tell its kinds apart
SQLITE_PRAGMAS = ("synchronous=FULL", "foreign_keys=ON", "cache_size=-4000")
RETRY_SECONDS = 0.02
ABANDONED_SECONDS = 5.0

_abandoned: set[asyncio.Task[Any]] = set()


def create_engine(url: str, *, pool_size: int = 8) -> AsyncEngine:
    """An engine for "sqlite:///FILE" or "postgresql://...". The driver is chosen here.

    SQLite runs in WAL mode with synchronous FULL; a transaction that may write begins IMMEDIATE, so that two writers
    queue up instead of failing half way; they wait SQLITE_BUSY_SECONDS for each other, or what the execution option
    busy_seconds says. Reads go through sessions with the execution option readonly. A connection is dear (with SQLite a
    thread), so the pool never opens more than pool_size and callers wait for one.
    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed.set(drivername="sqlite+aiosqlite"), pool_size)
    if backend == "postgresql":
        return create_async_engine(
            parsed.set(drivername="postgresql+asyncpg"), pool_size=pool_size, max_overflow=0, pool_pre_ping=True
        )
    raise ValueError(f"database address {parsed!r}: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")


def _sqlite(url: Any, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=pool_size, max_overflow=0, connect_args={"timeout": SQLITE_BUSY_SECONDS}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.run_async(_prepare)

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        options = connection.get_execution_options()
        if options.get("single_statement", False):
            return
        if options.get("readonly", False):
            connection.exec_driver_sql("BEGIN")
            return
        seconds = options.get("busy_seconds", SQLITE_BUSY_SECONDS)
        if seconds != SQLITE_BUSY_SECONDS:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={int(1000 * seconds)}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            if seconds != SQLITE_BUSY_SECONDS:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * SQLITE_BUSY_SECONDS}")

    return engine


async def _prepare(connection: aiosqlite.Connection) -> None:
    """Sets up a new connection. A database becomes one in WAL mode only while nobody writes to it.

    SQLite does not wait for that by itself, so processes that open a new database together would fail.
    """
    connection.isolation_level = None
    deadline = asyncio.get_running_loop().time() + SQLITE_BUSY_SECONDS
    while True:
        try:
            await connection.execute_fetchall("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error) or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)
    for pragma in SQLITE_PRAGMAS:
        await connection.execute_fetchall(f"PRAGMA {pragma}")


def is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another connection is in the way, of whatever kind (SQLITE_BUSY_RECOVERY, ...)."""
    return error.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_BUSY


def session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions for transactions that may write: `async with sessions.begin() as session`."""
    return async_sessionmaker(engine, expire_on_commit=False)


def read_session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions for reading only; on SQLite they never wait for a writer."""
    return async_sessionmaker(engine.execution_options(readonly=True), expire_on_commit=False)


def lookup_session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions for a single reading statement; on SQLite it needs no transaction, which is most of its cost."""
    return async_sessionmaker(engine.execution_options(readonly=True, single_statement=True), expire_on_commit=False)


async def to_its_end(transaction: Coroutine[Any, Any, T]) -> T:
    """The result of a transaction that ends, one way or the other, also when its caller is cancelled.

    A connection to SQLite that is given up while its statement runs in a thread keeps the lock of every writer.
    """
    running = asyncio.ensure_future(transaction)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        _abandoned.add(running)
        running.add_done_callback(_abandoned_one_ended)
        raise


async def close_engine(engine: AsyncEngine) -> None:
    """Closes the connections, once the transactions have ended whose callers have gone."""
    if _abandoned:
        await asyncio.wait(_abandoned, timeout=ABANDONED_SECONDS)
    await engine.dispose()


def _abandoned_one_ended(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a transaction whose caller had gone failed: %s", error)
