"""Transactions that are repeated when the database lost a race, and one error for when it is out of order."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from servicekit.database import lookup_session_factory, read_session_factory, session_factory, to_its_end
from servicekit.errors import Unavailable
from task_service.database.types import now

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 6
CALLERS = 5  # of the pool's 8 connections; the others are for workers, facts and the lease
RACES_LOST = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected


def lost_a_race(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is tried again at once."""
    return getattr(error.orig, "sqlstate", None) in RACES_LOST or "database is locked" in str(error.orig)


def out_of_order(error: DBAPIError) -> bool:
    """Whether the database cannot be reached or written, as opposed to a defect of the statement."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def database_unavailable(error: BaseException) -> Unavailable:
    """The error that callers see then."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return Unavailable(f"the database cannot be used now: {cause}", reason="DATABASE_UNAVAILABLE")


class Database:
    """Sessions on one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # SQLite has one writer at a time and lets the others poll; queueing here is fair and costs nothing.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        self.sessions = session_factory(engine)
        self.read_sessions = read_session_factory(engine)
        self.lookup_sessions = lookup_session_factory(engine)
        self._callers = asyncio.Semaphore(CALLERS)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[None]:
        """One of few places for what users ask for, so that a flood of it delays no heartbeat."""
        async with self._callers:
            yield

    async def transaction(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Runs work in a transaction and commits it; work may run several times. Raises Unavailable.

        It ends, one way or the other, also when the caller is cancelled.
        """
        return await to_its_end(self._transaction(work))

    async def _transaction(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        for tried in range(1, TRIES + 1):
            try:
                async with self._turn, self.sessions.begin() as session:
                    return await work(session)
            except DBAPIError as error:
                if tried < TRIES and lost_a_race(error):
                    await asyncio.sleep(random.uniform(0, 0.01 * 2**tried))
                    continue
                if out_of_order(error) or lost_a_race(error):
                    raise database_unavailable(error) from error
                raise
            except (OSError, PoolTimeoutError) as error:
                raise database_unavailable(error) from error
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def reading(self, *, single_statement: bool = False) -> AsyncIterator[AsyncSession]:
        """A session for reading: a snapshot, or cheaper for just one statement. Raises Unavailable."""
        try:
            async with self.lookup_sessions() if single_statement else self.read_sessions() as session:
                yield session
        except DBAPIError as error:
            if out_of_order(error):
                raise database_unavailable(error) from error
            raise
        except (OSError, PoolTimeoutError) as error:
            raise database_unavailable(error) from error


async def current_time(session: AsyncSession) -> int:
    """The database's clock, in microseconds."""
    return int((await session.execute(select(now()))).scalar_one())
