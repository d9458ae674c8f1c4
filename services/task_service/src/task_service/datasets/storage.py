"""How much users may store: the bytes of their datasets, counted in the transaction that records one more."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import ResourceExhausted
from servicekit.spooling import STORAGE_EXHAUSTED
from task_service.database.models import DatasetRow
from task_service.quotas.records import QuotaRepository


@dataclass(frozen=True, slots=True)
class StorageLimit:
    """The most bytes that one user's datasets may have; 0 is unlimited."""

    allowed: int

    async def require_room(self, session: AsyncSession, owner: str, wanted: int) -> None:
        """Raises ResourceExhausted when so many bytes more are too many."""
        if not self.allowed:
            return
        query = select(func.coalesce(func.sum(DatasetRow.size), 0)).where(DatasetRow.owner == owner)
        used = int((await session.execute(query)).scalar_one())
        if used + wanted > self.allowed:
            raise ResourceExhausted(
                f"your datasets have {used} bytes and this one {wanted}, more than the {self.allowed} bytes that you "
                "may store: delete datasets that you no longer need",
                reason=STORAGE_EXHAUSTED,
                metadata={"used": str(used), "wanted": str(wanted), "allowed": str(self.allowed)},
            )

    async def take_room(self, session: AsyncSession, owner: str, wanted: int) -> None:
        """The same for what is recorded in this transaction; the user's other uploads wait until it ends."""
        if self.allowed:
            await QuotaRepository(session, 0).lock(owner)
            await self.require_room(session, owner, wanted)
