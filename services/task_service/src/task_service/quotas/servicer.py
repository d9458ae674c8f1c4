"""QuotaService over gRPC: convert, call, convert."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from servicekit.errors import InvalidArgument, PermissionDenied, Problem
from servicekit.identity import Principal, current_principal
from task_service.commands.core import Core
from task_service.quotas.convert import quota_message
from task_service.quotas.records import QuotaRepository
from tunesmith.task.v1 import quota_service_pb2 as pb
from tunesmith.task.v1 import quota_service_pb2_grpc

Context = Any

NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Users see their own quota; administrators see and set everybody's."""

    core: Core

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.GetQuotaResponse:
        principal = current_principal()
        user = request.user or principal.user
        if user != principal.user and not principal.is_service:
            require_admin(principal, "sees other users' quotas")
        _require_storable(user)
        async with self.core.database.caller(), self.core.database.reading(single_statement=True) as session:
            return pb.GetQuotaResponse(quota=await self._quota(session, user))

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.SetQuotaResponse:
        require_admin(current_principal(), "sets quotas")
        _require_storable(request.user)

        async def transaction(session: AsyncSession) -> pb.Quota:
            quotas = QuotaRepository(session, self.core.checkpoint_quota)
            await quotas.set(request.user, request.monthly_allowance, request.exhausted_action)
            await session.flush()
            return await self._quota(session, request.user)

        async with self.core.database.caller():
            return pb.SetQuotaResponse(quota=await self.core.database.transaction(transaction))

    async def _quota(self, session: AsyncSession, user: str) -> pb.Quota:
        quota, time = await QuotaRepository(session, self.core.checkpoint_quota).at_this_time(user)
        return quota_message(user, quota, time)


def require_admin(principal: Principal, what: str) -> None:
    """Raises PermissionDenied for everybody else."""
    if not principal.is_admin:
        raise PermissionDenied(f"only an administrator {what}", reason="ADMIN_ROLE_REQUIRED")


def _require_storable(user: str) -> None:
    if len(user) > NAME_LENGTH or "\0" in user:
        message = f"is longer than {NAME_LENGTH} letters, or holds a NUL character"
        raise InvalidArgument(problems=[Problem("user", message)])
