"""Background duties run on one replica at a time: whoever holds a lease in the database."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import Unavailable
from task_service.database.access import Database, current_time
from task_service.database.models import LeaseRow

logger = logging.getLogger(__name__)

Duty = Callable[[], Awaitable[None]]

NAME = "background-duties"
RESTART_SECONDS = 1.0
FAR_FUTURE = 60_000_000  # microseconds; longer than replicas with different settings would write


def new_holder() -> str:
    """A name for this process that no other ever has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"


class Lease:
    """A row that names its holder until a time on the database's clock."""

    def __init__(self, database: Database, seconds: float, *, name: str = NAME, holder: str | None = None) -> None:
        self._database = database
        self._name = name
        self.holder = holder or new_holder()
        self.seconds = seconds

    async def acquire(self) -> bool:
        """Takes or extends the lease. False while somebody else has it. Raises Unavailable."""
        try:
            return await self._database.transaction(self._acquire)
        except IntegrityError:
            return False

    async def _acquire(self, session: AsyncSession) -> bool:
        now = await current_time(session)
        length = int(self.seconds * 1_000_000)
        # An end in a far future was written under a clock that has been put back since.
        free = or_(
            LeaseRow.holder == self.holder,
            LeaseRow.expire_time <= now,
            LeaseRow.expire_time > now + length + FAR_FUTURE,
        )
        taken = await session.execute(
            update(LeaseRow)
            .where(LeaseRow.name == self._name, free)
            .values(holder=self.holder, expire_time=now + length)
            .returning(LeaseRow.name)
        )
        if taken.first() is not None:
            return True
        if await session.scalar(select(func.count()).where(LeaseRow.name == self._name)):
            return False
        session.add(LeaseRow(name=self._name, holder=self.holder, expire_time=now + length))
        return True

    async def release(self) -> None:
        """Lets another replica take over at once."""

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(LeaseRow).where(LeaseRow.name == self._name, LeaseRow.holder == self.holder))

        with suppress(Unavailable):
            await self._database.transaction(work)


async def lead(lease: Lease, duties: Mapping[str, Duty]) -> None:
    """Runs the duties whenever this process holds the lease, until it is cancelled."""
    try:
        while True:
            if await _acquired(lease):
                logger.info("this replica runs the background duties")
                await _while_held(lease, duties)
                logger.warning("another replica runs the background duties now")
            await asyncio.sleep(lease.seconds / 3)
    finally:
        await lease.release()


async def _acquired(lease: Lease) -> bool:
    try:
        return await lease.acquire()
    except Unavailable as error:
        logger.warning("the lease of the background duties: %s", error.message)
        return False


async def _while_held(lease: Lease, duties: Mapping[str, Duty]) -> None:
    """Runs the duties until the lease is lost, or could not be extended in time."""
    loop = asyncio.get_running_loop()
    running = [asyncio.create_task(keep_running(name, duty), name=name) for name, duty in duties.items()]
    extended = loop.time()
    try:
        while loop.time() - extended < lease.seconds:
            await asyncio.sleep(lease.seconds / 3)
            asked = loop.time()
            try:
                async with asyncio.timeout_at(extended + lease.seconds):
                    if not await lease.acquire():
                        return
                extended = asked
            except (Unavailable, TimeoutError) as error:
                logger.warning("the lease of the background duties could not be extended: %s", error)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def keep_running(name: str, duty: Duty) -> None:
    """Runs a duty and starts it again when it fails."""
    while True:
        try:
            await duty()
            return
        except Exception:
            logger.exception("%s failed; it starts again in %s s", name, RESTART_SECONDS)
        await asyncio.sleep(RESTART_SECONDS)
